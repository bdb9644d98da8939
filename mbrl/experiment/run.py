"""A run: its folder, its seeds, its logs and its checkpoints.

    run = Run.open(settings)             # new, or continued from its last checkpoint
    if run.checkpoint: agent.load_state(run.checkpoint.load("agent.pt"))
    ...
    run.record("agent", agent.update(batch))     # averaged on the device
    run.step(frame)                              # progress bar; logs every log_every_frames
    run.save(frame, {"agent.pt": agent.state(), ...})

    runs/<task>/<agent>[-<variant>]/<seed>/
        config.yaml      every key of the run
        git.json         commit, versions and machine, of the start and of each restart; whether a checkpoint was saved
        metrics.jsonl    every logged value, one JSON object a line
        train.csv        one row an episode
        eval.csv         frame,episode_return,success_rate,episodes,wall_time_s
        tb/  videos/  checkpoints/  replay/

What a frame logs must be logged before `save(frame)`: a restart keeps the logs as they were then.
"""

import fcntl
import json
import math
import os
import shutil
import sys
import uuid
import zlib
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch import Tensor

from mbrl.experiment import checkpoints
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.checkpoints import Checkpoint
from mbrl.experiment.identity import FREE_KEYS, differences, with_defaults
from mbrl.experiment.logger import EVAL, EVAL_COLUMNS, TRAIN, Logger, last_frame
from mbrl.experiment.provenance import provenance
from mbrl.experiment.settings import Settings, UserError, build, flatten, pick_device, to_dict
from mbrl.experiment.stored_config import (
    CHECKPOINTS,
    CONFIG,
    START_OVER,
    STATE,
    read_config,
    restore_config,
    stored_config,
    write_config,
    write_text,
)
from world_model.files import READ_ERRORS, read_json, reading, regular

PROVENANCE = "git.json"
LOCK = ".lock"
LOG = "sweep.log"  # what a run that a sweep started printed
SMOKE = "smoke"
KEEP_BOTH = "set variant=<name> to keep both, or remove the folder"


class RunFinished(Exception):
    """There is nothing left to do: this run reached its last frame. The message says so and how it ended."""


