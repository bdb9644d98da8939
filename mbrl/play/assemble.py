"""From settings to what is driven: the dream, the simulator, the pilots, the episodes to begin in."""

from collections.abc import Callable
from pathlib import Path

import envs
from mbrl.build import make_env
from mbrl.experiment import demonstrations
from mbrl.experiment.episodes import EpisodeStore
from mbrl.experiment.settings import Settings, UserError, pick_device
from mbrl.interop.trained import Trained, world_of
from mbrl.play.conduct import Parts, Source
from mbrl.play.controls import levers
from mbrl.play.drive import Drive
from mbrl.play.pilots import Expert, Learned, Pilot, PlanAhead
from mbrl.replay import Episode


def assemble(
    settings: Settings, trained: Trained | None, model: str, kept: Path, wanted_back: Callable[[], bool]
) -> Parts:
    """Everything of a play.

    Args:
        model: a folder of a world model, or "none" for the run's or that of the settings.
        kept: where demonstrations go.
        wanted_back: see `PlanAhead`.
    Raises:
        UserError, WeightsError, and what `envs.make` raises: one line each.
    """
    device, env = pick_device(settings.device), make_env(settings)
    world, called = world_of(settings, env, device, model, trained)
    (action_dim,), suite = env.action_space.shape, envs.suite_of(settings.task)
    drive = Drive(world, env, stack=settings.frame_stack, seed=settings.seed)
    pilots: dict[str, Pilot] = {}
    if trained is not None:
        pilots["policy"] = Learned(trained.policy)
    scripted = envs.has_expert(settings.task)
    if scripted:
        pilots["expert"] = Expert()
    if "reward" in world.heads:
        pilots["planner"] = PlanAhead(action_dim, settings.seed, wanted_back)
    about = {
        "task": settings.task,
        "model": called,
        "run": None if trained is None else str(trained.policy.folder),
        "frames": None if trained is None else trained.policy.frame,
        "actions": action_dim,
        "size": settings.image_size,
        "episode": drive.episode_decisions,
        "heads": list(world.heads),
        "levers": [lever._asdict() for lever in levers(suite.name, settings.camera, action_dim)],
        "pilots": list(pilots),
        "kept": str(kept),
    }
    return Parts(drive, pilots, _sources(drive, scripted, trained, kept), _keeper(kept, settings), about)


def _sources(drive: Drive, experts: bool, trained: Trained | None, kept: Path) -> dict[str, Source]:
    """Where a drive can begin, other than at a reset."""
    found = {"kept": _stored("demonstration", kept)}
    if experts:
        found["expert"] = Source("the expert's episode", lambda: None, drive.expert_episode)
    if trained is not None and (replay := trained.policy.folder / "replay").is_dir():
        found["episode"] = _stored("the run's episode", replay)
    return found


def _stored(title: str, folder: Path) -> Source:
    """Episode files, counted from 0 over those that are there."""

    def load(number: int) -> Episode:
        store = EpisodeStore(folder)
        index = store.indices()[number]
        episode = next(store.load([index]), None)
        if episode is None:
            raise UserError(f"{store.path(index)} is damaged")
        return episode

    return Source(title, lambda: demonstrations.count(folder), load)


def _keeper(folder: Path, settings: Settings) -> Callable[[Episode], str]:
    def keep(episode: Episode) -> str:
        path = demonstrations.keep(folder, episode, settings)
        solved = episode.successes is not None and episode.successes.any()
        touched = "" if solved else " (it never touches success)"
        return f"kept {len(episode.actions)} decisions as {path}{touched}; train with demonstrations={folder}"

    return keep
