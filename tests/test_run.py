"""The run folder: new, continued, finished, refused; logs that a restart continues without a seam."""

import csv
import ctypes
import dataclasses
import errno
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs
from mbrl.experiment.command import command
from mbrl.experiment.logger import NonFinite, cut
from mbrl.experiment.run import Run, RunFinished, run_folder, stored_settings, stream_seed
from mbrl.experiment.settings import Settings, UserError, load
from mbrl.experiment.video import encode_gif

RESULT_FILES = ("metrics.jsonl", "train.csv", "eval.csv")


@pytest.fixture
def settings(run_root: Path) -> Settings:
    return load(["preset=smoke", "device=cpu", "seed=3", f"run_root={run_root}"])


def train(settings: Settings, stop: int, *, finished: bool = False) -> None:
    """A loop in small: it logs what depends on the frame alone, and saves every 200 frames."""
    with Run.open(settings) as run:
        for frame in range(run.start_frame + 2, stop + 1, 2):
            run.record("agent", {"critic_loss": torch.tensor(float(frame)), "updates": frame / 2})
            if frame % 200 == 0:
                run.log_episode(frame, frame // 200, episode_return=frame / 7, success=1.0)
            if frame % 500 == 0:
                run.log_eval(frame, episode_return=frame / 3, success_rate=0.5, episodes=2)
            run.step(frame)
            if frame % 200 == 0:
                run.save(frame, {"counters.json": {"frame": frame}}, finished=finished and frame == stop)


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{name: value for name, value in row.items() if name != "wall_time_s"} for row in csv.DictReader(file)]


def read_lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "wall_time_s"} for line in lines]


def test_a_new_run_explains_itself(settings: Settings, run_root: Path) -> None:
    train(settings, 400)
    folder = run_root / "coffee-push" / "mbpo" / "3"
    assert run_folder(settings) == folder
    for name in ("config.yaml", "git.json", *RESULT_FILES, "tb", "videos", "checkpoints", "replay"):
        assert (folder / name).exists(), name
    assert stored_settings(settings) == settings
    start = json.loads((folder / "git.json").read_text())["starts"][0]
    assert start["versions"]["torch"] == torch.__version__
    assert {"commit", "dirty", "python", "machine", "command"} <= start.keys()
    with open(folder / "eval.csv") as file:
        assert file.readline().startswith("frame,episode_return,success_rate,episodes,wall_time_s")


def test_variant_and_suite_stand_in_the_folders_name(settings: Settings) -> None:
    other = dataclasses.replace(settings, variant="guided", task="dm_control/walker-walk")
    assert run_folder(other).parts[-4:] == ("dm_control", "walker-walk", "mbpo-guided", "3")


def test_metrics_are_means_since_the_last_log(settings: Settings) -> None:
    train(settings, 400)
    lines = {line["frame"]: line for line in read_lines(run_folder(settings)) if "agent/critic_loss" in line}
    assert sorted(lines) == [100, 200, 300, 400]
    assert lines[100]["agent/critic_loss"] == np.mean(range(2, 101, 2))
    assert lines[300]["agent/critic_loss"] == np.mean(range(202, 301, 2))
    assert lines[300]["agent/updates"] == np.mean(range(101, 151))


def test_a_continued_run_logs_what_an_uninterrupted_one_does(settings: Settings, tmp_path: Path) -> None:
    whole = dataclasses.replace(settings, run_root=str(tmp_path / "whole"))
    train(whole, 1000)
    train(settings, 750)  # saved last at 600
    folder = run_folder(settings)
    assert any(line["frame"] == 700 for line in read_lines(folder))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"frame": 7')  # killed in the middle of a line
    train(settings, 1000)
    assert read_lines(folder) == read_lines(run_folder(whole))
    for name in ("train.csv", "eval.csv"):
        assert read_rows(folder / name) == read_rows(run_folder(whole) / name)
    starts = json.loads((folder / "git.json").read_text())["starts"]
    assert [start["frame"] for start in starts] == [0, 600]


def test_a_run_without_a_checkpoint_begins_again(settings: Settings) -> None:
    train(settings, 150)
    train(settings, 100)
    assert [line["frame"] for line in read_lines(run_folder(settings))] == [100]