class Run:
    """An open run folder, locked against a second process. Made by `Run.open`."""

    def __init__(self, settings: Settings, folder: Path, lock: TextIO, checkpoint: Checkpoint | None) -> None:
        self.settings = settings
        self.folder = folder
        self.device = pick_device(settings.device)
        self.checkpoint = checkpoint  # where to continue from, or None at the very beginning
        self.start_frame = checkpoint.frame if checkpoint else 0
        self._lock = lock
        self._last_flush = self.start_frame
        state = _state(checkpoint) if checkpoint else {}
        self.logger = Logger(
            folder,
            checkpoint.frame if checkpoint else None,
            state.get("wall_time_s", 0.0),
            sizes=state.get("log_sizes"),
        )
        self._config = read_config(folder / CONFIG)
        self.progress = progress_bar(
            total=settings.num_train_frames,
            initial=self.start_frame,
            unit="frame",
        )
        self._shown: dict[str, str] = {}

    @classmethod
    def open(cls, settings: Settings) -> "Run":
        """Create the run's folder, or continue the run that is in it; it may grow to more `num_train_frames`.

        Raises RunFinished if it is complete, UserError if the folder holds a run of another method (see
        `mbrl/experiment/identity.py`) or has lost its checkpoints, or if another process trains in it.
        """
        folder = run_folder(settings)
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        try:
            if _holds(folder, smoke=True) and settings.preset != SMOKE:
                _move_smoke_run(folder, _smoke_folder(settings))
            checkpoint = checkpoints.latest(folder / CHECKPOINTS)
            restore_config(folder)
            _check_nothing_lost(folder, checkpoint)
            begun = _has_begun(folder)
            longer = begun and _check_same_run(folder, _stored(folder), settings, KEEP_BOTH)
            # A last checkpoint within an episode has left that episode out: a longer run begins it again.
            if checkpoint and _state(checkpoint)["finished"] and checkpoint.frame >= settings.num_train_frames:
                raise RunFinished(_finished_line(folder, checkpoint))
            (folder / "replay").mkdir(exist_ok=True)
            (folder / "videos").mkdir(exist_ok=True)
            identity = _add_start(folder, settings.task, checkpoint)
            if longer or not begun:
                write_config(folder, to_dict(settings))
            run = cls(settings, folder, lock, checkpoint)
        except BaseException:
            lock.close()
            raise
        if settings.wandb:
            name = "/".join(folder.parts[-3:])
            run.logger.attach_wandb(name, identity, to_dict(settings))
        return run

    def record(self, prefix: str, metrics: Mapping[str, Tensor | float]) -> None:
        """Scalars of one update, tagged `<prefix>/<name>`; logged as means every `log_every_frames`."""
        self.logger.record(prefix, metrics)

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Account the body's seconds to `time/<name>`."""
        return self.logger.timed(name)

    def step(self, frame: int) -> None:
        """Tell the bar where training is; writes the recorded means when they are due.

        Raises NonFinite if one of them is NaN or infinite.
        """
        self.progress.update(frame - self.progress.n)
        if frame // self.settings.log_every_frames > self._last_flush // self.settings.log_every_frames:
            self.flush(frame)

    def flush(self, frame: int) -> None:
        """Write the recorded means now. Raises NonFinite if one of them is NaN or infinite."""
        self.logger.flush(frame)
        self._last_flush = frame

    def log(self, frame: int, values: Mapping[str, float]) -> None:
        """Write numbers under their full tags at once, such as `imagined/reward_mean`."""
        self.logger.scalars(frame, values)

    def log_episode(self, frame: int, episode: int, episode_return: float, success: float) -> None:
        """One finished training episode, the `episode`-th of the run."""
        self.logger.episode(frame, episode, episode_return, success)
        self._show(train_return=f"{episode_return:.1f}")

    def log_eval(self, frame: int, episode_return: float, success_rate: float, episodes: int) -> None:
        """Mean return and share of successes over the evaluation episodes."""
        self.logger.evaluation(frame, episode_return, success_rate, episodes)
        self._show(success=f"{success_rate:.2f}", eval_return=f"{episode_return:.1f}")

    def log_video(self, tag: str, frame: int, gif: bytes) -> None:
        """Keep a GIF (see `mbrl.experiment.video`) unless `video=false`."""
        if self.settings.video:
            self.logger.video(tag, frame, gif)

    def save(self, frame: int, parts: Mapping[str, Any], *, finished: bool = False) -> None:
        """Write a checkpoint (see `mbrl.experiment.checkpoints`). Raises NonFinite rather than save a broken run."""
        self.flush(frame)
        sizes = self.logger.sync()
        state = {
            "finished": finished,
            "wall_time_s": self.logger.wall_time_s,
            "log_sizes": sizes,
            "config": self._config,
        }
        first = self.checkpoint is None
        self.checkpoint = checkpoints.save(self.folder / CHECKPOINTS, frame, dict(parts) | {STATE: state})
        if first:
            _write_provenance(self.folder, _read_provenance(self.folder) | {"saved": True})

    def close(self) -> None:
        """Close the logs and let another process have the folder. Safe to call twice."""
        self.progress.close()
        self.logger.close()
        self._lock.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _show(self, **values: str) -> None:
        self._shown |= values
        self.progress.set_postfix(self._shown, refresh=False)


def run_folder(settings: Settings) -> Path:
    """runs/<task>/<agent>[-<variant>]/<seed>; of a smoke run <agent>[-<variant>]-smoke where a real run is in that."""
    folder = _folder(settings, settings.variant)
    return _smoke_folder(settings) if settings.preset == SMOKE and _holds(folder, smoke=False) else folder


def _folder(settings: Settings, variant: str) -> Path:
    agent = f"{settings.agent}-{variant}" if variant else settings.agent
    return Path(settings.run_root) / settings.task / agent / str(settings.seed)


def _smoke_folder(settings: Settings) -> Path:
    return _folder(settings, f"{settings.variant}-{SMOKE}" if settings.variant else SMOKE)


