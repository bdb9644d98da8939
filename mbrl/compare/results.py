"""Learning curves read back from disk: ours from run folders; which of them may be compared with which.

A run folder gives its scores in eval.csv, its protocol in config.yaml and the versions of the simulator in git.json.
Files of other projects are read by `mbrl/compare/foreign.py` into the same `Curve`.
"""

import csv
import dataclasses
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np

import envs
from mbrl.compare.stats import Array
from mbrl.experiment.identity import BETWEEN_SEEDS, differences, renamed, uses, with_defaults
from mbrl.experiment.logger import EVAL, EVAL_COLUMNS
from mbrl.experiment.provenance import SIMULATORS
from mbrl.experiment.run import CONFIG, PROVENANCE
from mbrl.experiment.settings import Positive, Range, Seed, UserError, build, flatten
from mbrl.experiment.stored_config import read_yaml
from world_model.files import READ_ERRORS, read_json, read_text, reading

EVERYWHERE = ("protocol", "action_repeat", *SIMULATORS)
WITHIN_A_TASK = ("success_bonus", "demonstrations", "episode_frames")
# Weights that were pre-trained on other tasks of a suite that agents are judged on.
IN_DOMAIN = {"world_model/pretrained/small": "metaworld", "world_model/pretrained/onestep": "metaworld"}
LEAVE_OUT = "leave this run out"
RANGES = dict(zip(EVAL_COLUMNS, ("[0, 1e15]", "[-1e9, 1e9]", "[0, 1]", "[1, 1e9]", "[0, 1e12]"), strict=True))


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """What a comparison needs of a stored config, of whatever version."""

    task: str  # names are shown, and escaped where they are
    agent: str
    seed: Seed
    variant: str | None
    episode_frames: Positive | None


class NothingThere(UserError):
    """A run without an evaluation so far."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The evaluations of one run, P of them, by rising frames."""

    task: str  # as `envs.canonical` spells it
    method: str
    seed: str
    frames: Array  # (P,)
    scores: Array  # (P,), 0 to 1: success rate, or the share of the highest return
    minutes: Array | None  # (P,) of training until then
    episodes: int  # behind each score; 0 where nobody says
    source: Path
    protocol: str  # in words; only scores of one protocol are weighed against each other
    rules: Mapping[str, str]  # what must agree before runs are compared; empty for other people's results
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    machine: str = ""
    returns: Array | None = None  # (P,) of an episode, in environment units; None where nobody says
    command: str = ""  # that made it, and of which commit; "" where nobody says

    @property
    def ours(self) -> bool:
        return bool(self.rules)


def given(curve: Curve) -> list[str]:
    """What a run of ours had beside its own experience, by its config."""
    config, agent = curve.config, str(curve.config["agent"])
    found = []
    kind, demonstrations = config.get("world_model.kind"), config.get("demonstrations", 0)
    key = "world_model.onestep_pretrained" if kind == "onestep" else "world_model.pretrained"
    pretrained = str(config.get(key, "none"))
    if kind == "simulator" and uses(agent, "world_model.kind"):
        found.append("the simulator itself as world model")
    elif pretrained != "none" and uses(agent, "world_model.pretrained"):
        domain = "in-domain " if IN_DOMAIN.get(pretrained) == envs.suite_of(curve.task).name else ""
        found.append(f"{domain}pre-training of the world model ({pretrained})")
    if demonstrations and str(config.get("drqv2.bc_schedule", "0")) != "0" and uses(agent, "drqv2.bc_schedule"):
        found.append("behaviour cloning")
    if demonstrations:
        these = (
            f"the demonstrations of {demonstrations}"
            if isinstance(demonstrations, str)
            else f"{demonstrations} demonstrations"
        )
        found.append(f"{these} in the replay buffer")
    return found


