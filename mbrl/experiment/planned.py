"""What a command would do, said before it does it: `dry_run=true` says it and ends there.

overrides, dry = dry_run(overrides)
print(plan)
if dry: return
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from mbrl.experiment.capacity import amount, needs_of_run, space
from mbrl.experiment.logger import EVAL
from mbrl.experiment.run import PROVENANCE, run_folder
from mbrl.experiment.settings import CONFIG_DIR, Settings, UserError, pick_device
from mbrl.experiment.stored_config import CONFIG, read_yaml
from world_model.files import READ_ERRORS, read_json

KEY = "dry_run"
BROKEN: tuple[type[Exception], ...] = (*READ_ERRORS, ZeroDivisionError)  # of the files of a run that is looked at


def dry_run(overrides: Sequence[str]) -> tuple[list[str], bool]:
    """The other overrides, and whether `dry_run=true` is among them. Raises UserError: it is neither true nor false."""
    asked = [word.partition("=")[2].lower() for word in overrides if word.partition("=")[0] == KEY]
    if bad := set(asked) - {"true", "false"}:
        raise UserError(f"{KEY}={bad.pop()}: it must be true or false")
    return [word for word in overrides if word.partition("=")[0] != KEY], asked[-1:] == ["true"]


def plan(settings: Settings, begun_at: int) -> str:
    """What a run will do from frame `begun_at` on, and what it takes, as far as that is known beforehand."""
    s = settings
    left = max(0, s.num_train_frames - begun_at)
    evaluations = s.num_train_frames // s.eval_every_frames - begun_at // s.eval_every_frames
    learned = max(0, s.num_train_frames - max(begun_at, s.num_seed_frames)) // s.action_repeat
    lines = [
        headline(s),
        f"{left:,} frames from frame {begun_at:,}, evaluated {evaluations} times over {s.num_eval_episodes} episodes",
    ]
    if s.agent in ("mbpo", "drqv2"):
        lines.append(f"updates of the agent: {int(learned * s.agent_updates_per_decision):,}, batch {s.batch_size}")
    if s.agent in ("mbpo", "mpc"):
        transformer = s.initial_model_updates * (not begun_at) + left // s.update_transformer_every_frames
        lines.append(f"updates of the transformer: about {transformer:,}")
    lines.append(f"memory: {amount(memory(s))} or more of {amount(space('memory'))}")
    episodes = s.num_train_frames // s.action_repeat * 3 * s.image_size**2
    free = amount(space(s.run_root))
    lines.append(f"disk: up to {amount(episodes)} of episodes, beside two checkpoints and videos; {free} are free")
    seconds, source = pace(s)
    if source is not None:
        hardware = "a CPU" if pick_device(s.device).type == "cpu" else "a GPU"
        lines.append(f"time: {duration(left * seconds)} at the pace of {source}, on {hardware} of its own")
    else:
        lines.append("time: not known before it is tried; the bar says it after some hundred frames")
    return "\n".join(lines)


def headline(settings: Settings) -> str:
    """What is trained, and where it goes."""
    s = settings
    return (
        f"{s.agent} on {s.task}, preset {s.preset}, protocol {s.protocol}, seed {s.seed}, "
        f"on {pick_device(s.device).type}, into {run_folder(s)}"
    )


def memory(settings: Settings) -> int:
    """Bytes that a run needs at least."""
    return sum(need.bytes for need in needs_of_run(settings) if need.where == "memory")


def pace(settings: Settings) -> tuple[float, Path | None]:
    """Seconds a frame of a run of this agent, preset and kind of device: the newest here, or a published one; which."""
    kind = pick_device(settings.device).type
    for root in (Path(settings.run_root), CONFIG_DIR.parent / "runs" / "published"):
        found = [path for depth in ("*/*/*", "*/*/*/*") for path in root.glob(f"{depth}/{EVAL}")]  # toy/reach is two
        newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
        for path in newest:
            try:
                config = read_yaml(path.parent / CONFIG)
                *_, last = csv.DictReader(path.read_text().splitlines())
                same = config["agent"] == settings.agent and config["preset"] == settings.preset
                if same and _device(path.parent, config["device"]) == kind:
                    return float(last["wall_time_s"]) / float(last["frame"]), path.parent
            except BROKEN:
                continue
    return 0.0, None


def _device(folder: Path, asked: str) -> str:
    """The kind of device that a run computed on last."""
    if asked != "auto":
        return asked.partition(":")[0]
    return "cuda" if read_json(folder / PROVENANCE)["starts"][-1]["machine"]["gpu"] else "cpu"


def duration(seconds: float) -> str:
    """12 min, 3.4 h, 2.1 days"""
    for name, size in (("days", 86_400), ("h", 3_600)):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds / 60:.0f} min"