def _holds(folder: Path, smoke: bool) -> bool:
    """Whether a run of `preset=smoke`, or one of another preset, has begun here."""
    return _has_begun(folder) and ((stored_config(folder) or {}).get("preset") == SMOKE) == smoke


def _move_smoke_run(folder: Path, aside: Path) -> None:
    """Make room for a real run in `folder`, which stays locked: its smoke run replaces the one in `aside`."""
    print(f"{folder} held a smoke run, which is now in {aside}", file=sys.stderr)
    aside.mkdir(parents=True, exist_ok=True)
    with lock_folder(aside):
        shutil.rmtree(aside)
        aside.mkdir()
        for path in folder.iterdir():
            if path.name not in (LOCK, LOG):  # both are open
                os.replace(path, aside / path.name)


def saved_frame(settings: Settings) -> int:
    """The frame that the run of these settings would continue from, from the names of its checkpoints alone."""
    names = [path.name for path in (run_folder(settings) / CHECKPOINTS).glob("[0-9]*") if path.name.isdecimal()]
    return int(max(names, default="0"))


def is_finished(settings: Settings) -> bool:
    """Whether the run of these settings is complete. A run of another method is not this one; its device is no matter.

    A quick look, for many runs: `Run.open` is the one that verifies.
    """
    folder = run_folder(settings)
    newest = max((folder / CHECKPOINTS).glob("[0-9]*"), default=None)
    try:
        finished = newest is not None and bool(read_json(newest / STATE)["finished"])
        return finished and not _check_same_run(
            folder, _stored(folder), settings, KEEP_BOTH, free=FREE_KEYS | {"device"}
        )
    except READ_ERRORS:  # UserError is a ValueError
        return False


def stored_settings(asked: Settings, typed: Collection[str] = FREE_KEYS, free: frozenset[str] = FREE_KEYS) -> Settings:
    """The settings that the run in `asked`'s folder was started with; `typed` keys that are `free`, as asked.

    Raises UserError if there is no run, if a typed key that is not free differs from the run's, or if this version
    of the code does not have the run's task, agent, preset or protocol.
    """
    folder = run_folder(asked)
    if stored_config(folder) is None:
        raise UserError(f"there is no run in {folder}; start one with make train")
    before = _stored(folder)
    untyped = set(flatten(before)) - set(typed)
    longer = _check_same_run(folder, before, asked, "leave these keys out", free=free | untyped)
    grown = {"num_train_frames"} if longer and "num_train_frames" in typed else set()
    changed = {key: getattr(asked, key) for key in free & {*typed, "run_root"} | grown}
    return build(Settings, before | changed)


def stream_seed(seed: int, *names: str | int) -> int:
    """A seed for one stream of random numbers, such as `stream_seed(seed, "episode", 12)`.

    Streams of different names are independent: drawing more from one (an evaluation, say) changes no other.
    """
    numbers = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0])


def lock_folder(folder: Path) -> TextIO:
    """The folder's lock, held until the file is closed; the system frees it when the process dies."""
    path = folder / LOCK
    file = open(regular(path) if path.exists() else path, "w")  # noqa: SIM115, the lock lives as long as the run
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"another process is training in {folder}; wait until it ends, or stop it") from error
    return file


def _finished_line(folder: Path, checkpoint: Checkpoint) -> str:
    rows = regular(folder / EVAL).read_text(errors="replace").splitlines()[1:] if (folder / EVAL).exists() else []
    last = rows[-1].split(",") if rows else []
    whole = len(last) >= len(EVAL_COLUMNS)
    result = f", success rate {last[2]} and return {last[1]} over {last[3]} episodes" if whole else ""
    more = "A larger num_train_frames continues it; another seed or variant starts a new run"
    return f"{folder} is finished: {checkpoint.frame} frames{result}. {more}"


def _has_begun(folder: Path) -> bool:
    """Whether there is anything to lose: a played episode or a checkpoint. A start that failed leaves neither."""
    begun = last_frame(folder / TRAIN) > 0 or any((folder / CHECKPOINTS).glob("*"))
    return begun and stored_config(folder) is not None


