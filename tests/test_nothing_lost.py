"""What a run has saved survives: lost or damaged parts of its folder, kills, signals. Each ends in one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_episodes import assert_equal, episode
from test_reproducibility import last_start, train_until_killed
from tiny import Command, different, tiny, train
from tqdm import tqdm

from mbrl import evaluate, resume
from mbrl import train as train_module
from mbrl.experiment import checkpoints as checkpoints_module
from mbrl.experiment.command import command
from mbrl.experiment.episodes import EpisodeStore
from mbrl.experiment.run import Run, stored_settings
from mbrl.experiment.settings import UserError, load
from mbrl.world.training import WorldTraining


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def timeless(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "time" not in key} for line in lines]


def edit_state(folder: Path, change: Callable[[dict], object]) -> None:
    """As an older version wrote it: change run.json of every checkpoint, and its manifest with it."""
    for path in folder.glob("checkpoints/*"):
        state = json.loads((path / "run.json").read_text())
        change(state)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest.pop("manifest.json", None)
        manifest["run.json"] = checkpoints_module._write(path / "run.json", state)
        (path / "manifest.json").write_text(json.dumps(manifest))


# -- checkpoints that are gone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a file"])
@pytest.mark.parametrize("record", ["kept", "of an older version"])
def test_lost_checkpoints_are_no_start(typed: Command, stopped: tuple[Path, list[str]], left: str, record: str) -> None:
    folder, overrides = stopped
    shutil.rmtree(folder / "checkpoints")
    if left == "an empty folder":
        (folder / "checkpoints").mkdir()
    elif left == "a file":
        (folder / "checkpoints").write_text("")
    if record != "kept":
        started = json.loads((folder / "git.json").read_text())
        started.pop("saved", None)
        (folder / "git.json").write_text(json.dumps(started))
    before = contents(folder)
    for verb in (train_module.main, resume.main):
        code, _, line = typed(verb, *overrides)
        assert code == 2
        assert f"{folder / 'checkpoints'} " in line
        assert "put" in line
        if left != "a file":
            assert "remove the run folder or set variant=<name>" in line
        assert "\n" not in line
    assert contents(folder) == before


def test_the_first_checkpoint_is_remembered_from_the_moment_it_is_saved(run_root: Path) -> None:
    settings = load(tiny(run_root))
    with Run.open(settings) as run:
        run.save(20, {})
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(UserError, match="has lost the checkpoints"):
        Run.open(settings)


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_the_first_checkpoint() -> None:
    """Dies with two episodes played, when their checkpoint is asked for."""
    checkpoints_module.save = lambda *_: kill_me()


def test_killed_before_the_first_checkpoint_it_begins_again(finished: Path, run_root: Path) -> None:
    """The episodes played are played again, bit for bit."""
    assert train_until_killed(run_root, before_the_first_checkpoint) == 40
    [folder] = (path.parent for path in run_root.glob("**/.lock"))
    assert len((folder / "train.csv").read_text().splitlines()) == 1 + 2
    played = contents(folder / "replay")
    train(run_root)
    assert last_start(folder) == 0
    assert {path: content for path, content in contents(folder / "replay").items() if path in played} == played
    assert different(folder, finished) == []
    assert timeless(folder) == timeless(finished)


# -- config.yaml -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "garbage", "other value"])
def test_config_yaml_comes_back_from_the_checkpoint(
    typed: Command, stopped: tuple[Path, list[str]], finished: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder, overrides = stopped
    path = folder / "config.yaml"
    text = path.read_text()
    if damage == "missing":
        path.unlink()
    else:
        garbage = b"task: [\xff${"
        other = text.replace("nstep: 3", "nstep: 5").encode()
        path.write_bytes(
            {"empty": b"", "half": text[: len(text) // 2].encode(), "other value": other}.get(damage, garbage)
        )
    assert stored_settings(load(overrides)) == load(overrides)
    code, _, line = typed(train_module.main, *overrides, "nstep=5")
    assert (code, "nstep was 3, is 5" in line) == (2, True)
    assert path.read_text() == text
    path.unlink()
    assert typed(evaluate.evaluate, *overrides, "num_eval_episodes=1")[0] == 0
    assert not path.exists(), "evaluation changes nothing"
    train(folder.parents[3])
    assert f"{path} was missing, and is again what the newest checkpoint was saved with" in capsys.readouterr().err
    assert path.read_text() == text
    assert different(folder, finished) == []


def test_an_older_checkpoint_without_a_copy_does_not_go_on_under_another_config(
    typed: Command, stopped: tuple[Path, list[str]]
) -> None:
    folder, overrides = stopped
    edit_state(folder, lambda state: state.pop("config", None))
    (folder / "config.yaml").unlink()
    before = contents(folder)
    code, _, line = typed(train_module.main, *overrides, "nstep=5")
    assert code == 2
    assert "config.yaml is missing, and no checkpoint has a copy: put it back" in line
    assert contents(folder) == before


def test_any_changed_byte_of_config_yaml_is_put_right_or_refused(stopped: tuple[Path, list[str]]) -> None:
    """Whatever the byte, no key that makes the method is another one afterwards."""
    folder, overrides = stopped
    path, asked, generator = folder / "config.yaml", load(overrides), np.random.default_rng(0)
    original = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(original)
        damaged[generator.integers(len(original))] ^= generator.integers(1, 256)
        path.write_bytes(damaged)
        stored = stored_settings(asked)
        assert (stored.drqv2, stored.world_model, stored.nstep) == (asked.drqv2, asked.world_model, asked.nstep)


# -- episodes ----------------------------------------------------------------------------------------------------------


def test_any_changed_byte_of_an_episode_is_seen(tmp_path: Path) -> None:
    store, generator, skipped = EpisodeStore(tmp_path), np.random.default_rng(0), 0
    store.save(0, episode(0))
    original = store.path(0).read_bytes()
    # Half of them among the headers at both ends, which no checksum of the zip format covers.
    ends = np.r_[0:200, len(original) - 600 : len(original)]
    for turn in range(300):
        damaged = bytearray(original)
        at = generator.choice(ends) if turn % 2 else generator.integers(len(original))
        damaged[at] ^= generator.integers(1, 256)
        store.path(0).write_bytes(damaged)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            loaded = list(store.load([0]))
        assert len(loaded) + len(warned) == 1
        for one in loaded:
            assert_equal(one, episode(0))
        skipped += len(warned)
    assert 200 < skipped < 300  # dates and attributes of the files are no part of an episode


@pytest.mark.parametrize(
    ("signature", "offset", "value"),
    [
        (b"PK\x01\x02", 10, 99),  # a method of compression that does not exist
        (b"PK\x01\x02", 8, 1),  # encrypted
        (b"PK\x01\x02", 32, 255),  # a comment that swallows the file behind it
    ],
    ids=["method", "encrypted", "comment"],
)
def test_headers_of_a_damaged_episode(tmp_path: Path, signature: bytes, offset: int, value: int) -> None:
    store = EpisodeStore(tmp_path)
    store.save(0, episode(0))
    damaged = bytearray(store.path(0).read_bytes())
    last = [at for at in range(len(damaged)) if damaged[at : at + 4] == signature][-2]
    damaged[last + offset] = value
    store.path(0).write_bytes(damaged)
    with pytest.warns(UserWarning, match="skipping damaged episode"):
        assert list(store.load([0])) == []


# -- manifests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", ["a folder", "empty", "one less", "one less and its file", "one more", "part a folder"]
)
def test_a_manifest_names_what_was_saved(
    typed: Command, stopped: tuple[Path, list[str]], finished: Path, damage: str
) -> None:
    folder, overrides = stopped
    newest = folder / "checkpoints" / "000000080"
    manifest, agent = newest / "manifest.json", newest / "agent.safetensors"
    entries = json.loads(manifest.read_text())
    agent.write_bytes(agent.read_bytes()[:-1] + b"\xff")
    if damage == "a folder":
        manifest.unlink()
        manifest.mkdir()
    elif damage == "empty":
        manifest.write_text("{}")
    elif damage == "one more":
        entries["agent.pu"] = entries.pop("agent.safetensors")
        manifest.write_text(json.dumps(entries))
    elif damage == "part a folder":
        agent.unlink()
        agent.mkdir()
    else:
        del entries["agent.safetensors"]
        manifest.write_text(json.dumps(entries))
        if "file" in damage:
            agent.unlink()
    with pytest.warns(UserWarning, match=r"000000080 is damaged .*going back to 000000040"):
        code, _, line = typed(train_module.main, *overrides)
    assert (code, line) == (0, "")
    assert different(folder, finished) == []


def test_a_manifest_that_names_nothing_takes_no_good_ones_place(tmp_path: Path) -> None:
    for frame in (100, 200):
        checkpoints_module.save(tmp_path, frame, {"a.json": frame})
    (tmp_path / "000000200" / "manifest.json").write_text("{}")
    checkpoints_module.save(tmp_path, 300, {"a.json": 300})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000100", "000000300"]


def test_a_manifest_of_an_older_version_is_good(tmp_path: Path) -> None:
    checkpoints_module.save(tmp_path, 100, {"a.json": 1})
    path = tmp_path / "000000100" / "manifest.json"
    entries = json.loads(path.read_text())
    entries.pop("manifest.json", None)
    path.write_text(json.dumps(entries))
    (tmp_path / "000000100" / ".DS_Store").write_text("a file manager's")
    assert checkpoints_module.latest(tmp_path) is not None


# -- logs --------------------------------------------------------------------------------------------------------------


def in_the_first_training() -> None:
    """Dies in the second update of the world model's first training, behind the first line of its log."""
    learn, calls = WorldTraining.learn, [0]

    def counted(self: WorldTraining, frame: int | None) -> None:
        calls[0] += 1
        if calls[0] == 2:
            kill_me()
        learn(self, frame)

    WorldTraining.learn = counted


