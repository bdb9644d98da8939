"""The speed measurements measure, compare first, and say what is wrong. What they find is in docs/performance.md."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY, Command, stand_in

from benchmarks import bench, compare, flat, inputs, measure, options
from mbrl.build import make_buffer
from mbrl.experiment.settings import load
from mbrl.replay import ReplayBuffer

SMALL = (*TINY, "repeats=1", "at_least_s=0")
# A peer that samples transitions as we do, gives clips whose rewards belong to another frame, and has no agent.
FAKE = """
import os, sys
sys.path.insert(0, os.getcwd())
from benchmarks.workers.ours import Segments, Transitions
from benchmarks.workers.pipe import serve

class Late(Segments):
    def outputs(self):
        return (drawn := super().outputs()) | {"rewards": drawn["rewards"].roll(1, dims=1)}

serve({"transitions": Transitions, "clips": Late})
"""


@pytest.fixture
def peer(tmp_path: Path) -> tuple[str, str]:
    """A checkout, and the python of its environment, neither of them real: `peer=` and `peer_python=`."""
    checkout = tmp_path / "iVideoGPT"
    (checkout / "mbrl").mkdir(parents=True)
    (checkout / "mbrl/video_predictor.py").touch()
    python = stand_in(tmp_path, FAKE, {"python": "3.9", "torch": "2.2.1"})
    return f"peer={checkout}", f"peer_python={python}"


def test_ours_alone(typed: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "PROBE_SIZE", {"cpu": 64})
    code, out, error = typed(bench.main, *SMALL, f"out={tmp_path}")
    assert (code, error) == (0, "")
    folder = tmp_path / "alone-smoke"
    assert (folder / "bench.txt").read_text().strip() in out
    saved = json.loads((folder / "bench.json").read_text())
    rates = {name: part["units_a_call"] / part["seconds"]["median"] for name, part in saved["parts"].items()}
    assert len(rates) == 8
    assert min(rates.values()) > 0
    assert all(f"\n{name} " in out for name in (*rates, "learn to act", "evaluate", "together"))
    assert {"cpu", "cores", "flags", "versions", "threads"} <= saved["machine"].keys()
    # 120 of the 160 frames learn; each 80 of them bring an episode of 10 decisions; all the frames are 80 decisions.
    assert saved["run_s"]["evaluate"] / saved["run_s"]["act"] == pytest.approx(120 / 80 * 10 / 80)


def test_beside_a_peer(typed: Command, tmp_path: Path, peer: tuple[str, str]):
    """The line that agrees has two speeds, the others have none and say why; all are in the files."""
    overrides = (*SMALL, *peer, f"out={tmp_path}", "name=x", "episodes=3")
    overrides = (*overrides, "lines=[transitions,clips,agent]", "precisions=[fp32]")
    code, out, error = typed(bench.main, *overrides)
    assert (code, error) == (0, "")
    saved = json.loads((tmp_path / "x/bench.json").read_text())
    same, late, dead = saved["lines"]
    assert same["ours"]["repeats"] == same["theirs"]["repeats"] == 1
    assert same["difference"] < 1e-6
    for line, problem in ((late, "rewards differ by"), (dead, "KeyError: 'agent'")):
        assert line["ours"] is line["theirs"] is line["difference"] is None
        assert problem in line["problem"]
        assert f"{line['line']} fp32: {line['problem']}" in (tmp_path / "x/bench.txt").read_text()
    assert out.count("they differ") == 2
    assert "torch 2.2.1" in out
    assert not [path for path in (tmp_path / "x").iterdir() if path.is_dir()]  # a gigabyte of weights, at paper size


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"peer": "nowhere"}, "is no checkout of thuml/iVideoGPT"),
        ({"peer_python": "none"}, "peer needs peer_python="),
        ({"peer_python": "nowhere/python"}, "cannot be run"),
        ({"peer_python": sys.executable}, "lacks what the official code needs"),
        ({"lines": "[dreams]"}, "lines=dreams is unknown"),
    ],
)
def test_what_is_wrong_is_one_line(
    typed: Command, tmp_path: Path, peer: tuple[str, str], changed: dict, complaint: str
):
    overrides = dict(override.split("=", 1) for override in (*SMALL, *peer, f"out={tmp_path}/runs")) | changed
    code, _, error = typed(bench.main, *(f"{key}={value}" for key, value in overrides.items()))
    assert code == 2
    assert complaint in error
    assert len(error.splitlines()) == 1


def test_numbers_are_compared():
    tokens, losses = torch.arange(4), torch.tensor([10.0, 0.0])
    same = {"tokens": tokens, "loss": losses}
    assert compare.same_outputs(same, {"tokens": tokens, "loss": losses + 5e-4}) == pytest.approx(5e-5, rel=1e-2)
    for other, complaint in (
        ({"tokens": tokens.flip(0), "loss": losses}, "4 of 4 tokens differ"),
        ({"tokens": tokens, "loss": losses + 5e-3}, "loss differ by 0.0005"),
        ({"tokens": tokens, "loss": losses * torch.nan}, "loss differ by nan"),
        ({"tokens": tokens, "loss": losses[:1]}, r"loss are \(2,\)"),
        ({"tokens": tokens}, "ours gives"),
    ):
        with pytest.raises(compare.Mismatch, match=complaint):
            compare.same_outputs(same, other)


def test_in_bf16_nobody_may_be_further_from_float32():
    exact = {"loss": torch.tensor([10.0, 0.0])}
    off = {share: {"loss": torch.tensor([10.0 * (1 + share), 0.0])} for share in (0.04, -0.04, 0.08, 0.1, 0.2)}
    assert compare.same_in_bf16(off[0.04], off[-0.04], exact) == pytest.approx(0.04, rel=1e-3)
    assert compare.same_in_bf16(off[0.1], off[0.08], exact) == pytest.approx(0.1, rel=1e-3)
    nothing, unknown = {"loss": torch.zeros(2)}, {"loss": torch.full((2,), torch.nan)}
    for ours, theirs in (
        *((off[0.1], off[-0.04]), (off[0.2], off[0.08]), (off[0.2], off[0.2]), (exact, nothing)),
        *((unknown, exact), (exact, unknown)),
    ):
        with pytest.raises(compare.Mismatch, match="off the float32 ones"):
            compare.same_in_bf16(ours, theirs, exact)
    with pytest.raises(compare.Mismatch, match="ours gives loss, theirs q"):
        compare.same_in_bf16(exact, {"q": exact["loss"]}, exact)


def test_samples_are_held_against_the_episodes(tmp_path: Path):
    """Ours pass; a sample that is one step off does not."""
    overrides = [*TINY]
    chosen, settings, _ = options.read([*overrides, "episodes=2"])
    inputs.write(tmp_path, settings, chosen)
    from benchmarks.workers.ours import Transitions

    spec = {"overrides": overrides, "folder": str(tmp_path), "batch": 64}
    drawn = Transitions(spec).outputs()
    assert compare.same_transitions(tmp_path, settings, drawn, drawn) < 1e-6
    for name in ("obs", "reward", "next_obs"):
        wrong = drawn | {name: drawn[name].roll(1, dims=0)}
        with pytest.raises(compare.Mismatch, match=name):
            compare.same_transitions(tmp_path, settings, drawn, wrong)
    assert load_file(tmp_path / "actions.safetensors")["actions"].abs().max() <= 1


def test_operations_are_counted():
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    assert measure.operations(lambda: a @ b) == 2 * 5 * 7 * 3
    q = torch.randn(2, 3, 16, 8, requires_grad=True)  # two products of (16, 8) by (8, 16) a head; five going back
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)  # noqa: E731
    assert measure.operations(attend) == 2 * 2 * (2 * 3 * 16 * 16 * 8)
    assert measure.operations(lambda: attend().sum().backward()) == 7 * 2 * (2 * 3 * 16 * 16 * 8)


def test_a_floor_is_the_slower_of_the_two():
    limits = measure.Limits({"fp32": 100.0, "bf16": 200.0}, 10.0)
    assert measure.floor(1000, 5, limits, "fp32") == 10
    assert measure.floor(1000, 5, limits, "bf16") == 5
    assert measure.floor(1000, 500, limits, "bf16") == 50


def test_cost_stays_flat(typed: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flat, "MARKS", (400, 800))
    monkeypatch.setattr(flat, "TIMES_ROLLOUTS", 3)
    code, _, error = typed(flat.main, *SMALL, f"out={tmp_path}")
    assert (code, error) == (0, "")
    saved = json.loads((tmp_path / "flat-smoke/flat.json").read_text())
    assert [row["frames"] for row in saved["replay"]] == [400, 800]
    assert [row["horizon"] for row in saved["dreams"]] == list(flat.HORIZONS)
    first, last = saved["imagined"]
    assert last["rollouts"] == 3 * first["rollouts"]
    assert last["decisions_held"] == first["decisions_held"] == 24
    assert "horizon" in (tmp_path / "flat-smoke/flat.txt").read_text()


def test_the_images_of_a_mapped_replay_are_on_disk(tmp_path: Path):
    settings = load(["preset=smoke", "device=cpu", "replay_memory_gb=0"])
    replay = make_buffer(settings, "replay", flat.ACTION_DIM, 100, 100, tmp_path)
    assert isinstance(replay, ReplayBuffer)
    assert "numpy.memmap" in str(type(replay._frames.base))
