"""A page on which a person drives a dream and the simulator beside it, or watches: `make play`, `make watch`.

    python -m mbrl.play task=coffee-push [run=runs/coffee-push/mbpo/1] [model=<folder>] [key=value ...]

The page is served on this machine and loads nothing from elsewhere; docs/play.md describes it. The keys of the command
itself stand in configs/play.yaml.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch

from envs import PIP
from mbrl.experiment.settings import Count, Folder, Settings, UserError, load, load_plain, typed_keys
from mbrl.interop.trained import Trained, open_run, runs_with_weights
from mbrl.play.assemble import assemble
from mbrl.play.conduct import Conduct, Parts, Status
from mbrl.play.keeping import film, reel
from mbrl.play.session import Session
from world_model.hub import ROOT

PUBLISHED = ROOT / "runs" / "published"
POLICY = "policy"
WATCHED = 15  # decisions between two looks of a dream at what is real, when watching
CHANGEABLE = frozenset({"task", "device", "threads"})  # keys that may be typed beside a run
FILM_FPS = 10.0


@dataclasses.dataclass(frozen=True)
class PlayOptions:
    run: Folder
    model: Folder
    watch: bool
    episode: Count
    wake_every: Count | None
    kept: Folder
    gif: Folder
    host: str
    port: Annotated[int, "[0, 65535]"]


def parts_of(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own overrides, and those of a run."""
    own = {field.name for field in dataclasses.fields(PlayOptions)}
    mine = [word for word in overrides if word.split("=")[0] in own]
    return mine, [word for word in overrides if word not in mine]


def read(overrides: Sequence[str]) -> tuple[PlayOptions, Settings, Trained | None]:
    """The command's own keys, the settings of the task, and the run that has learned it, if there is one.

    Raises:
        UserError: a key or a value that does not exist, or no run where one is needed.
    """
    mine, of_run = parts_of(overrides)
    options, asked, typed = load_plain(PlayOptions, "play", mine), load(of_run), typed_keys(of_run)
    name, others = options.run, sorted(typed - CHANGEABLE)
    watched = options.watch or options.gif != "none"
    if name == "none" and not others:
        tasks = [asked.task, *(["*", "*/*"] if watched and "task" not in typed else [])]  # any will do
        found = [run for task in tasks for run in runs_with_weights(task, PUBLISHED)]
        here = Path.cwd()  # the page shows the name, and the shorter one tells more
        name = str(found[0].relative_to(here) if found[0].is_relative_to(here) else found[0]) if found else "none"
    if name == "none":
        if watched:
            raise UserError(_nobody(asked))
        return options, asked, None
    if others:
        raise UserError(f"{others[0]} is the run's own beside run={name}: leave it out")
    trained = open_run(name, **{key: getattr(asked, key) for key in {"device"} | typed & {"threads"}})
    if "task" in typed and asked.task != trained.settings.task:
        raise UserError(f"run={name} learned task={trained.settings.task}, not {asked.task}")
    return options, trained.settings, trained


def _nobody(asked: Settings) -> str:
    """What to do where there is no policy to watch."""
    if own := runs_with_weights(asked.task, Path(asked.run_root)):
        return f"no published run of {asked.task} has weights, but one of yours: add run={own[0]}"
    folder = f"{asked.run_root}/{asked.task}/{asked.agent}/{asked.seed}"
    return f"no run of {asked.task} has weights here: make train TASK={asked.task}, then add run={folder}"


def main(overrides: list[str]) -> None:
    options, settings, trained = read(overrides)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    watched = options.watch or options.gif != "none"
    wake_every = options.wake_every if options.wake_every is not None else WATCHED * watched
    status = Status(wake_every=wake_every)
    if watched:
        status = dataclasses.replace(status, runs=True, pilot=POLICY, again=True)

    def build(session: Session) -> Parts:
        kept = Path(options.kept) / settings.task
        return assemble(settings, trained, options.model, kept, session.wanted_back)

    if trained is not None:
        print(f"{settings.task}: {trained.policy.folder} at frame {trained.policy.frame:,}")
    session = Session(build, status, options.episode)
    if options.gif != "none":
        write_film(Conduct(build(session), status, options.episode), Path(options.gif))
        return
    try:
        from mbrl.play.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"the page needs a package that is not installed ({error}): {PIP} install '.[play]'") from error
    try:
        session.open()
        serve(session, options.host, options.port)
    finally:
        session.close()


def write_film(conduct: Conduct, path: Path) -> None:
    """One episode of the pilot, real | dream | error, as a GIF."""
    while not conduct.over:
        conduct.advance()
    moments = conduct.drive.tree.path(conduct.drive.here)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(film(reel(moments), FILM_FPS, "gif"))
    conduct.drive.close()
    print(f"{path}: {len(moments) - 1} decisions, {'' if any(m.success for m in moments) else 'no '}success")
