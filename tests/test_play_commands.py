"""Demonstrations from a folder; which run is played; films; evaluations that are verified."""

import importlib.machinery
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import types
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from playing import make_conduct, say, settings_of
from tiny import Command, checkpoints, tiny

from mbrl import train, verify
from mbrl.compare.stats import wilson
from mbrl.experiment import demonstrations
from mbrl.experiment.episodes import EpisodeStore
from mbrl.experiment.settings import UserError
from mbrl.interop import load
from mbrl.play import play
from mbrl.publish import publish
from world_model import IVideoGPT

# -- demonstrations ----------------------------------------------------------------------------------------------------


def drive_and_keep(folder: Path) -> Path:
    """A successful episode kept from the page's side; returns the folder it is in."""
    conduct = make_conduct(folder, pilot="expert", runs=True)
    while not any(moment.success for moment in conduct.drive.tree.path(conduct.drive.here)):
        conduct.advance()
    say(conduct, "keep")
    assert "train with demonstrations=" in conduct.status.note
    assert "never touches success" not in conduct.status.note
    return folder


def test_a_driven_demonstration_trains_a_run(tmp_path: Path, run_root: Path, typed: Command):
    folder = drive_and_keep(tmp_path / "kept")
    drive_and_keep(folder)
    [first, second] = EpisodeStore(folder).load([0, 1])
    assert first.successes.any()
    code, _, line = typed(train.main, *tiny(run_root, f"demonstrations={folder}", "num_train_frames=80"))
    assert (code, line) == (0, "")
    run = run_root / "toy/reach/mbpo/1"
    replayed = list(EpisodeStore(run / "replay").load(range(2)))
    for kept, again in zip((first, second), replayed, strict=True):
        assert np.array_equal(kept.frames, again.frames)
        assert np.array_equal(kept.actions, again.actions)
    # It continues with those it began with, whatever becomes of the folder.
    (folder / "000001.npz").unlink()
    code, _, line = typed(train.main, *tiny(run_root, f"demonstrations={folder}", "num_train_frames=120"))
    assert (code, line) == (0, "")
    assert checkpoints(run)[-1] == 120


def test_demonstrations_that_do_not_fit(tmp_path: Path, run_root: Path, typed: Command):
    folder = drive_and_keep(tmp_path / "kept")
    empty = tmp_path / "empty"
    empty.mkdir()
    for overrides, said in (
        ([f"demonstrations={tmp_path / 'nothing'}"], "nothing: there is no such folder; make play keeps"),
        ([f"demonstrations={empty}"], "empty: there is no episode in it"),
        ([f"demonstrations={folder}", "task=toy/centre"], "it was driven with task=toy/reach, not toy/centre"),
        ([f"demonstrations={folder}", "action_repeat=1"], "it was driven with action_repeat=2, not 1"),
        (["demonstrations=-1"], "demonstrations=-1 is out of range"),
        (["demonstrations=2.5"], "demonstrations=2.5"),
    ):
        code, _, line = typed(train.main, *tiny(run_root, *overrides))
        assert code == 2
        assert said in line
    with pytest.raises(UserError, match="cannot take it: it was driven with task=toy/reach, not toy/centre"):
        demonstrations.keep(folder, next(EpisodeStore(folder).load([0])), settings_of("task=toy/centre"))
    about = folder / demonstrations.ABOUT
    for harm in (
        lambda: about.write_text("[]"),
        lambda: about.write_text("[" * 100_000),
        lambda: os.mkfifo(about),
        lambda: about.symlink_to(about),
        lambda: about.symlink_to("/dev/zero"),
    ):
        about.unlink()
        harm()
        code, _, line = typed(train.main, *tiny(run_root, f"demonstrations={folder}"))
        assert code == 2
        assert f"{about} cannot be read; remove it" in line


# -- the commands ------------------------------------------------------------------------------------------------------


