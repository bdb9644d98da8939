"""DreamerV3 beside the official code: what the driver hands over and makes of it, with a stand-in for the peer."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import Command, stand_in, tiny, train

from agents import DreamerV3Config
from benchmarks import dreamerv3, dreamerv3_curves
from mbrl.experiment.logger import EVAL

RUN = (
    *("agent=dreamerv3", "dreamerv3.batch_size=2", "dreamerv3.batch_length=8", "dreamerv3.train_ratio=4"),
    *("demonstrations=0", "num_eval_episodes=3"),
)
# Plays every episode that it is told of as well as can be; an update takes a second.
FAKE = """
import csv, os, sys
sys.path.insert(0, os.getcwd())
import envs
from benchmarks.workers.lines import answer, use_cores
from envs.toy import optimal_action

def play(env, seed):
    env.reset(seed=seed)
    earned, over = 0.0, False
    while not over:
        _, reward, _, over, _ = env.step(optimal_action(env))
        earned += reward
    return earned

def handle(request):
    if request["do"] == "make":
        assert request["spec"]["config"]["agent.opt.lr"] == 1e-4
        return {"threads": use_cores(request["spec"]["threads"])}
    if request["do"] == "time":
        return {"seconds": 1.0}
    spec = request["spec"]
    env = envs.make(spec["task"], **spec["environment"])
    rows = {"train.csv": [(20 * (i + 1), play(env, seed), 1, i, 0) for i, seed in enumerate(spec["episode_seeds"])]}
    rows["eval.csv"] = [
        (frame, sum(play(env, seed) for seed in seeds) / len(seeds), 1, len(seeds), 0)
        for frame, seeds in spec["evaluation_seeds"].items()
    ]
    for name, columns in spec["tables"].items():
        with open(os.path.join(spec["folder"], name), "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows[name]])
    return {"updates": 7}

answer(handle)
"""


@pytest.fixture
def peer(tmp_path: Path) -> tuple[str, ...]:
    """A checkout, and the python of its environment, neither of them real; the overrides that name them."""
    checkout = tmp_path / "official"
    (checkout / "dreamerv3").mkdir(parents=True)
    (checkout / "dreamerv3/rssm.py").touch()
    python = stand_in(tmp_path, FAKE, {"python": "3.11", "jax": "0.4.33"})
    return f"peer={checkout}", f"peer_python={python}"


def overrides(root: Path) -> list[str]:
    return tiny(root, *RUN)


def test_every_setting_has_an_official_name():
    ours = {field.name for field in dataclasses.fields(DreamerV3Config)} - {"size", "precision"}
    assert {*dreamerv3.KEYS, *dreamerv3.SAME} == ours
    assert len({*dreamerv3.KEYS.values()}) == len(dreamerv3.KEYS)


def test_both_play_the_same_episodes(typed: Command, tmp_path: Path, peer: tuple[str, ...]):
    """The stand-in reaches the best return of our own episodes, in training and in evaluation."""
    root = tmp_path / "runs"
    ours = train(root, *RUN)
    code, out, error = typed(dreamerv3.main, "measure=learn", *peer, *overrides(root))
    assert (code, error) == (0, "")
    assert "7 updates" in out
    official = root / "toy/reach/dreamerv3-official/1"
    frames = [[row["frame"] for row in csv.DictReader((f / EVAL).read_text().splitlines())] for f in (ours, official)]
    assert frames[0] == frames[1] == ["80", "160"]
    best = dreamerv3_curves.read(official)
    assert dreamerv3_curves.score(best.evaluated) == pytest.approx(1)
    assert dreamerv3_curves.score(best.trained) == pytest.approx(1)
    assert (best.trained[:, 1] < best.trained[:, 2]).all()
    assert (dreamerv3_curves.score(dreamerv3_curves.read(ours).trained) < 1).all(), "nobody does better than the best"
    code, out, error = typed(dreamerv3_curves.main, str(root / "toy/reach"), str(tmp_path / "curves.png"))
    assert (code, error) == (0, "")
    assert "| 80 | 1.00 | 1.00 | " in out
    assert out.count("| below |") == 2
    assert "best return at the last evaluation, official: 1.00\n" in out
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    code, _, error = typed(dreamerv3.main, "measure=learn", *peer, *overrides(root))
    assert code == 2
    assert "holds a run already" in error


def test_three_seeds_hold_three():
    scores = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 10.0], [0.0, 11.0], [0.0, 12.0]])
    # At the first evaluation all are equal. At the second {1, 2, 12} hold the mean of the others, {1, 2, 3} do not.
    held = dreamerv3_curves.held_by_threes(scores, scores)
    assert (len(held), min(held), max(held)) == (20, 1, 2)
    low, high = np.array([[0.0], [1.0], [2.0]]), np.array([[0.5], [1.5], [3.0], [9.0]])
    # Three of `high` have the means 1.67, 3.67, 4.17 and 4.5: one lies within 0 and 2.
    assert sorted(dreamerv3_curves.held_by_threes(low, high)) == [0, 0, 0, 1]


def test_permutations_tell_two_methods_apart():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 4, 3))
    assert dreamerv3_curves.permutation_p(one, other) > 0.1
    other[:, 1] += 10
    # Of the 70 ways to deal 8 seeds, only the true one and its mirror part them.
    assert dreamerv3_curves.permutation_p(one, other) == pytest.approx(2 / 70)


def test_speed_is_measured_in_turn(typed: Command, tmp_path: Path, peer: tuple[str, ...]):
    told = (*overrides(tmp_path), "dreamerv3.lr=1e-4", f"out={tmp_path}", "repeats=2", "calls=1")
    code, out, error = typed(dreamerv3.main, *peer, *told)
    assert (code, error) == (0, "")
    saved = json.loads((tmp_path / "dreamerv3/smoke-2x8-1/speed.json").read_text())
    assert saved["official"]["median"] == 1.0
    assert saved["ours"]["repeats"] == saved["official"]["repeats"] == 2
    assert 0 < saved["ours"]["median"] < 1
    assert saved["machine"]["threads"] == 1
    assert "theirs / ours" in out


def test_what_is_wrong_is_one_line(typed: Command, tmp_path: Path, peer: tuple[str, ...]):
    code, _, error = typed(dreamerv3.main, "peer=nowhere", "peer_python=python", *overrides(tmp_path))
    assert (code, "is no checkout of danijar/dreamerv3" in error) == (2, True)
    code, _, error = typed(dreamerv3.main, *peer, "measure=learn", *overrides(tmp_path), "eval_every_frames=81")
    assert (code, "eval_every_frames=81 must be a multiple of action_repeat=2" in error) == (2, True)
    code, _, error = typed(dreamerv3_curves.main, str(tmp_path), "curves.png")
    assert (code, "holds no runs" in error) == (2, True)
