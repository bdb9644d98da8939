"""Fill the training format with video to pre-train on: `make data`, `python -m mbrl.data key=value ...`.

    make data                                                       # Meta-world, played by scripted experts
    make data SOURCE=lerobot ARGS='path=downloads/pusht'            # a dataset that is on this machine

Sources are `mbrl/data/scripted.py` and the readers in `world_model/data/`. Each shard is a job of its own: jobs run in
parallel, and the same command again makes only those that are missing. What is made depends on the settings alone, not
on the number of workers. A damaged clip is left out and named.
"""

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch

from envs import suite_of
from mbrl.data.scripted import ScriptedPlay, chosen_tasks
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.capacity import Need, refuse_too_large
from mbrl.experiment.interrupts import ignored_by_children
from mbrl.experiment.planned import dry_run
from mbrl.experiment.settings import Count, Folder, Name, Positive, Range, Seed, Threads, UserError, load_plain, to_dict
from mbrl.pretrain.mixture import load_mixture
from world_model.data import DataError, Reader, SourceOptions, make_reader, shard_names, write_shard
from world_model.files import READ_OR_MEMORY_ERRORS, read_json, reading, reason

NAMED = 5  # damaged clips named on the screen; the file has them all
# Keys that may differ from one run into a folder to the next: they add shards and change none.
FREE_KEYS = frozenset({"out", "workers", "task_names", "episodes_per_task"})


@dataclasses.dataclass(frozen=True)
class DataSettings:
    source: Literal["metaworld", "npz", "lerobot", "rlds", "ssv2", "bair", "robonet"]
    out: Folder
    shard_episodes: Positive
    workers: Threads
    image_size: Positive
    # of everything but metaworld
    path: Folder
    name: Name
    mixture: Name
    image_key: str | None
    crop: Literal["none", "center"]
    step: Positive | None
    actions: bool
    classes: tuple[Count, ...]
    # of metaworld
    task_names: tuple[str, ...]
    episodes_per_task: Positive
    seed: Seed
    action_repeat: Positive
    episode_frames: Positive | None
    success_bonus: Annotated[float, Range(0.0)]
    camera: str
    render_quality: Literal["fast", "paper"]


class Job(NamedTuple):
    """One shard."""

    name: str
    units: Sequence[Any]
    settings: DataSettings


class Done(NamedTuple):
    units: int
    episodes: int
    skipped: list[str]  # damaged clips, each with the reason
    left_out: int = 0  # episodes that a mixture leaves out


def dataset_name(settings: DataSettings) -> str:
    """What the shards are called after: `name`, or the source's folder without a version number."""
    if settings.source == "metaworld":
        return suite_of(chosen_tasks(settings.task_names)[0]).name
    if settings.name != "auto":
        return settings.name
    folder = Path(settings.path).resolve()
    return folder.parent.name if folder.name.replace(".", "").isdecimal() else folder.name


def open_source(settings: DataSettings) -> Reader:
    """Raises UserError or DataError: there is no such folder, or not what the source needs."""
    s = settings
    if s.source == "metaworld":
        names = [field.name for field in dataclasses.fields(ScriptedPlay)]
        return ScriptedPlay(**{name: getattr(s, name) for name in names})
    if s.path == "none":
        raise UserError(f"source={s.source} needs path=<folder that holds it>")
    name = dataset_name(s)
    subset = load_mixture(s.mixture).get(name) if s.mixture != "none" else None
    if s.mixture != "none" and subset is None:
        raise UserError(f"mixture={s.mixture} has no {name}; add name=<its name there>")
    return make_reader(
        s.source,
        SourceOptions(
            path=Path(s.path),
            name=name,
            image_key=s.image_key or (subset.image_key if subset else None),
            image_size=s.image_size,
            crop=s.crop,
            step=s.step or (subset.step if subset else 1),
            actions=s.actions and subset is None,
            classes=s.classes or (subset.classes if subset else ()),
            left_out=subset.left_out_names if subset else frozenset(),
        ),
    )


def jobs(settings: DataSettings) -> list[Job]:
    """All shards, made or not."""
    shards = open_source(settings).shards(settings.shard_episodes)
    return [Job(name, units, settings) for name, units in shards.items()]


def missing(jobs: list[Job]) -> list[Job]:
    """Those whose shards are not there yet."""
    there = shard_names(jobs[0].settings.out) if jobs else set()
    return [job for job in jobs if job.name not in there]


def record(job: Job) -> Done:
    """Read or play one shard and write it. Without a single good clip there will be no shard."""
    episodes, skipped, left_out = [], [], 0
    for name, read in open_source(job.settings).clips(job.units):
        try:
            if (episode := read()) is not None:
                episodes.append(episode)
            else:
                left_out += 1
        except DataError:  # a missing package, not a damaged clip
            raise
        except READ_OR_MEMORY_ERRORS as error:
            skipped.append(f"{name}: {reason(error)}")
    if episodes:
        write_shard(job.settings.out, job.name, episodes, dataset_name(job.settings))
    return Done(len(job.units), len(episodes), skipped, left_out)