def _state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Whether it is the last one, and what the logs were like then (older checkpoints know no sizes)."""
    with checkpoint.restoring():
        state = checkpoint.load(STATE)
        sizes = {name: int(size) for name, size in state.get("log_sizes", {}).items()}
        return {"finished": bool(state["finished"]), "wall_time_s": float(state["wall_time_s"]), "log_sizes": sizes}


def _check_nothing_lost(folder: Path, checkpoint: Checkpoint | None) -> None:
    """Raises UserError where a run would begin again over its own results, or go on under a config not known."""
    first_due = _stored(folder)["checkpoint_every_frames"] if stored_config(folder) else math.inf  # or earlier
    if checkpoint is None and (_read_provenance(folder)["saved"] or last_frame(folder / TRAIN) > first_due):
        raise UserError(f"{folder / CHECKPOINTS} has lost the checkpoints of this run: put them back; {START_OVER}")
    if checkpoint is not None and not (folder / CONFIG).exists():
        raise UserError(f"{folder / CONFIG} is missing, and no checkpoint has a copy: put it back; {START_OVER}")


def _check_same_run(
    folder: Path, before: Mapping[str, Any], settings: Settings, advice: str, free: Collection[str] = FREE_KEYS
) -> bool:
    """Whether `settings` are those of the run `before`, but for more frames. Raises UserError if it is another."""
    old, now = flatten(before), flatten(to_dict(settings))
    longer = bool(now["num_train_frames"] > old["num_train_frames"])
    keys = differences(old, now, {*free, "num_train_frames"} if longer else free)
    _refuse(folder, keys, old, now, advice)
    return longer


def check_same_config(
    folder: Path, settings: Any, among: Collection[str], added: Mapping[str, Any] | None = None
) -> None:
    """Raises UserError if one of the keys `among` has another value than in the config of this folder.

    `added`: what keys mean that a config from before there were such keys does not have.
    """
    before, now = dict(added or {}) | flatten(read_config(folder / CONFIG)), flatten(to_dict(settings))
    keys = [key for key in now | before if key in among and before.get(key) != now.get(key)]
    _refuse(folder, keys, before, now, "choose another folder to keep both, or remove this one")


def _refuse(folder: Path, keys: list[str], before: Mapping[str, Any], now: Mapping[str, Any], advice: str) -> None:
    if keys:
        shown = [f"{key} was {before.get(key, 'not set')}, is {now.get(key, 'not set')}" for key in keys[:6]]
        more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
        raise UserError(f"{folder} holds a run of another config ({'; '.join(shown)}{more}): {advice}")


def _stored(folder: Path) -> dict[str, Any]:
    """The config of the run in this folder, with the keys of this version."""
    with reading(folder / CONFIG, advice=f"put it back; {START_OVER}"):
        return to_dict(build(Settings, with_defaults(stored_config(folder) or {})))


def _add_start(folder: Path, task: str, checkpoint: Checkpoint | None) -> str:
    """Add this start to git.json; returns the run's own id."""
    record = _read_provenance(folder)
    record["starts"].append({"frame": checkpoint.frame if checkpoint else 0} | provenance(task))
    _write_provenance(folder, record | {"saved": checkpoint is not None})
    return str(record["id"])


def _write_provenance(folder: Path, record: Mapping[str, Any]) -> None:
    write_text(folder / PROVENANCE, json.dumps(record, indent=1) + "\n")


def _read_provenance(folder: Path) -> dict[str, Any]:
    """The starts so far; a fresh record where there is none or a damaged one, which no run depends on."""
    try:
        record = read_json(folder / PROVENANCE)
        starts = list(record["starts"])
        # Records of older versions show a checkpoint only by a start from it.
        saved = bool(record.get("saved", any(start["frame"] for start in starts)))
        return {"id": str(record["id"]), "saved": saved, "starts": starts}
    except READ_ERRORS:
        return {"id": uuid.uuid4().hex[:12], "saved": False, "starts": []}