@pytest.mark.parametrize("seed_frames", [20, 40], ids=["before the first checkpoint", "behind it"])
def test_killed_in_the_first_training_of_the_world_model(tmp_path: Path, seed_frames: int) -> None:
    """What it logged is of the checkpoint's own frame, and is logged again: each line is there once."""
    overrides = (f"num_seed_frames={seed_frames}", "initial_model_updates=3", "num_train_frames=80")
    assert train_until_killed(tmp_path / "killed", in_the_first_training, *overrides) == seed_frames
    folder = train(tmp_path / "killed", *overrides)
    assert last_start(folder) == (0 if seed_frames == 20 else 40)
    whole = train(tmp_path / "whole", *overrides)
    assert timeless(folder) == timeless(whole)
    assert different(folder, whole) == []


# -- signals and lines -------------------------------------------------------------------------------------------------


def heed_signals() -> None:
    """A shell's background job, which these tests may be, is born with some signals ignored, and hands that on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(project_root: Path, *line: str) -> subprocess.Popen[str]:
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, *line], cwd=project_root, preexec_fn=heed_signals, **pipes)  # type: ignore


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_a_run_with_one_line(project_root: Path, run_root: Path, number: signal.Signals) -> None:
    process = start(project_root, "-m", "mbrl.train", *tiny(run_root, "num_train_frames=100000"))
    deadline = time.monotonic() + 120
    while not list(run_root.glob("toy/reach/mbpo/1/checkpoints/0*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.fullmatch(r"stopped; the same command continues from frame \d+", err.splitlines()[-1])
    assert "Traceback" not in err


@pytest.mark.parametrize("module", ["mbrl.experiment.interrupts", "torch._C"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_while_imports_run(project_root: Path, number: signal.Signals, module: str) -> None:
    """`python -X importtime` tells how far they are; behind either module most of torch is still to come."""
    process = start(project_root, "-X", "importtime", "-m", "mbrl.train", "task=toy/reech")
    assert process.stderr is not None
    for line in process.stderr:
        if line.endswith(f" {module}\n"):
            break
    time.sleep(0.05)
    process.send_signal(number)
    err = "".join(line for line in process.stderr if not line.startswith("import time:"))
    assert process.wait(timeout=60) == 130
    assert err == "stopped before it began\n"


IGNORED = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from mbrl.experiment.interrupts import in_command
in_command()
print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


def test_nohup_is_respected(project_root: Path) -> None:
    assert start(project_root, "-c", IGNORED).communicate()[0] == "True False\n"


def test_a_library_leaves_signals_alone(project_root: Path) -> None:
    code = "import signal, mbrl.train; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    assert start(project_root, "-c", code).communicate()[0] == "True\n"


def test_an_error_line_is_a_short_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    bars = []

    def main(overrides: list[str]) -> None:
        for name in ("outer", "inner"):
            bars.append(tqdm(range(3), desc=name, leave=name == "outer", mininterval=0))
            bars[-1].update()
            bars[-1].refresh()
        raise UserError("what is wrong\n" + "x" * 1000 + " and what to do")

    with pytest.raises(SystemExit) as caught:
        command(main)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    [line] = [line for line in err.replace("\r", "\n").splitlines() if "error: " in line]
    assert err.endswith(f"\n{line}\n")
    assert line.startswith("error: what is wrong x")
    assert line.endswith("x and what to do")
    assert len(line) <= 400
