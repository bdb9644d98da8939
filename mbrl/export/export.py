"""Recorded episodes or dreams as a LeRobot dataset: `make export RUN=<folder>`, `python -m mbrl.export key=value ...`.

    make export RUN=runs/coffee-push/mbpo/1                        # every episode that it played
    make export RUN=runs/coffee-push/mbpo/1 ARGS=dreams=20         # its policy in its world model
    make export RUN=data/metaworld ARGS='out=data/lerobot/mw'      # what make data wrote

Images are kept to the last bit. `make data SOURCE=lerobot` reads the folder, and so does LeRobot.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from mbrl.collector import record
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import Folder, Positive, Range, Seed, UserError, load_plain
from mbrl.experiment.stored_config import stored_config
from mbrl.interop import load
from mbrl.interop.dream_env import DreamEnv
from mbrl.interop.recordings import Recordings
from world_model.api import Episode

IMAGE = "observation.image"


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    run: Folder
    out: Folder | None
    episodes: Positive | None
    dreams: Annotated[int, Range(0, 1_000_000)]
    horizon: Annotated[int, Range(1, 100_000)] | None
    temperature: Annotated[float, Range(0.0)]
    seed: Seed
    fps: Positive
    task: str | None


def dreams(settings: ExportSettings) -> Iterator[Episode]:
    """Dreams of the run's world model, in which its policy acts without exploring."""
    policy = load(settings.run)
    known = "success" in policy.predictor.heads
    env = DreamEnv(settings.run, horizon=settings.horizon, temperature=settings.temperature)
    for i in range(settings.dreams):
        policy.begin_episode()
        episode = record(env, policy.act, stream_seed(settings.seed, "export", i))
        yield Episode(episode.frames, episode.actions, episode.rewards, successes=episode.successes if known else None)


def main(overrides: list[str]) -> None:
    settings = load_plain(ExportSettings, "export", overrides)
    folder = Path(settings.run)
    if settings.run == "none" or not folder.is_dir():
        raise UserError(f"run={settings.run}: name the folder of a run, or another one that holds recorded episodes")
    from world_model.data.lerobot_writer import write_lerobot

    config: dict[str, Any] = stored_config(folder) or {}
    name = "-".join(folder.resolve().parts[-3:]) if config else folder.resolve().name
    out = Path(settings.out or f"data/lerobot/{name}{'-dreams' if settings.dreams else ''}")
    recordings = Recordings(folder)
    episodes = dreams(settings) if settings.dreams else itertools.islice(recordings, settings.episodes)
    total = settings.dreams or min(len(recordings), settings.episodes or len(recordings))
    bar = progress_bar(episodes, total=total, unit="episode")
    written = write_lerobot(
        out, bar, camera=IMAGE, fps=settings.fps, task=settings.task or str(config.get("task", name))
    )
    print(f"{out}: a LeRobot dataset of {written.episodes} episodes, {written.frames:,} frames")
