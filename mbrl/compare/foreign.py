"""Other people's results, in and out: learning curves that DreamerV3, TD-MPC2 and DrQ-v2 publish.

    DreamerV3   scores/*.json.gz     [{task, method, seed, xs, ys}, ...], and scores.jsonl of a run:
                                     {"step": ..., "episode/score": ...} a line, in a folder
                                     <time>-<task>-<method>-<seed> or <task>/<method>/<seed>
    TD-MPC2     results/<method>/<task>.csv      step,success,seed or step,reward,seed
    DrQ-v2      curves/dmc_<task>.csv            ,agent,task,seed,frame,episode_reward,hour

None of them follows our protocols, so each curve says what is known of its own. Tasks that `envs` does not have are
left out. `write_dreamerv3` writes curves as DreamerV3's plot.py reads them.
"""

import csv
import gzip
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import envs
from mbrl.compare.results import Curve
from mbrl.experiment.settings import UserError
from world_model.files import READ_ERRORS, reading, regular

DREAMERV3 = "DreamerV3's files: scores as logged; action repeat and episodes behind each are not stated"
TDMPC2 = "TD-MPC2's files: from states; action repeat 2; success at the last step; unit of `step` not stated"
TDMPC2_PIXELS = TDMPC2.replace("states", "pixels")
DRQV2 = "DrQ-v2's files: from pixels; action repeat 2; 10 evaluation episodes"
NUMBERS = ("frame", "episode_reward", "hour")  # of DrQ-v2's table
COLUMNS = {"frame", "step"}  # a table without them is none of these
LARGEST = 2**30  # bytes of an unpacked file
MOST_POINTS, BINS = 100, 50  # a run with one score for each episode is averaged in bins
PREFIXES = {f"{prefix}-" if prefix else "": suite for suite in envs.SUITES for prefix in suite.prefixes}
OTHER_NAMES = {"cup-catch": "ball-in-cup-catch"}

Note = Callable[[str], None]


class Row(NamedTuple):
    task: str
    method: str
    seed: str
    frame: float
    score: float
    hour: float = math.nan


def read_file(path: Path, wanted: frozenset[str], note: Note) -> list[Curve] | None:
    """The curves of a published file for the tasks `wanted` (all if empty); None if it is none of these formats.

    Raises UserError, one line, for a file that has begun as one of them and is damaged.
    """
    with reading(path):
        return _read_file(path, wanted, note)


def _read_file(path: Path, wanted: frozenset[str], note: Note) -> list[Curve] | None:
    if path.name.endswith(".json.gz"):
        benchmark = path.name.split("-")[0] if "-" in path.name else "file"  # dmc_vision, dmc_proprio, ...
        protocol = f"{DREAMERV3} ({benchmark})"
        return _curves(path, _dreamerv3_scores(path), protocol, f"DreamerV3's {benchmark}", wanted, note)
    if path.name == "scores.jsonl":
        return _curves(path, _dreamerv3_log(path, note), DREAMERV3, "DreamerV3's file", wanted, note)
    if path.suffix != ".csv":
        return None
    with open(regular(path), newline="", encoding="utf-8", errors="replace") as file:
        columns = set(csv.DictReader(file).fieldnames or ())
        if not COLUMNS & columns:
            return None
        file.seek(0)
        table = list(csv.DictReader(file))
    if {"agent", "task", "seed", *NUMBERS} <= columns:
        rows = [
            Row(str(line["task"]), str(line["agent"]), str(line["seed"]), *_numbers(path, i, line, *NUMBERS))
            for i, line in enumerate(table, start=2)
        ]
        return _curves(path, rows, DRQV2, "DrQ-v2's file", wanted, note)
    for score in ("success", "reward"):
        if columns == {"step", score, "seed"}:
            method = path.parent.name
            rows = [
                Row(path.stem, method, line["seed"] or "", *_numbers(path, i, line, "step", score))
                for i, line in enumerate(table, start=2)
            ]
            protocol = TDMPC2_PIXELS if "pixels" in method else TDMPC2
            return _curves(path, rows, protocol, "TD-MPC2's file", wanted, note)
    return None


def task_name(published: str) -> str | None:
    """Our name of a task that others call `dmc_walker_walk`, `walker-walk`, `mw-hammer`, ...; None without one."""
    name = published.replace("_", "-")
    prefix = max(filter(name.startswith, PREFIXES), key=len)  # "" is among them
    suite, tail = PREFIXES[prefix], name.removeprefix(prefix)
    own_name = OTHER_NAMES.get(tail, tail)
    return suite.full_name(own_name) if own_name in suite.tasks else None


