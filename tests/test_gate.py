"""Dreams are learned from only while those of new episodes foretell their rewards."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import checkpoints, copy_of, different, tiny, train

from mbrl.train import main
from mbrl.world.gate import CLIPS, EPISODES, Gate
from world_model import Episode
from world_model.api import Dream


class Promises:
    """A world model that promises `factor` times the first action's entry, whatever it sees."""

    context_length, device = 2, torch.device("cpu")

    def __init__(self, factor: float) -> None:
        self.factor = factor


@pytest.fixture
def promised(monkeypatch: pytest.MonkeyPatch) -> None:
    def imagine(world, context, actions, horizon, **options) -> Dream:
        assert (options["temperature"], len(context)) == (0.0, CLIPS)
        frames = context[:, -1:].expand(-1, horizon, -1, -1, -1)
        return Dream(frames, actions, {"reward": world.factor * actions[..., 0]}, None)

    monkeypatch.setattr("mbrl.world.gate.imagine", imagine)


def episode(seed: int, decisions: int = 20) -> Episode:
    """Its rewards are its actions."""
    draws = np.random.default_rng(seed)
    actions = draws.uniform(-1, 1, (decisions, 1)).astype(np.float32)
    frames = draws.integers(0, 256, (decisions + 1, 3, 8, 8), dtype=np.uint8)
    return Episode(frames, actions, actions[:, 0], False)


def test_it_opens_when_rewards_are_foretold_and_shuts_when_no_more(promised: None) -> None:
    gate = Gate(0.7)
    assert not gate.open
    gate.judge(Promises(3.0), episode(0), 5, seed=0)
    assert gate.open
    assert gate.correlation == pytest.approx(1.0)
    for seed in range(EPISODES):
        gate.judge(Promises(-1.0), episode(seed), 5, seed)
    assert not gate.open
    assert gate.correlation == pytest.approx(-1.0)  # the first episode counts no more


def test_rewards_that_tell_nothing_leave_it_shut(promised: None) -> None:
    """Constant ones have no correlation; an episode too short for a clip is not judged."""
    gate = Gate(0.1)
    gate.judge(Promises(0.0), episode(0), 5, seed=0)
    gate.judge(Promises(1.0), episode(0, decisions=3), 5, seed=0)
    assert not gate.open
    assert Gate(0.0).open


def logged(folder: Path, tag: str) -> set[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line[tag] for line in lines if tag in line}


def test_behind_a_shut_gate_nothing_is_dreamt(run_root: Path) -> None:
    shut = train(run_root, "dream_gate=1")
    assert logged(shut, "imagined/batch_share") == {0.0}
    assert logged(shut, "imagined/reward_mean") == set()


def test_with_the_simulator_itself_it_opens_and_a_run_that_continues_is_the_same(run_root: Path) -> None:
    keys = ("world_model.kind=simulator", "dream_gate=0.9", "real_ratio=0.5")
    whole = train(run_root / "whole", *keys)
    shares = logged(whole, "imagined/batch_share")
    assert 0.0 in shares
    assert max(shares) > 0
    assert max(logged(whole, "imagined/gate_correlation")) > 0.99
    copy, _ = copy_of(whole, run_root / "copy")
    frames = checkpoints(copy)
    shutil.rmtree(copy / "checkpoints" / f"{frames[-1]:09d}")
    main(tiny(run_root / "copy", *keys))
    assert checkpoints(copy)[-1] == frames[-1]
    assert different(whole, copy) == []