def check_same(settings: DataSettings) -> None:
    """Note what made the shards of this name. Raises UserError if others of them were made differently."""
    file = Path(settings.out) / f"{dataset_name(settings)}.json"
    now = {key: value for key, value in to_dict(settings).items() if key not in FREE_KEYS}
    if settings.mixture != "none" and (names := load_mixture(settings.mixture)[dataset_name(settings)].left_out_names):
        now["left_out"] = len(names)
    before = now
    if file.exists():
        with reading(file):
            before = dict(read_json(file))
    if differing := [key for key in now if before.get(key) != now[key]]:
        key = differing[0]
        raise UserError(
            f"{settings.out} holds {dataset_name(settings)} made with {key}={before.get(key)}, not {now[key]}; "
            "choose another out, or another name"
        )
    file.write_text(json.dumps(now, indent=1) + "\n")


def in_parallel(some: list[Job], workers: int) -> Iterator[Done]:
    """In the order in which they are done."""
    if min(workers, len(some)) < 2:
        yield from map(record, some)
        return
    # Spawned, not forked: an OpenGL context must not be shared.
    context = multiprocessing.get_context("spawn")
    with ignored_by_children():
        pool = context.Pool(min(workers, len(some)), torch.set_num_threads, (1,))
    with pool:
        yield from pool.imap_unordered(record, some)


def needs(settings: DataSettings) -> Iterator[Need]:
    """Before anything is listed; how much other sources hold shows only when they are read."""
    s = settings
    frame = 3 * s.image_size**2
    yield Need(f"image_size={s.image_size}", frame)
    if s.source == "metaworld":
        episodes = len(chosen_tasks(s.task_names)) * s.episodes_per_task
        keys = f"episodes_per_task={s.episodes_per_task}, image_size={s.image_size}"
        yield Need(keys, episodes * _frames(s) * frame, s.out)


def _frames(settings: DataSettings) -> int:
    """Of an episode that is played; where the simulator alone knows how long it is, at least one."""
    suite = suite_of(chosen_tasks(settings.task_names)[0])
    return (settings.episode_frames or suite.episode_frames) // settings.action_repeat + 1


def plan(settings: DataSettings, reader: Reader, total: int, ahead: int, workers: int) -> str:
    """What will be made of `total` episodes or files of which `ahead` are left, in one line."""
    s = settings
    source = (
        f"{suite_of(chosen_tasks(s.task_names)[0]).name}, {len(chosen_tasks(s.task_names))} tasks"
        if s.source == "metaworld"
        else f"{s.source}, {s.path}"
    )
    size = f" ({s.image_size}x{s.image_size} pixels)"
    if s.source == "metaworld":
        size = f" (about {ahead * _frames(s) * 3 * s.image_size**2 / 1e9:.2g} GB, {s.image_size}x{s.image_size} pixels)"
    return f"{source}: {ahead} of {total} {reader.unit}s to make{size}, in {workers} processes, into {s.out}"


def main(overrides: list[str]) -> None:
    overrides, dry = dry_run(overrides)
    settings = load_plain(DataSettings, "data", overrides)
    refuse_too_large(needs(settings), "cpu")
    out = Path(settings.out)
    reader, everything = open_source(settings), jobs(settings)
    if not dry:
        out.mkdir(parents=True, exist_ok=True)
        check_same(settings)
    left = missing(everything)
    total, ahead = (sum(len(job.units) for job in some) for some in (everything, left))
    workers = min(settings.workers or os.cpu_count() or 1, max(1, len(left)))
    print(plan(settings, reader, total, ahead, workers), flush=True)
    if dry:
        return
    episodes, skipped, left_out = 0, [], 0
    with progress_bar(total=total, initial=total - ahead, unit=reader.unit) as bar:
        for done in in_parallel(left, workers):
            episodes += done.episodes
            skipped += done.skipped
            left_out += done.left_out
            bar.update(done.units)
            if skipped:
                bar.set_postfix(skipped=len(skipped))
    print(f"{out}: {episodes} episodes added; {len(everything) - len(left)} of {len(everything)} shards were there")
    if left_out:
        print(f"left out: {left_out} episodes that mixture={settings.mixture} keeps for testing")
    if skipped:
        listed = out / f"{dataset_name(settings)}-skipped.txt"
        listed.write_text("\n".join(sorted(skipped)) + "\n")
        more = f"\n  ... all in {listed}" if len(skipped) > NAMED else ""
        print(f"damaged and skipped: {len(skipped)}\n  " + "\n  ".join(sorted(skipped)[:NAMED]) + more)
    if left and not episodes:
        raise UserError(f"path={settings.path}: not one clip could be read")