def find(patterns: Sequence[str], left_out: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Run folders that were named, run folders found below others, and files; globs are expanded, in order.

    Raises UserError for a pattern behind which there is nothing. `left_out` is not searched.
    """
    named: list[Path] = []
    found: list[Path] = []
    files: list[Path] = []
    for pattern in patterns:
        paths = (
            [Path(path) for path in sorted(glob(pattern, recursive=True))] if has_magic(pattern) else [Path(pattern)]
        )
        before = len(named) + len(found) + len(files)
        for path in paths:
            if path.is_file():
                files.append(path)
            elif (path / CONFIG).exists() or (path / EVAL).exists():
                (found if has_magic(pattern) else named).append(path)
            elif path.is_dir():
                _search(path, left_out, found, files)
        if len(named) + len(found) + len(files) == before:
            raise UserError(f"{pattern}: there is no run and no file of results; make train and make sweep make runs")
    return list(dict.fromkeys(named)), [x for x in dict.fromkeys(found) if x not in named], list(dict.fromkeys(files))


def _search(root: Path, left_out: Path, found: list[Path], files: list[Path]) -> None:
    """Run folders below `root`, without walking into them: a replay can hold a million files."""
    for here, folders, names in os.walk(root):
        path = Path(here)
        if path.resolve() == left_out.resolve():
            folders.clear()
        elif EVAL in names:
            found.append(path)
            folders.clear()
        elif CONFIG in names:
            folders.clear()  # a run that has not begun, or a pre-training
        else:
            files += [path / name for name in names if name.endswith((".csv", ".jsonl", ".json.gz"))]
            folders.sort()


def read_run(folder: Path, note: Callable[[str], None]) -> Curve:
    """The evaluations of a run folder. Raises UserError, one line, for anything that is not whole."""
    config = _config(folder)
    task = str(config["task"])
    rows = evaluations(folder / EVAL, note)
    frames, wall_time = rows["frame"], rows["wall_time_s"]
    if np.any(np.diff(frames) <= 0):
        raise UserError(f"{folder / EVAL}: its frames do not rise; leave this run out or remove its folder")
    suite = envs.suite_of(task)
    config["episode_frames"] = config.get("episode_frames") or suite.episode_frames
    if suite.highest_reward is None:
        scores = rows["success_rate"]
    else:
        scores = rows["episode_return"] / (suite.highest_reward * float(config["episode_frames"]))
    versions, machine, command = _provenance(folder)
    rules = {key: str(config.get(key)) for key in ("protocol", "action_repeat", *WITHIN_A_TASK)}
    rules |= {name: versions.get(name, "unknown") for name in envs.packages_of(task)}
    variant = config.get("variant") or ""
    return Curve(
        task=task,
        method=f"{config['agent']}-{variant}" if variant else str(config["agent"]),
        seed=str(config["seed"]),
        frames=frames,
        scores=scores,
        minutes=wall_time / 60,
        episodes=int(rows["episodes"].min()),
        source=folder,
        protocol=f"protocol {config.get('protocol')}, action repeat {config.get('action_repeat')}",
        rules=rules,
        config=config,
        machine=f"{machine}, {config.get('threads')} threads",
        returns=rows["episode_return"],
        command=command,
    )


def by_return(curves: Sequence[Curve], note: Callable[[str], None]) -> list[Curve]:
    """The same, scored by return: as a share of the highest mean return that an evaluation of the task's runs has.

    Tasks whose highest return is known keep it. Other people's results, of which only the score is known, are left out.
    """
    known = [curve for curve in curves if curve.returns is not None]
    if left := sorted({curve.method for curve in curves if curve.returns is None}):
        note(f"{', '.join(left)}: left out, as no returns are known")
    highest: dict[str, float] = {}
    for curve in known:
        assert curve.returns is not None
        highest[curve.task] = max(highest.get(curve.task, 1e-9), float(curve.returns.max()))
    return [
        dataclasses.replace(curve, scores=curve.returns / highest[curve.task])
        if curve.returns is not None and envs.suite_of(curve.task).reports_success
        else curve
        for curve in known
    ]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{folder} is no run folder: it has no {CONFIG}")
    with reading(path, advice=LEAVE_OUT):
        config = read_yaml(path)
        known = {"variant": None, "episode_frames": None} | config
        build(StoredRun, {field.name: known[field.name] for field in dataclasses.fields(StoredRun)}, file=str(path))
        envs.suite_of(config["task"])
    try:
        return flatten(renamed(config)) | flatten(with_defaults(config))
    except UserError:  # of a task, agent, preset or protocol that this version does not have: as it is
        return flatten(config)


def evaluations(path: Path, note: Callable[[str], None]) -> dict[str, Array]:
    """The columns of an eval.csv. A last line that was cut off is left out with a note."""
    with reading(path, advice=LEAVE_OUT):
        text = read_text(path) if path.exists() else ""
        lines = text.splitlines()
        if lines and not text.endswith("\n"):
            lines.pop()
            note(f"{path}: its last line is cut off and was left out")
        if len(lines) < 2:
            raise NothingThere(f"{path.parent} holds no evaluation yet")
        header, *body = csv.reader(lines)
    if tuple(header[: len(EVAL_COLUMNS)]) != EVAL_COLUMNS:
        raise UserError(f"{path} does not begin with the columns {','.join(EVAL_COLUMNS)}; {LEAVE_OUT}")
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise UserError(f"{path} line {number} is damaged: {len(row)} values in place of {len(header)}")
        for (name, bound), value in zip(RANGES.items(), row, strict=False):
            if complaint := _complaint(value, Range.parse(bound)):
                raise UserError(f"{path} line {number}: {name} is {value or 'empty'}, {complaint}")
    columns = np.array([row[: len(EVAL_COLUMNS)] for row in body], np.float64).T
    return dict(zip(EVAL_COLUMNS, columns, strict=True))


def _complaint(text: str, bound: Range) -> str | None:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        return "which is no finite number"
    complaint = bound.complaint(number)
    return f"which must be {complaint}" if complaint else None


def _provenance(folder: Path) -> tuple[dict[str, str], str, str]:
    """Versions, machine and command of a run. Where a restart changed a version, all of them: that run is comparable
    with none."""
    try:
        starts = read_json(folder / PROVENANCE)["starts"]
        packages = {name: sorted({str(start["versions"].get(name)) for start in starts}) for name in SIMULATORS}
        machines = {f"{start['machine']['cpus']} CPUs, {start['machine']['gpu'] or 'no GPU'}" for start in starts}
    except READ_ERRORS:
        return {}, "unknown machine", ""
    versions = {name: " then ".join(found) for name, found in packages.items() if found}
    return versions, " then ".join(sorted(machines)), _command(starts[0])


def _command(start: Mapping[str, Any]) -> str:
    """What was typed to start a run, and of which commit; "" where that was not kept."""
    words, commit = start.get("command"), start.get("commit")
    if not isinstance(words, list):
        return ""
    of = f"  # commit {str(commit)[:10]}{', with changes' if start.get('dirty') else ''}" if commit else ""
    return shlex.join(["python", "-m", "mbrl.train", *map(str, words)]) + of


def check(curves: Sequence[Curve]) -> None:
    """Refuses what must not stand in one comparison. Raises UserError that names two runs and where they differ."""
    ours = [curve for curve in curves if curve.ours]
    for keys, group in ((EVERYWHERE, lambda curve: ""), (WITHIN_A_TASK, lambda curve: curve.task)):
        seen: dict[tuple[str, str], tuple[str, Curve]] = {}
        for curve in ours:
            for key in keys:
                if key not in curve.rules:
                    continue
                value, first = seen.setdefault((group(curve), key), (curve.rules[key], curve))
                if value != curve.rules[key]:
                    raise UserError(
                        f"{first.source} and {curve.source} must not be compared: {key} is {value} in the first and "
                        f"{curve.rules[key]} in the second; choose runs that agree with RUNS=..."
                    )
    methods: dict[tuple[str, str], Curve] = {}
    places: dict[tuple[str, str, str], Curve] = {}
    for curve in curves:
        twin = places.setdefault((curve.task, curve.method, curve.seed), curve)
        if twin is not curve:
            raise UserError(
                f"{twin.source} and {curve.source} are both seed {curve.seed} of {curve.method} on {curve.task}; "
                "choose one with RUNS=..."
            )
        first = methods.setdefault((curve.task, curve.method), curve)
        if other := differences(first.config, curve.config, BETWEEN_SEEDS):
            shown = ", ".join(f"{key} {first.config[key]} and {curve.config[key]}" for key in other[:2])
            more = f" and {len(other) - 2} more keys" if len(other) > 2 else ""
            raise UserError(
                f"{first.source} and {curve.source} are not seeds of one method: {shown}{more}; "
                "choose runs that agree with RUNS=..., and give changed runs a variant=<name>"
            )
