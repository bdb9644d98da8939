"""Does the cost stay flat as a run grows? python -m benchmarks.flat [key=value ...]

Fills a replay with random images up to a million frames (its images then lie in a memory-mapped file), puts ten
times a run's rollouts into the imagined buffer, and dreams with longer horizons; at each mark it reports memory and
seconds. Sampling should not depend on how much is held, the imagined buffer should stop growing, and a dream should
take time in proportion to its horizon. Needs 6 GB of disk in runs/bench for the million.
"""

import dataclasses
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, options
from benchmarks.alone import BATCH, CLIPS, FRAMES, Parts, random_episode
from benchmarks.table import duration, table, write
from mbrl.build import make_buffer
from mbrl.experiment.command import command
from mbrl.experiment.settings import Settings, UserError, pick_device
from world_model import Episode

MARKS = (10_000, 100_000, 1_000_000)  # frames in the replay
TIMES_ROLLOUTS = 10
HORIZONS = (5, 10, 20)
ACTION_DIM = 4
SAMPLES = 20  # of each kind at a mark


def memory() -> tuple[float, float]:
    """GB in memory of this process alone, and of files that it has mapped, which the system can take back."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 0.0
    sizes = {name: float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
    return sizes["RssAnon"] / 2**20, sizes["RssFile"] / 2**20


def real_replay(settings: Settings, marks: tuple[int, ...], scratch: Path) -> Iterator[dict[str, Any]]:
    """Memory and sampling time at each mark."""
    s, rng = settings, np.random.default_rng(0)
    mapped_always = dataclasses.replace(s, replay_memory_gb=0.0)
    replay = make_buffer(mapped_always, "replay", ACTION_DIM, marks[-1] // s.action_repeat, 100, scratch)
    pool = [random_episode(rng, 100, s.image_size, ACTION_DIM) for _ in range(8)]  # to draw a million takes long
    count = 0
    for mark in marks:
        while len(replay) < mark // s.action_repeat:
            replay.add(pool[count % len(pool)])
            count += 1
        kinds = {
            "transitions_s": lambda: replay.sample(BATCH),
            "clips_s": lambda: replay.sample_segments(CLIPS, FRAMES),
        }
        seconds = {name: measure.repeated(call, "cpu", SAMPLES, 0.0)._asdict() for name, call in kinds.items()}
        own, mapped = memory()
        yield {"frames": mark, "memory_gb": own, "mapped_gb": mapped} | seconds


def imagined_buffer(settings: Settings, times: int) -> Iterator[dict[str, Any]]:
    """Memory while `times` runs' worth of rollouts go through the imagined buffer."""
    s, rng, stack = settings, np.random.default_rng(0), settings.frame_stack
    decisions = s.imagined_buffer_frames // s.action_repeat
    imagined = make_buffer(s, "imagined", ACTION_DIM, decisions, s.rollout_horizon)
    longer = random_episode(rng, s.rollout_horizon + stack - 1, s.image_size, ACTION_DIM)
    rollout = Episode(longer.frames, longer.actions[stack - 1 :], longer.rewards[stack - 1 :], False, prefix=stack - 1)
    rollouts = s.initial_rollouts
    rollouts += (s.num_train_frames - s.num_seed_frames) // s.rollout_every_frames * s.rollout_batch
    for done in range(1, times + 1):
        for _ in range(rollouts):
            imagined.add(rollout)
        if done in (1, times):
            seconds = measure.repeated(lambda: imagined.sample(BATCH), "cpu", SAMPLES, 0.0)._asdict()
            yield {
                "rollouts": done * rollouts,
                "decisions_held": len(imagined),
                "memory_gb": memory()[0],
                "transitions_s": seconds,
            }


def dreams(settings: Settings, overrides: list[str], repeats: int) -> Iterator[dict[str, Any]]:
    """Seconds of a batch of rollouts at each horizon."""
    device = pick_device(settings.device)
    for horizon in HORIZONS:
        _, changed, _ = options.read([*overrides, f"rollout_horizon={horizon}"])
        parts = Parts(changed, device)
        yield {"horizon": horizon, "dream_s": measure.repeated(parts.dream, device, repeats, 0.0)._asdict()}
        parts.env.close()


def report(values: dict[str, Any]) -> str:
    """The three tables."""
    real = [
        [
            f"{row['frames']:,}",
            f"{row['memory_gb']:.2f} GB",
            f"{row['mapped_gb']:.2f} GB",
            *(duration(row[kind]["median"]) for kind in ("transitions_s", "clips_s")),
        ]
        for row in values["replay"]
    ]
    kinds = (f"{BATCH} transitions", f"{CLIPS} clips of {FRAMES}")
    imagined = [
        [
            f"{row['rollouts']:,}",
            f"{row['decisions_held']:,}",
            f"{row['memory_gb']:.2f} GB",
            duration(row["transitions_s"]["median"]),
        ]
        for row in values["imagined"]
    ]
    first = values["dreams"][0]
    base = first["dream_s"]["median"] / first["horizon"]
    dreams = [
        [str(row["horizon"]), duration(time), f"{time / row['horizon'] / base:.2f}"]
        for row in values["dreams"]
        for time in [row["dream_s"]["median"]]
    ]
    return "\n\n".join(
        [
            table(("frames in the replay", "memory", "mapped file", *kinds), real),
            table(("rollouts so far", "decisions held", "memory", kinds[0]), imagined),
            table(("horizon", "a batch of dreams", "per frame, of the first"), dreams),
        ]
    )


def main(overrides: list[str]) -> None:
    chosen, settings, _ = options.read(overrides)
    if chosen.peer != "none":
        raise UserError("peer: the flat-cost experiment has no other side; see make bench")
    folder = Path(chosen.out) / (chosen.name or f"flat-{settings.preset}")
    folder.mkdir(parents=True, exist_ok=True)
    facts = measure.machine(pick_device(settings.device))
    values: dict[str, Any] = {"machine": facts}
    for name, rows in (
        ("dreams", dreams(settings, overrides, chosen.repeats)),  # first: before the other two fill the memory
        ("imagined", imagined_buffer(settings, TIMES_ROLLOUTS)),
        ("replay", real_replay(settings, MARKS, folder)),
    ):
        values[name] = []
        for row in rows:
            values[name].append(row)
            print(f"{name}: {row}", flush=True)
    text = report(values)
    write(folder, "flat", text, values)
    print(f"\n{text}\n\nwritten to {folder}")


if __name__ == "__main__":
    command(main)
