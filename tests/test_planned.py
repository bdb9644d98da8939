"""`dry_run=true`: the plan is printed, nothing is written, and the numbers are those of the run."""

from pathlib import Path

import numpy as np
import pytest
from tiny import Command, tiny, train

from mbrl import train as training
from mbrl.data import data
from mbrl.experiment import planned
from mbrl.experiment.settings import load
from mbrl.plan import plan
from mbrl.predict import predict
from mbrl.pretrain import pretrain
from mbrl.study import study
from mbrl.sweep import sweep
from world_model import Episode
from world_model.data import write_shard

SHORT = (
    "preset=smoke device=cpu tokenizer_updates=6 transformer_updates=4 horizon=2 learner.segment_length=4 "
    "learner.tokenizer_span=4 learner.quantize_after=1 learner.revive_codes_until=0"
).split()
HEADER = "frame,episode_return,success_rate,episodes,wall_time_s\n"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_run_that_has_not_begun_and_one_that_has(run_root: Path, typed: Command) -> None:
    words = tiny(run_root)
    code, out, error = typed(training.main, *words, "dry_run=true")
    assert (code, error) == (0, "")
    assert out.startswith(
        f"mbpo on toy/reach, preset smoke, protocol bonus_demos, seed 1, on cpu, into {run_root}/toy/reach/mbpo/1"
    )
    assert "160 frames from frame 0, evaluated 2 times over 1 episodes" in out
    assert "updates of the agent: 30, batch 4" in out
    assert "updates of the transformer: about 9" in out
    assert not run_root.exists()
    folder = train(run_root, "num_train_frames=120", "dry_run=false")
    rows = (folder / "metrics.jsonl").read_text()
    assert rows
    before = files(run_root)
    out = typed(training.main, *words, "dry_run=true")[1]
    assert "40 frames from frame 120, evaluated 1 times" in out
    assert f"at the pace of {folder}" in out
    assert files(run_root) == before
    assert "it must be true or false" in typed(training.main, *words, "dry_run=perhaps")[2]


def test_the_pace_is_that_of_the_same_agent_and_preset(run_root: Path) -> None:
    settings = load([*tiny(run_root), "agent=uniform"])
    assert planned.pace(settings) == (0.0, None)
    for agent, seconds in (("mbpo", 320), ("uniform", 32)):
        folder = run_root / "toy/reach" / agent / "1"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"agent: {agent}\npreset: smoke\ndevice: cpu\n")
        (folder / "eval.csv").write_text(f"{HEADER}160,1,1,1,{seconds}\n")
    assert planned.pace(settings) == (0.2, folder)
    (folder / "config.yaml").write_text("agent: uniform\npreset: smoke\ndevice: auto\n")
    (folder / "git.json").write_text('{"starts": [{"machine": {"gpu": "NVIDIA H100"}}]}')
    assert planned.pace(settings) == (0.0, None)  # a GPU's pace says nothing of a CPU
    (folder / "git.json").write_text('{"starts": [{"machine": {"gpu": null}}]}')
    assert planned.pace(settings) == (0.2, folder)
    (folder / "eval.csv").write_text(HEADER)
    assert planned.pace(settings) == (0.0, None)
    assert [planned.duration(s) for s in (90, 5400, 200_000)] == ["2 min", "1.5 h", "2.3 days"]


def test_a_sweep_and_a_search(run_root: Path, typed: Command) -> None:
    words = tiny(run_root, "agent=drqv2,uniform", "seed=1-2", "num_train_frames=80", "jobs=2")
    code, out, _ = typed(sweep.main, *words, "dry_run=true")
    assert code == 0
    assert out.startswith("4 runs, 0 finished, 2 at a time: 320 frames")
    assert f"  {run_root}/toy/reach/uniform/2: 80 frames" in out
    out = typed(sweep.main, *words, "search=drqv2.lr=log(1e-5,1e-3)", "trials=3", "dry_run=true")[1]
    assert out.startswith("up to 3 trials of 4 runs")
    assert not run_root.exists()


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (data.main, ["task_names=[reach]", "episodes_per_task=2", "out={new}"], "2 of 2 episodes to make"),
        (pretrain.main, ["data={data}", "out={new}", *SHORT], "6 updates of the tokenizer"),
        (pretrain.main, ["data={data}", "out={new}", "kind=onestep", "device=cpu"], "into {new}"),
        (
            study.main,
            ["data={data}", "out={new}", "study=scaling", *SHORT],
            "transformers tiny, mini, small learn for 4 updates",
        ),
        (
            predict.main,
            ["data={data}", "model=world_model/pretrained/small", "part=all", "horizon=2"],
            "predicts 2 frames",
        ),
        (plan.main, ["task=reach", "goal=expert", "name={name}"], "episodes, into runs/plans/reach-{name}"),
    ],
)
def test_other_commands(tmp_path: Path, typed: Command, main, words: list[str], said: str) -> None:
    actions, rewards = np.zeros((8, 4), np.float32), np.zeros(8, np.float32)
    frames = np.random.default_rng(0).integers(0, 256, (9, 3, 64, 64), np.uint8)
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data", "noise", [Episode(frames, actions, rewards)] * 20, "noise")
    names = {"data": tmp_path / "data", "new": tmp_path / "new", "name": tmp_path.name}
    before = files(tmp_path)
    code, out, error = typed(main, *(word.format(**names) for word in words), "dry_run=true")
    assert (code, error) == (0, "")
    assert said.format(**names) in out
    assert files(tmp_path) == before
    assert not Path("runs/plans", f"reach-{tmp_path.name}").exists()
