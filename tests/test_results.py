"""Learning curves from disk: what is refused, what is damaged, and other people's files in and out."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import HEAD, compared, overrides, run, settings, two_tasks
from tiny import Command

from mbrl.compare import foreign
from mbrl.compare.compare import main, read
from mbrl.compare.results import Curve


@pytest.fixture
def runs(run_root: Path) -> Path:
    return two_tasks(run_root)


# -- what does not belong together -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "changed", "said"),
    [
        ("mbpo", {"protocol": "plain"}, "protocol is bonus_demos in the first and plain in the second"),
        ("mbpo", {"action_repeat": 4}, "action_repeat is 2 in the first and 4"),
        ("mbpo", {"metaworld": "3.0.0"}, "metaworld is 3.1.1 in the first and 3.0.0"),
        ("mbpo", {"success_bonus": 0.0}, "success_bonus is 10.0 in the first and 0.0"),
        ("mbpo", {"demonstrations": 0}, "demonstrations is 5 in the first and 0"),
        ("drqv2", {"preset": "paper"}, "preset small and paper"),
    ],
)
def test_what_differs_is_refused(
    typed: Command, run_root: Path, agent: str, changed: dict[str, Any], said: str
) -> None:
    run(run_root, "hammer", "drqv2", 1, [0.5])
    run(run_root, "hammer", agent, 2, [0.5], **changed)
    code, _, error = typed(main, *overrides(run_root))
    assert code == 2
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (run_root / "reports").exists()


def test_tasks_have_their_own_demonstrations(run_root: Path) -> None:
    run(run_root, "hammer", "mbpo", 1, [0.5])
    run(run_root, "door-lock", "mbpo", 1, [0.5], demonstrations=0)
    assert compared(run_root)[0].tasks == ("door-lock", "hammer")


def test_a_restart_on_another_version_is_refused(typed: Command, run_root: Path) -> None:
    run(run_root, "hammer", "mbpo", 1, [0.5])
    record = run(run_root, "hammer", "drqv2", 1, [0.5]) / "git.json"
    starts = json.loads(record.read_text())["starts"]
    starts.append(starts[0] | {"versions": {"metaworld": "3.2.0", "mujoco": "3.3.0"}})
    record.write_text(json.dumps({"starts": starts}))
    assert "3.1.1 then 3.2.0" in typed(main, *overrides(run_root))[2]
    record.write_text("{")
    assert "metaworld is unknown" in typed(main, *overrides(run_root))[2]


def test_one_run_in_two_places_is_refused(typed: Command, tmp_path: Path) -> None:
    for root in ("a", "b"):
        run(tmp_path / root, "hammer", "mbpo", 1, [0.5])
    assert "are both seed 1 of mbpo on hammer" in typed(main, *overrides(tmp_path))[2]


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no evaluation yet"),
        (HEAD + "\n", "holds no evaluation yet"),
        ("frame,success\n1,1\n", "does not begin with the columns frame,episode_return"),
        (f"{HEAD}\n1000,1,0.5,20,1\n2000,1\n3000,1,0.5,20,3\n", "line 3 is damaged: 2 values in place of 5"),
        (f"{HEAD}\n1000,1,nan,20,1\n", "line 2: success_rate is nan, which is no finite number"),
        (f"{HEAD}\n1000,inf,1,20,1\n", "line 2: episode_return is inf"),
        (f"{HEAD}\n1000,,1,20,1\n", "line 2: episode_return is empty"),
        (f"{HEAD}\n2000,1,1,20,1\n1000,1,1,20,1\n", "its frames do not rise"),
    ],
)
def test_a_damaged_run_is_named(typed: Command, run_root: Path, text: str, said: str) -> None:
    folder = run(run_root, "hammer", "mbpo", 1, [0.5])
    (folder / "eval.csv").write_text(text)
    code, _, error = typed(main, *overrides(folder))
    assert code == 2
    assert said in error
    assert str(folder) in error
    assert len(error.splitlines()) == 1


def test_mistakes_get_one_line(typed: Command, runs: Path) -> None:
    for override, said in (
        ("runs=[nowhere]", "nowhere: there is no run and no file of results"),
        ("runs=[nowhere/*]", "nowhere/*: there is no run"),
        (f"runs=[{runs}/hammer/mbpo/1/config.yaml]", "is no file of results known here"),
        ("task_names=[hamer]", "unknown task 'hamer'; did you mean 'hammer'?"),
        ("task_names=[door-lock]", "no run of door-lock in"),
        ("name=../x", "it names a folder"),
        ("frames=9000", "no run has come far enough"),
        ("reps=1", "reps=1 is out of range"),
        ("expert=dreamerv3", "did you mean 'export'?"),
    ):
        code, _, error = typed(main, *overrides(runs), override)
        assert code == 2, override
        assert said in error
        assert len(error.splitlines()) == 1


def test_a_run_without_evaluations_is_left_out_of_a_search(runs: Path) -> None:
    (runs / "hammer" / "mbpo" / "5" / "eval.csv").write_text(HEAD + "\n")
    comparison, notes = compared(runs)
    assert len(comparison.cells["hammer", "mbpo"].curves) == 4
    assert any("holds no evaluation yet: left out" in note for note in notes)


def test_a_last_line_that_was_cut_off_is_left_out(runs: Path) -> None:
    path = runs / "hammer" / "mbpo" / "1" / "eval.csv"
    path.write_text(path.read_text()[:-4])  # what a kill leaves: the line reads well but is not the whole one
    comparison, notes = compared(runs)
    assert any(note == f"{path}: its last line is cut off and was left out" for note in notes)
    assert any("hammer is compared at 2,000 frames" in note for note in notes)
    assert comparison.cells["hammer", "mbpo"].frames.tolist() == [1000, 2000]


# -- other people's results --------------------------------------------------------------------------------------------


def published(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / "published" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


FILES = {
    "dreamerv3": (
        "dmc_vision-dreamerv3.json.gz",
        json.dumps(
            [
                {"task": "dmc_walker_walk", "method": "dreamerv3", "seed": 0, "xs": [1000, 2000], "ys": [100.0, 900.0]},
                {"task": "atari_pong", "method": "dreamerv3", "seed": 0, "xs": [1000], "ys": [21.0]},
            ]
        ),
        "dreamerv3 (DreamerV3's dmc_vision)",
    ),
    "log": (
        "20260101T000000-dmc_walker_walk-dreamer-0/scores.jsonl",
        '{"step": 1000, "episode/score": 100.0}\n{"step": 2000, "episode/score": 900.0}\n{"step": 30',
        "dreamer (DreamerV3's file)",
    ),
    "tdmpc2": ("tdmpc2/walker-walk.csv", "step,reward,seed\n1000,100.0,0\n2000,900.0,0\n", "tdmpc2 (TD-MPC2's file)"),
    "drqv2": (
        "dmc_walker_walk.csv",
        ",agent,task,seed,frame,episode_reward,hour\n0,DrQ-v2,walker_walk,0,1000,100.0,0.5\n"
        "1,DrQ-v2,walker_walk,0,2000,900.0,1.0\n",
        "DrQ-v2 (DrQ-v2's file)",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_published_files_are_read(kind: str, tmp_path: Path) -> None:
    name, text, method = FILES[kind]
    notes: list[str] = []
    curves = foreign.read_file(published(tmp_path, name, text), frozenset(), notes.append)
    assert curves is not None
    [curve] = curves
    assert (curve.task, curve.method, curve.seed, curve.ours) == ("dm_control/walker-walk", method, "0", False)
    assert curve.frames.tolist() == [1000, 2000]
    assert curve.scores.tolist() == [0.1, 0.9]
    assert (curve.minutes is not None) == (kind == "drqv2")
    assert curve.minutes is None or curve.minutes.tolist() == [30, 60]
    assert bool(notes) == (kind in ("dreamerv3", "log"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("scores.json.gz", '[{"task": "dmc_walker_walk"', "a whole file of DreamerV3 scores"),
        ("scores.json.gz", '[{"task": "dmc_walker_walk", "method": "x"}]', "a whole file of DreamerV3 scores"),
        ("tdmpc2/mw-hammer.csv", "step,success,seed\n0,0.0,1\n1000,0.\n2000,\n", "line 4 is damaged"),
        ("tdmpc2/mw-hammer.csv", "step,success,seed\n0,nan,1\n", "success is nan, which is no finite number"),
        ("tdmpc2/mw-hammer.csv", "step,success,seed\n0,0.0,1\n0,0.5,1\n", "has two scores at one frame"),
        ("tdmpc2/mw-hammer.csv", "step,success,seed\n0,20,1\n", "reach from 20 to 20, not 0 to 1"),
    ],
)
def test_damaged_published_files_are_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = published(tmp_path, name, text)
    with pytest.raises(ValueError, match=said) as caught:
        foreign.read_file(path, frozenset(), lambda _: None)
    assert str(path) in str(caught.value)


def test_a_score_for_every_episode_is_averaged_in_bins(tmp_path: Path) -> None:
    xs = list(range(10, 10_001, 10))
    record = {"task": "metaworld_hammer", "method": "x", "seed": 0, "xs": xs, "ys": [x / 10_000 for x in xs]}
    curves = foreign.read_file(published(tmp_path, "x.json.gz", json.dumps([record])), frozenset(), lambda _: None)
    assert curves is not None
    assert curves[0].frames.tolist() == list(np.arange(1, 51) * 200)
    assert curves[0].scores[0] == pytest.approx(np.mean(np.arange(10, 201, 10)) / 10_000)


def test_others_stand_beside_ours_and_are_weighed_apart(typed: Command, runs: Path, tmp_path: Path) -> None:
    lines = [f"{step},{0.9},{seed}" for seed in (1, 2, 3) for step in (0, 1000, 3000, 5000)]
    for task in ("mw-hammer", "mw-coffee-push", "mw-door-lock"):
        published(tmp_path, f"tdmpc2/{task}.csv", "\n".join(["step,success,seed", *lines]) + "\n")
    path = tmp_path / "published"
    comparison, _ = compared(runs, runs=(str(runs), str(path)))
    assert comparison.tasks == ("coffee-push", "hammer")  # what ours were run on
    assert comparison.methods == ("drqv2", "mbpo", "tdmpc2 (TD-MPC2's file)")
    assert comparison.ranked[0] == "tdmpc2 (TD-MPC2's file)"
    assert [pair[:2] for pair in comparison.improvements()] == [("mbpo", "drqv2")]
    assert comparison.ends["hammer"] == 3000  # of ours
    code, out, error = typed(main, *overrides(runs), f"runs=[{runs},{path}]")
    assert (code, error) == (0, "")
    assert "mbpo wins" in out
    page = (runs / "reports" / "latest" / "index.html").read_text()
    assert "action repeat 2; success at the last step; unit of `step` not stated" in page


def test_our_export_reads_back(runs: Path, tmp_path: Path) -> None:
    asked = settings(runs)
    ours = read(asked, lambda _: None)
    foreign.write_dreamerv3(ours, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*/scores.jsonl"))
    assert len(files) == len(ours)
    # DreamerV3's plot.py: `_, task, method, seed = folder.split("-")`
    assert {len(path.parent.name.split("-")) for path in files} == {4}

    def content(curves: Sequence[Curve]) -> list[tuple]:
        keys = [(curve.task, curve.method.split(" (")[0], curve.seed) for curve in curves]
        return sorted((*key, c.frames.tolist(), c.scores.tolist()) for key, c in zip(keys, curves, strict=True))

    for source in (files, [tmp_path / "out" / "scores.json.gz"]):
        back = [curve for path in source for curve in foreign.read_file(path, frozenset(), print) or []]
        assert content(back) == content(ours)
