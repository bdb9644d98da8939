"""Training as a user starts it, with `python -m mbrl.train`, `resume` and `evaluate`: what a run leaves behind."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import Command, Shell, checkpoints, different, tiny, train, weights

from agents import DrQv2
from mbrl import evaluate, resume
from world_model import IVideoGPT

# -- what a run leaves -------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_folder_is_complete(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    files = {"config.yaml", "git.json", "metrics.jsonl", "eval.csv", "train.csv"}
    assert names >= files | {"tb", "videos", "checkpoints", "replay"}
    assert checkpoints(finished) == [120, 160]
    assert len(list((finished / "replay").glob("*.npz"))) == 2 + 8  # demonstrations and training
    assert list((finished / "tb").iterdir())
    for name in ("eval-episodes", "imagined-dream"):
        for frame in (80, 160):
            assert Image.open(finished / "videos" / f"{name}-{frame:09d}.gif").n_frames > 1
    assert not list(finished.glob("**/*.pkl"))
    assert not list(finished.glob("**/*.tmp"))


def test_what_a_run_logs(finished: Path) -> None:
    with open(finished / "eval.csv") as file:
        assert file.readline().startswith("frame,episode_return,success_rate,episodes,wall_time_s")
    rows = read_rows(finished / "eval.csv")
    assert [(row["frame"], row["episodes"]) for row in rows] == [("80", "1"), ("160", "1")]
    assert all(0 <= float(row["success_rate"]) <= 1 and float(row["episode_return"]) > 0 for row in rows)
    episodes = read_rows(finished / "train.csv")
    assert [int(row["frame"]) for row in episodes] == list(range(20, 161, 20))
    tags: dict[str, list[int]] = {}
    for line in map(json.loads, (finished / "metrics.jsonl").read_text().splitlines()):
        for tag in line:
            tags.setdefault(tag, []).append(line["frame"])
    for tag in ("eval/success_rate", "world_model/dream_mse", "world_model/reward_mae", "world_model/token_accuracy"):
        assert tags[tag] == [80, 160], tag
    assert tags["train/episode_return"] == list(range(20, 161, 20))
    assert tags["agent/critic_loss"] == list(range(60, 161, 20))
    # The first training of the world model is logged where it happened, at the end of the seed frames.
    for tag in ("world_model/transformer_loss", "world_model/tokenizer_loss", "imagined/reward_mean"):
        assert tags[tag][0] == 40, tag


def test_the_world_model_is_left_in_the_official_layout(finished: Path) -> None:
    model = IVideoGPT.from_pretrained(finished / "world_model", action_dim=2, context_length=2)
    saved = weights(finished)
    for name, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), saved[f"world_model/{name}"]), name


def test_a_finished_run_says_so(shell: Shell, finished: Path) -> None:
    root = finished.parents[3]
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    again = shell("train", *tiny(root, "video=true"))
    assert again.returncode == 0
    assert "is finished: 160 frames, success rate" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}


@pytest.mark.parametrize("agent", ["drqv2", "uniform"])
def test_other_agents_train_without_a_world_model(run_root: Path, agent: str) -> None:
    folder = train(run_root, f"agent={agent}", "video=true")
    assert folder == run_root / "toy" / "reach" / agent / "1"
    assert [row["frame"] for row in read_rows(folder / "eval.csv")] == ["80", "160"]
    assert {path.name[:13] for path in (folder / "videos").iterdir()} == {"eval-episodes"}
    newest = {path.name for path in (folder / "checkpoints" / "000000160").iterdir()}
    assert not any("world_model" in name or "imagined" in name for name in newest)
    logged = (folder / "metrics.jsonl").read_text()
    assert ("agent/critic_loss" in logged) == (agent == "drqv2")
    assert "imagined" not in logged


def test_a_run_may_end_within_an_episode(run_root: Path) -> None:
    """The budget is in frames; that the last checkpoint falls into an episode harms nobody."""
    folder = train(run_root, "agent=drqv2", "num_train_frames=90")
    assert checkpoints(folder) == [80, 90]
    assert read_rows(folder / "eval.csv")[-1]["frame"] == "90"


def test_without_a_guide_no_demonstrations_are_needed(run_root: Path) -> None:
    folder = train(run_root, "agent=drqv2", "num_train_frames=80", "demonstrations=0", "drqv2.guide_schedule=0")
    assert len(list((folder / "replay").glob("*.npz"))) == 4


# -- evaluate and resume -----------------------------------------------------------------------------------------------


def test_evaluate_plays_the_newest_checkpoint_and_changes_nothing(shell: Shell, finished: Path) -> None:
    root = finished.parents[3]
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    asked = ("task=toy/reach", "device=cpu", f"run_root={root}", "num_eval_episodes=2")
    done = shell("evaluate", *asked)
    assert done.returncode == 0, done.stderr
    assert f"{finished} at frame 160: success rate" in done.stdout
    assert "over 2 episodes" in done.stdout
    assert "2/2" in done.stderr, "a bar over the episodes"
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    [video] = after.keys() - before.keys()
    assert Image.open(video).n_frames > 1
    assert before.items() <= after.items()


def test_evaluate_is_the_same_every_time(typed: Command, finished: Path) -> None:
    words = ("task=toy/reach", f"run_root={finished.parents[3]}")
    first, second = typed(evaluate.evaluate, *words), typed(evaluate.evaluate, *words)
    assert first == second
    assert first[0] == 0


def test_evaluate_needs_the_weights_alone(typed: Command, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest, generators above all, fits only the device that the run was trained on."""

    def refuse(*_: object) -> None:
        raise AssertionError("the training state was loaded")

    monkeypatch.setattr(DrQv2, "load_state", refuse)
    assert typed(evaluate.evaluate, "task=toy/reach", "device=cpu", f"run_root={finished.parents[3]}")[0] == 0


@pytest.mark.parametrize("main", [evaluate.evaluate, resume.main])
def test_there_is_no_such_run(typed: Command, run_root: Path, main: Callable[[list[str]], None]) -> None:
    code, _, line = typed(main, "task=toy/reach", f"run_root={run_root}", "seed=8")
    assert code == 2
    assert "there is no run in" in line
    assert not run_root.exists()


def test_resume_continues_with_the_config_of_the_start(
    shell: Shell, typed: Command, stopped: tuple[Path, list[str]], finished: Path
) -> None:
    """None of the words of the start is typed again, and the end is that of a run in one go."""
    folder, _ = stopped
    words = ("task=toy/reach", f"run_root={folder.parents[3]}")
    done = shell("resume", *words)
    assert done.returncode == 0, done.stderr
    starts = json.loads((folder / "git.json").read_text())["starts"]
    assert [start["frame"] for start in starts] == [0, 80]
    assert different(folder, finished) == []
    assert not list((folder / "videos").iterdir()), "video=false was chosen at the start"
    code, out, _ = typed(resume.main, *words)
    assert (code, "is finished" in out) == (0, True)


def test_resume_refuses_what_would_be_another_run(typed: Command, cut_off: Path) -> None:
    root = cut_off.parents[3]
    code, _, line = typed(resume.main, "task=toy/reach", f"run_root={root}", "nstep=5", "drqv2.lr=1e-3")
    assert code == 2
    assert "nstep was 3, is 5" in line
    assert "drqv2.lr was 0.0001, is 0.001" in line