def test_which_run_is_meant(finished: Path, tmp_path: Path, typed: Command):
    for overrides, said in (
        (
            ["task=toy/reach", "watch=true", f"run_root={tmp_path}"],
            "no run of toy/reach has weights here: make train TASK=toy/reach",
        ),
        (["task=toy/reach", "watch=true", f"run_root={finished.parents[3]}"], f"one of yours: add run={finished}"),
        ([f"run={tmp_path}"], "has no checkpoints: it is no run folder"),
        ([f"run={finished}", "task=hammer"], "learned task=toy/reach, not hammer"),
        ([f"run={finished}", "batch_size=3"], "batch_size is the run's own beside run="),
        ([f"run={finished}", "model=nowhere/at/all"], "model=nowhere/at/all: there is no such folder"),
        (["task=toy/reach", "model=world_model/pretrained/small"], "knows actions of 4 numbers, toy/reach has 2"),
        (["task=toy/reach", "port=70000"], "port=70000 is out of range"),
        ([f"run={finished}", "host=a..b", "port=0"], "cannot listen at host=a..b"),
    ):
        code, _, line = typed(play.main, *overrides)
        assert code == 2
        assert said in line


def test_without_a_task_any_published_policy_is_watched(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "PUBLISHED", finished.parents[3])
    _, settings, trained = play.read(["watch=true"])
    assert trained is not None
    assert trained.policy.folder == finished
    assert settings.task == "toy/reach"
    assert play.read([])[2] is None  # who drives has a task in mind
    with pytest.raises(UserError, match="no run of hammer has weights here"):
        play.read(["watch=true", "task=hammer"])


def test_a_film_of_the_policy(finished: Path, tmp_path: Path, typed: Command):
    path = tmp_path / "films/dream.gif"
    code, out, line = typed(play.main, f"run={finished}", f"gif={path}")
    assert (code, line) == (0, "")
    assert path.read_bytes()[:6] == b"GIF89a"
    assert "10 decisions" in out


def test_a_page_is_opened_and_closed(project_root: Path, tmp_path: Path):
    line = [sys.executable, "-m", "mbrl.play", *tiny(tmp_path), "port=0"]
    with subprocess.Popen(line, cwd=project_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        assert process.stdout.readline() == "Ctrl-C ends it\n"
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_an_evaluation_is_verified(finished: Path, tmp_path: Path, typed: Command):
    code, out, line = typed(verify.main, f"run={finished}", "device=cpu")
    assert (code, line) == (0, "")
    assert out.startswith(f"the same: {finished} at frame 160, 1 episodes: success rate")
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "checkpoints"):
        (copy / name).symlink_to(finished / name)
    rows = (finished / "eval.csv").read_text().splitlines()
    frame, *rest = rows[-1].split(",")
    (copy / "eval.csv").write_text("\n".join([rows[0], ",".join([frame, rest[0], "0.5", *rest[2:]]), ""]))
    code, _, line = typed(verify.main, f"run={copy}", "device=cpu")
    assert code == 2
    assert "not the same" in line
    (copy / "eval.csv").write_text(rows[0] + "\n")
    code, _, line = typed(verify.main, f"run={copy}", "device=cpu")
    assert code == 2
    assert "holds no evaluation yet" in line
    assert typed(verify.main)[2].startswith("error: run=none: name the folder")
    published = "runs/published/hammer/drqv2/1"
    assert "has no checkpoints: it is no run folder" in typed(verify.main, f"run={published}")[2]


def test_a_published_run_is_watched_and_verified_and_names_no_machine(
    finished: Path, tmp_path: Path, typed: Command, monkeypatch: pytest.MonkeyPatch
):
    words = (f"run={finished}", f"out={tmp_path}")
    code, out, line = typed(publish.main, *words)
    assert (code, line) == (0, "")
    kept = tmp_path.joinpath(*finished.parts[-4:])
    files = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    assert {"README.md", "config.yaml", "eval.csv", "git.json", "checkpoints/000000160/agent.safetensors"} <= files
    assert not any("replay" in name or "critic" in name or "metrics" in name for name in files)
    for name in ("config.yaml", "git.json"):
        assert str(finished.parents[2]) not in (kept / name).read_text()
        assert platform.platform() not in (kept / name).read_text()
    agent = load(kept).agent.weights()
    for name, value in load(finished).agent.weights().items():
        source = name.replace("critic_target.", "critic.") if name.startswith("critic_target.") else name
        assert torch.equal(agent[name], value if source == name else load(finished).agent.weights()[source])
    whole, rounded = load(finished).world_model.state_dict(), load(kept).world_model.state_dict()
    assert all(torch.equal(rounded[name], w.bfloat16().float()) for name, w in whole.items() if w.is_floating_point())
    assert typed(verify.main, f"run={kept}", "device=cpu")[1].startswith(f"the same: {kept} at frame 160")
    assert "is there already" in typed(publish.main, *words)[2]
    shutil.rmtree(kept)
    assert typed(publish.main, *words, "weights=false")[0] == 0
    assert {path.name for path in kept.iterdir()} == {"config.yaml", "eval.csv", "git.json"}
    assert typed(publish.main)[2].startswith("error: run=none: name the folder")
    assert "has no eval.csv" in typed(publish.main, f"run={tmp_path}")[2]