def test_wall_time_counts_on_over_a_restart(settings: Settings) -> None:
    train(settings, 200)
    state = run_folder(settings) / "checkpoints" / "000000200" / "run.json"
    assert json.loads(state.read_text())["wall_time_s"] > 0
    with Run.open(settings) as run:
        run.logger._started -= 1000.0
        run.save(400, {})
    with Run.open(settings) as run:
        assert 1000.0 < run.logger.wall_time_s < 1100.0


@pytest.mark.parametrize("length", [None, 3], ids=["whole", "half-written"])
def test_cut(tmp_path: Path, length: int | None) -> None:
    path = tmp_path / "eval.csv"
    path.write_text("frame,episode_return\n100,1.5\n200,2.5\n300,3.5\n"[: length and -length])
    cut(path, 200)
    assert path.read_text() == "frame,episode_return\n100,1.5\n200,2.5\n"
    cut(path, 150)
    assert path.read_text() == "frame,episode_return\n100,1.5\n"
    cut(path, None)
    assert path.read_text() == "frame,episode_return\n"


def test_cut_drops_a_half_written_header_and_broken_lines(tmp_path: Path) -> None:
    header = tmp_path / "train.csv"
    header.write_text("frame,epis")
    cut(header, 100)
    assert header.read_text() == ""
    lines = tmp_path / "metrics.jsonl"
    lines.write_text('{"frame": 1}\n{"fra\x00\n{"frame": 2}\n{"frame": 3}')
    cut(lines, 100)
    assert lines.read_text() == '{"frame": 1}\n{"frame": 2}\n'


def test_a_finished_run_says_so(settings: Settings) -> None:
    train(settings, 1000, finished=True)
    folder = run_folder(settings)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    with pytest.raises(RunFinished, match=r"is finished: 1000 frames, success rate 0\.5 and return 333"):
        Run.open(settings)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    assert before == after


def test_another_config_is_refused_with_its_keys(settings: Settings) -> None:
    train(settings, 200)
    drqv2 = dataclasses.replace(settings.drqv2, lr=5e-4)
    other = dataclasses.replace(settings, nstep=5, drqv2=drqv2, num_train_frames=800)
    with pytest.raises(UserError, match="another config") as caught:
        Run.open(other)
    line = str(caught.value)
    assert "nstep was 3, is 5" in line
    assert "drqv2.lr was 0.0001, is 0.0005" in line
    assert "num_train_frames was 1000, is 800" in line
    assert "batch_size" not in line
    # The refusal lets go of the lock, and what only changes the looks is free to change.
    with Run.open(dataclasses.replace(settings, video=False, log_every_frames=50, threads=1)) as run:
        assert run.start_frame == 200


def test_stored_settings_are_those_of_the_start(settings: Settings) -> None:
    with pytest.raises(UserError, match="there is no run in"):
        stored_settings(settings)
    train(dataclasses.replace(settings, nstep=5), 200)
    assert stored_settings(settings).nstep == 5
    assert stored_settings(dataclasses.replace(settings, video=False)).video is False


def test_a_damaged_config_is_named_where_no_checkpoint_has_a_copy(settings: Settings) -> None:
    with Run.open(settings) as run:
        run.log_episode(20, 0, episode_return=1.0, success=0.0)
    (run_folder(settings) / "config.yaml").write_text("task: [")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        Run.open(settings)


@pytest.mark.parametrize("text", ["", '{"id": "a"', "[]", "{}"])
def test_a_damaged_record_of_the_starts_stops_nothing(settings: Settings, text: str) -> None:
    train(settings, 200)
    record = run_folder(settings) / "git.json"
    record.write_text(text)
    train(settings, 400)
    assert [start["frame"] for start in json.loads(record.read_text())["starts"]] == [200]


def test_a_run_does_not_change_its_device(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings, 200)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="another config .device was cpu, is cuda"):
        Run.open(load(["preset=smoke", "seed=3", f"run_root={settings.run_root}"]))