def _dreamerv3_scores(path: Path) -> list[Row]:
    with reading(path, advice="it must be a whole file of DreamerV3 scores"):
        with gzip.open(regular(path), "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
        return [
            Row(str(run["task"]), str(run["method"]), str(run["seed"]), float(x), float(y))
            for run in json.loads(content)
            for x, y in zip(run["xs"], run["ys"], strict=True)
            if y is not None
        ]


def _dreamerv3_log(path: Path, note: Note) -> list[Row]:
    parts = path.parent.name.split("-")
    names = parts[1:] if len(parts) == 4 else path.absolute().parts[-4:-1]
    if len(names) != 3:
        raise ValueError("its folder must be <time>-<task>-<method>-<seed> or <task>/<method>/<seed>")
    task, method, seed = names
    rows, damaged = [], 0
    for line in regular(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            rows.append(Row(task, method, seed, float(values["step"]), float(values["episode/score"])))
        except READ_ERRORS:
            damaged += 1
    if damaged:
        note(f"{path}: {damaged} lines without a whole step and episode/score were left out")
    return rows


def _numbers(path: Path, line: int, row: dict[str, Any], *names: str) -> list[float]:
    try:
        values = [float(row[name]) for name in names]
    except (TypeError, ValueError):
        raise UserError(f"{path} line {line} is damaged: {', '.join(names)} must be numbers") from None
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            raise UserError(f"{path} line {line}: {name} is {value}, which is no finite number")
    return values


def _curves(
    path: Path, rows: Iterable[Row], protocol: str, origin: str, wanted: frozenset[str], note: Note
) -> list[Curve]:
    """One curve for each task, method and seed; scores on a scale of 0 to 1."""
    runs: dict[tuple[str, str, str], list[Row]] = {}
    unknown = set()
    for row in rows:
        task = task_name(row.task)
        if task is None:
            unknown.add(row.task)
        elif not wanted or task in wanted:
            runs.setdefault((task, row.method, row.seed), []).append(row)
    if unknown:
        note(f"{path}: {len(unknown)} of its tasks are not among ours and were left out, such as {min(unknown)}")
    ends: dict[str, float] = {}
    for (task, *_), run in runs.items():
        ends[task] = max(ends.get(task, 0.0), *(row.frame for row in run))
    curves = []
    for (task, method, seed), run in runs.items():
        table = np.array([row[3:] for row in sorted(run, key=lambda row: row.frame)])  # (points, frame score hour)
        if not np.isfinite(table[:, :2]).all() or table[:, 0].min() < 0:
            raise UserError(f"{path}: {task} has a score that is no finite number, or one before frame 0")
        if len(table) > MOST_POINTS and ends[task]:
            table = _binned(table, ends[task] / BINS)
        scores = table[:, 1] / _full_score(task)
        if len(np.unique(table[:, 0])) < len(table):
            raise UserError(f"{path}: seed {seed} of {method} on {task} has two scores at one frame")
        if scores.min() < -0.01 or scores.max() > 1.01:
            raise UserError(f"{path}: scores of {task} reach from {scores.min():g} to {scores.max():g}, not 0 to 1")
        minutes = table[:, 2] * 60
        curves.append(
            Curve(
                task=task,
                method=f"{method} ({origin})",
                seed=seed,
                frames=table[:, 0],
                scores=scores,
                minutes=minutes if np.isfinite(minutes).all() else None,
                episodes=10 if protocol == DRQV2 else 0,
                source=path,
                protocol=protocol,
                rules={},
            )
        )
    return curves


def _full_score(task: str) -> float:
    """What a published score of 1.0 on our scale reads: the highest return, or 1 for success rates."""
    suite = envs.suite_of(task)
    return 1.0 if suite.highest_reward is None else suite.highest_reward * suite.episode_frames


def _binned(table: np.ndarray, width: float) -> np.ndarray:
    """Means within bins of `width` frames, each at its right edge; empty bins are left out."""
    bins = np.ceil(np.maximum(table[:, 0], 1e-9) / width)
    edges = np.unique(bins)
    means = np.array([table[bins == edge].mean(axis=0) for edge in edges])
    return np.column_stack([edges * width, means[:, 1:]])


def write_dreamerv3(curves: Sequence[Curve], folder: Path) -> None:
    """Curves as DreamerV3 keeps them: a scores.jsonl for each run, which its plot.py draws, and all in scores.json.gz.

    Scores are success rates, or returns in suites without success. Names have no hyphens: plot.py splits at them.
    """
    records = []
    for curve in curves:
        own_name = re.split("[/:]", curve.task)[-1]
        task = re.sub(r"\W", "_", f"{envs.suite_of(curve.task).prefixes[0]}_{own_name}")
        method = re.sub(r"\W", "_", curve.method)
        scores = curve.scores * _full_score(curve.task)
        xs, ys = [int(frame) for frame in curve.frames], [round(float(score), 6) for score in scores]
        records.append({"task": task, "method": method, "seed": int(curve.seed), "xs": xs, "ys": ys})
        run = folder / f"run-{task}-{method}-{curve.seed}"
        run.mkdir(parents=True)
        lines = [json.dumps({"step": x, "episode/score": y}) for x, y in zip(xs, ys, strict=True)]
        (run / "scores.jsonl").write_text("\n".join(lines) + "\n")
    with gzip.open(folder / "scores.json.gz", "wt") as file:
        json.dump(records, file)
