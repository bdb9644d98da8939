"""A play as small as it gets, and a server of it in a thread."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tiny import tiny

from mbrl.build import make_world
from mbrl.experiment.settings import Settings, load
from mbrl.play.assemble import assemble
from mbrl.play.conduct import Conduct, Parts, Status
from mbrl.play.drive import Drive
from mbrl.play.messages import Message
from mbrl.play.session import Session
from mbrl.trained import Trained, endless_env

NOWHERE = Path("nowhere")


def settings_of(*overrides: str) -> Settings:
    """Those of a tiny run."""
    return load([*tiny(NOWHERE, *overrides)])


def make_drive(*overrides: str) -> Drive:
    """A drive of toy/reach in a random model whose actions do something."""
    settings = settings_of(*overrides)
    env = endless_env(settings)
    torch.manual_seed(0)
    world = make_world(settings, env, torch.device("cpu"))
    if settings.world_model.kind == "ivideogpt":
        torch.nn.init.normal_(world.model.action_linear.weight)  # type: ignore[attr-defined]
    drive = Drive(world, env, episode_decisions=10, stack=3, seed=1)
    drive.begin(drive.fresh(seed=3))
    return drive


def actions(count: int, seed: int = 0) -> np.ndarray:
    """Float32 (count, 2)."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)


def make_parts(kept: Path, trained: Trained | None = None, wanted_back: Callable[[], bool] = lambda: False) -> Parts:
    settings = settings_of() if trained is None else trained.settings
    return assemble(settings, trained, "none", kept, wanted_back)


def make_conduct(kept: Path, trained: Trained | None = None, **status: object) -> Conduct:
    return Conduct(make_parts(kept, trained), Status(**status), episode=0)  # type: ignore[arg-type]


def say(conduct: Conduct, do: str, page: str = "a", **fields: object) -> None:
    conduct.do(page, Message(do, fields))


@contextlib.contextmanager
def session_of(kept: Path, trained: Trained | None = None, **status: object) -> Iterator[Session]:
    """An open session."""
    session = Session(
        lambda session: make_parts(kept, trained, session.wanted_back),
        Status(**status),  # type: ignore[arg-type]
        episode=0,
    )
    try:
        session.open()
        yield session
    finally:
        session.close()


@contextlib.contextmanager
def served(session: Session, token: str | None = None, port: int = 0) -> Iterator[str]:
    """Its address while a thread serves it."""
    from aiohttp import web

    from mbrl.play.server import make_app

    loop, started, runners = asyncio.new_event_loop(), threading.Event(), []

    async def start() -> None:
        runner = web.AppRunner(make_app(session, token))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        runners.append(runner)
        started.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runners[0].cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{runners[0].addresses[0][1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