def test_two_processes_cannot_share_a_folder(settings: Settings) -> None:
    code = f"import fcntl, sys; fcntl.flock(open({str(run_folder(settings) / '.lock')!r}, 'w'), 6)"
    with Run.open(settings):
        with pytest.raises(UserError, match="another process is training in"):
            Run.open(settings)
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode != 0
    with Run.open(settings):
        pass


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run(settings: Settings, value: float, tensor: bool) -> None:
    with Run.open(settings) as run:
        run.record("agent", {"critic_loss": torch.tensor(1.0)})
        run.save(200, {"counters.json": {}})
        run.record("world_model", {"ce_loss": torch.tensor(value) if tensor else value})
        run.record("world_model", {"ce_loss": torch.tensor(1.0)})  # one good value must not hide a bad one
        with pytest.raises(NonFinite, match=r"world_model/ce_loss became (nan|inf|-inf) at frame 210"):
            run.save(210, {"counters.json": {}})
    assert [path.name for path in (run_folder(settings) / "checkpoints").iterdir()] == ["000000200"]


def test_metrics_file_is_strict_json(settings: Settings) -> None:
    with Run.open(settings) as run:
        run.log(2, {"imagined/psnr": math.inf, "imagined/mse": 0.0})
    assert read_lines(run_folder(settings)) == [{"frame": 2, "imagined/psnr": None, "imagined/mse": 0.0}]


def test_tensorboard_shows_each_frame_once_and_a_gif(settings: Settings) -> None:
    gif = encode_gif(np.zeros((2, 3, 8, 8), np.uint8))
    train(settings, 350)
    train(settings, 400)  # continues from 200
    with Run.open(settings) as run:
        run.log_video("imagined/dream", 400, gif)
    events = EventAccumulator(str(run_folder(settings) / "tb"), purge_orphaned_data=True).Reload()
    assert [event.step for event in events.Scalars("agent/critic_loss")] == [100, 200, 300, 400]
    [image] = events.Images("imagined/dream")
    assert (image.encoded_image_string, image.width, image.height) == (gif, 8, 8)
    assert (run_folder(settings) / "videos" / "imagined-dream-000000400.gif").read_bytes() == gif


def test_video_can_be_left_out(settings: Settings) -> None:
    with Run.open(dataclasses.replace(settings, video=False)) as run:
        run.log_video("imagined/dream", 2, b"")
    assert not list((run_folder(settings) / "videos").iterdir())


def test_wandb_missing_is_one_line(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        Run.open(dataclasses.replace(settings, wandb=True))
    with Run.open(settings):  # the failed start let go of the folder
        pass


def test_streams_of_random_numbers_are_apart() -> None:
    seeds = {stream_seed(seed, name, index) for seed in (1, 2) for name in ("a", "b") for index in range(50)}
    assert len(seeds) == 200
    assert stream_seed(1, "episode", 7) == stream_seed(1, "episode", 7)


def fails(error: BaseException) -> Callable[[list[str]], None]:
    def main(overrides: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    "error",
    [
        UserError("what"),
        envs.UnknownTask("what"),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EDQUOT, "quota"),
        OSError(errno.EROFS, "Read-only file system", "runs/x/.lock"),
        OSError("a server that does not answer"),
        MemoryError("Unable to allocate 7.28 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ],
    ids=repr,
)
def test_command_prints_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command(fails(error))
    assert caught.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    if error.args[0] == errno.EROFS:
        assert output == "error: runs/x/.lock cannot be used: Read-only file system\n"


def test_command_lets_bugs_through_and_is_content_with_a_finished_run() -> None:
    with pytest.raises(ZeroDivisionError):
        command(fails(ZeroDivisionError()))
    command(fails(RunFinished("done")))
    with pytest.raises(SystemExit) as caught:
        command(fails(KeyboardInterrupt()))
    assert caught.value.code == 130


MEMORY = """
import resource, torch
from mbrl.experiment.command import keep_memory
keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # until the heap has found a place for it
    torch.ones(25_000_000)
before = faults()
for _ in range(10):
    torch.ones(25_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone can be told so")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * 24_414  # pages of one such tensor; without keep_memory it is ten of them