def test_what_acts_in_evaluation_keeps_all_digits(run_root: Path, tmp_path: Path, typed: Command) -> None:
    typed(train.main, *tiny(run_root, "agent=drqv2", "drqv2.actor_average=0.9", "num_train_frames=80"))
    run, kept = run_root / "toy/reach/drqv2/1", tmp_path / "toy/reach/drqv2/1"
    assert typed(publish.main, f"run={run}", f"out={tmp_path}")[0] == 0
    before, after = load(run).agent.weights(), load(kept).agent.weights()
    for name, value in after.items():
        if name.startswith("average."):
            assert torch.equal(value, before[name])
        elif not name.startswith("critic_target."):
            assert torch.equal(value, before[name].bfloat16().float())
    assert typed(verify.main, f"run={kept}", "device=cpu")[1].startswith("the same: ")


def test_a_run_is_pushed_to_the_hub_and_loaded_by_its_name(
    finished: Path, tmp_path: Path, typed: Command, monkeypatch: pytest.MonkeyPatch
):
    """A stand-in for the hub, of folders: `<repository>/<revision>`."""

    class HfApi:
        def create_repo(self, repository: str, exist_ok: bool) -> None:
            assert exist_ok
            (tmp_path / "hub" / repository).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, repo_id: str, folder_path: str, delete_patterns: str) -> types.SimpleNamespace:
            repository = tmp_path / "hub" / repo_id
            revision = f"0a{len([*repository.iterdir()])}"
            shutil.copytree(folder_path, repository / revision)
            return types.SimpleNamespace(oid=revision)

    def snapshot_download(repository: str, revision: str) -> str:
        if not (tmp_path / "hub" / repository / revision).is_dir():
            raise RuntimeError("404 Client Error.\n\nRevision Not Found")
        return str(tmp_path / "hub" / repository / revision)

    hub = types.ModuleType("huggingface_hub")
    hub.__spec__ = importlib.machinery.ModuleSpec("huggingface_hub", None)
    hub.HfApi, hub.snapshot_download = HfApi, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)

    words = (f"run={finished}", f"out={tmp_path}", "to=owner/reach")
    code, out, line = typed(publish.main, *words)
    assert (code, line) == (0, "")
    assert out.splitlines()[-1] == "pushed: owner/reach@0a0"
    obs = np.random.default_rng(0).integers(0, 256, (9, 32, 32), dtype=np.uint8)
    assert np.array_equal(load("owner/reach@0a0").act(obs), load(finished).act(obs))
    assert IVideoGPT.from_pretrained("owner/reach@0a0", action_dim=2).state_dict().keys()
    page = (tmp_path / "hub/owner/reach/0a0/README.md").read_text()
    rows = (finished / "eval.csv").read_text().splitlines()[1:]
    assert [f"| {row.split(',')[0]} |" in page for row in rows] == [True] * len(rows)
    assert 'load("owner/reach")' in page
    assert str(finished.parents[2]) not in page
    low, high = wilson(round(float(rows[-1].split(",")[2])), 1)
    assert f"95 % interval {low:.0%} to {high:.0%}" in page

    for name, said in (
        ("owner/reach@0b", "the hub refused: 404 Client Error. Revision Not Found"),
        ("x", "no such folder"),
    ):
        code, _, line = typed(verify.main, f"run={name}")
        assert code == 2
        assert said in line
    shutil.rmtree(tmp_path.joinpath(*finished.parts[-4:]))
    assert "no name of a hub's repository" in typed(publish.main, *words[:2], "to=reach")[2]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install huggingface_hub" in typed(verify.main, "run=owner/reach@0a0")[2]
