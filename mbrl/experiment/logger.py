"""Where a run's numbers go: `metrics.jsonl`, `train.csv`, `eval.csv`, TensorBoard, Weights & Biases.

Metrics of updates are averaged on their own device between two log points and moved to the CPU there, in one
transfer. A mean that is not finite stops the run before anything more is saved.
"""

import csv
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch import Tensor

from mbrl.experiment.settings import UserError
from world_model.files import READ_ERRORS, regular

METRICS = "metrics.jsonl"
TRAIN = "train.csv"
EVAL = "eval.csv"
TRAIN_COLUMNS = ("frame", "episode_return", "success", "episode", "wall_time_s")
EVAL_COLUMNS = ("frame", "episode_return", "success_rate", "episodes", "wall_time_s")


class NonFinite(UserError):
    """A loss or another metric became NaN or infinite."""


class Logger:
    """Writes into an existing run folder. `frame` is where logging starts (None: at the very beginning).

    Without `tables` there are no episodes to log, and so no CSV files. `sizes` are those that `sync` returned at that
    frame: what was logged behind them is logged again, also where it is of the same frame.
    """

    def __init__(
        self,
        folder: Path,
        frame: int | None = None,
        wall_time_s: float = 0.0,
        tables: bool = True,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.folder = folder
        self._started = time.monotonic() - wall_time_s
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._files: dict[str, io.TextIOWrapper] = {}
        csvs = ((TRAIN, TRAIN_COLUMNS), (EVAL, EVAL_COLUMNS)) if tables else ()
        for name, columns in ((METRICS, None), *csvs):
            cut(folder / name, frame, (sizes or {}).get(name))
            self._files[name] = open(folder / name, "a", newline="")  # noqa: SIM115, closed by close()
            if columns and self._files[name].tell() == 0:
                self._write_row(name, columns)
        self._events = EventFileWriter(str(folder / "tb"))
        # TensorBoard hides everything from this step on that an earlier process wrote.
        start = 0 if frame is None else frame + 1
        self._event(start, session_log=SessionLog(status=SessionLog.START))
        self.wandb: Any = None  # a wandb run, once `attach_wandb` was called

    @property
    def wall_time_s(self) -> float:
        """Seconds of training, those before a restart included."""
        return time.monotonic() - self._started

    def record(self, prefix: str, metrics: Mapping[str, Tensor | float]) -> None:
        """Add one update's scalars to the running means of `<prefix>/<name>`; nothing leaves the device."""
        for name, value in metrics.items():
            tag = f"{prefix}/{name}"
            value = value.detach() if isinstance(value, Tensor) else value
            self._sums[tag] = self._sums[tag] + value if tag in self._sums else value
            self._counts[tag] = self._counts.get(tag, 0) + 1

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds that the body takes to `time/<name>`, written and set back by every flush.

        On a GPU this is the time to hand over the work, unless the body waits for a result.
        """
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - start

    def flush(self, frame: int) -> None:
        """Write the means, and the sums of seconds, since the last flush. Raises NonFinite, naming the metric."""
        tensors = [tag for tag, value in self._sums.items() if isinstance(value, Tensor)]
        values = {tag: float(value) for tag, value in self._sums.items() if not isinstance(value, Tensor)}
        if tensors:
            # One transfer: every `.item()` would wait for the device by itself.
            stacked = torch.stack([torch.as_tensor(self._sums[tag]).float().reshape(()) for tag in tensors])
            values |= dict(zip(tensors, stacked.tolist(), strict=True))
        values = {tag: values[tag] / self._counts[tag] for tag in self._sums}
        self._sums, self._counts = {}, {}
        for tag, value in values.items():
            if not math.isfinite(value):
                raise NonFinite(
                    f"{tag} became {value} at frame {frame}; the last checkpoint was saved before it. "
                    "Try a smaller learning rate or another seed"
                )
        values |= {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds = {}
        if values:
            self.scalars(frame, values)

    def scalars(self, frame: int, values: Mapping[str, float]) -> None:
        """Write numbers under their full tags at once. A number that is not finite is written as missing."""
        line: dict[str, float | None] = {"frame": frame, "wall_time_s": round(self.wall_time_s, 3)}
        line |= {tag: float(value) if math.isfinite(value) else None for tag, value in values.items()}
        file = self._files[METRICS]
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        scalars = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
        self._event(frame, summary=Summary(value=scalars))
        if self.wandb is not None:
            self.wandb.log(dict(values) | {"frame": frame})

    def episode(self, frame: int, episode: int, episode_return: float, success: float) -> None:
        """One finished training episode: a row of train.csv and `train/...`."""
        row = (frame, f"{episode_return:.6g}", f"{success:g}", episode, f"{self.wall_time_s:.3f}")
        self._write_row(TRAIN, row)
        self.scalars(frame, {"train/episode_return": episode_return, "train/success": success})

    def evaluation(self, frame: int, episode_return: float, success_rate: float, episodes: int) -> None:
        """Means over the evaluation episodes: a row of eval.csv and `eval/...`."""
        row = (frame, f"{episode_return:.6g}", f"{success_rate:.6g}", episodes, f"{self.wall_time_s:.3f}")
        self._write_row(EVAL, row)
        self.scalars(frame, {"eval/episode_return": episode_return, "eval/success_rate": success_rate})

    def video(self, tag: str, frame: int, gif: bytes) -> Path:
        """A GIF into `videos/` and among TensorBoard's images; returns its path."""
        path = self.folder / "videos" / f"{tag.replace('/', '-')}-{frame:09d}.gif"
        path.write_bytes(gif)
        width, height = int.from_bytes(gif[6:8], "little"), int.from_bytes(gif[8:10], "little")
        # TensorBoard shows the bytes as they are, so a GIF plays; torch's own add_video needs an old moviepy.
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self._event(frame, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))
        if self.wandb is not None:
            import wandb

            self.wandb.log({tag: wandb.Video(str(path)), "frame": frame})
        return path

    def attach_wandb(self, name: str, identity: str, config: Mapping[str, Any]) -> None:
        """Mirror everything to Weights & Biases; `identity` lets a continued run find its page again."""
        try:
            import wandb
        except ImportError as error:
            raise UserError("wandb=true needs the package: pip install wandb, or leave wandb=false") from error
        self.wandb = wandb.init(
            project="ivideogpt-mbrl",
            name=name,
            id=identity,
            resume="allow",
            dir=str(self.folder),
            config=dict(config),
        )

    def sync(self) -> dict[str, int]:
        """Force everything written so far to the disk; returns the bytes of each file of lines."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._events.flush()
        return {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._events.close()
        if self.wandb is not None:
            self.wandb.finish()

    def _write_row(self, name: str, row: tuple[Any, ...]) -> None:
        csv.writer(self._files[name], lineterminator="\n").writerow(row)
        self._files[name].flush()

    def _event(self, frame: int, **content: Any) -> None:
        self._events.add_event(Event(wall_time=time.time(), step=frame, **content))


def cut(path: Path, frame: int | None, size: int | None = None) -> None:
    """Drop a log's lines after `frame` (all if None) and a half-written last one; a CSV keeps its header.

    What stands behind the first `size` bytes is dropped whatever its frame.
    """
    if not path.exists():
        return
    lines = regular(path).read_bytes()[:size].decode(errors="replace").splitlines(keepends=True)
    header = lines[:1] if path.suffix == ".csv" else []
    kept = [line for line in lines[len(header) :] if frame is not None and 0 <= _frame(path, line) <= frame]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join([line for line in header if line.endswith("\n")] + kept))
    os.replace(temporary, path)


def last_frame(path: Path) -> int:
    """The last frame that a log has a whole line of, 0 without one."""
    lines = regular(path).read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    return max([0, *(_frame(path, line) for line in lines)])


def _frame(path: Path, line: str) -> int:
    """The frame a log line belongs to, or -1 for a line that was not written whole."""
    if not line.endswith("\n"):
        return -1
    try:
        return int(json.loads(line)["frame"] if path.suffix == ".jsonl" else line.split(",", 1)[0])
    except READ_ERRORS:
        return -1
