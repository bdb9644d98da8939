"""A play as small as it gets, a server of it in a thread, and pages that visit it."""

import asyncio
import contextlib
import json
import random
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import numpy as np
import torch
from aiohttp import web
from tiny import tiny

from mbrl.build import make_env, make_world
from mbrl.experiment.settings import Settings, load
from mbrl.interop.trained import Trained
from mbrl.play.assemble import assemble
from mbrl.play.conduct import Conduct, Parts, Status
from mbrl.play.drive import Drive
from mbrl.play.messages import Message
from mbrl.play.server import make_app
from mbrl.play.session import Session

NOWHERE = Path("nowhere")
SIZE = 3 * 32 * 32  # bytes of an image
TIMEOUT = aiohttp.ClientTimeout(total=30)


def settings_of(*overrides: str) -> Settings:
    """Those of a tiny run."""
    return load([*tiny(NOWHERE, *overrides)])


def make_drive(*overrides: str) -> Drive:
    """A drive of toy/reach in a random model whose actions do something."""
    settings = settings_of(*overrides)
    env = make_env(settings)
    torch.manual_seed(0)
    world = make_world(settings, env, torch.device("cpu"))
    if settings.world_model.kind == "ivideogpt":
        torch.nn.init.normal_(world.model.action_linear.weight)  # type: ignore[attr-defined]
    drive = Drive(world, env, stack=3, seed=1)
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


def unpack(data):
    (length,) = struct.unpack("<I", data[:4])
    return json.loads(data[4 : 4 + length]), np.frombuffer(data[4 + length :], np.uint8)


class Tab:
    """A page's end of the web socket, keeping what a page keeps."""

    def __init__(self, channel):
        self.channel, self.told, self.about, self.moments, self.complaints = channel, {}, {}, {}, []

    async def hear(self):
        self.told, images = unpack((await asyncio.wait_for(self.channel.receive(), 30)).data)
        assert images.size == 2 * SIZE
        self.about = self.told.get("about", self.about)
        if self.told["whole"]:
            self.moments.clear()
        self.moments |= {moment["id"]: moment for moment in self.told["moments"]}
        if "complaint" in self.told:
            self.complaints.append(self.told["complaint"])
        return images

    async def until(self, true):
        while not (self.told and true(self.told)):
            await self.hear()

    async def say(self, do, **fields):
        await self.channel.send_str(json.dumps({"do": do} | fields))


def visit(address, scenario, headers=None, **options):
    """Run `scenario(client, tab)` as a page would."""

    async def run():
        async with aiohttp.ClientSession(address, timeout=TIMEOUT, headers=headers, **options) as client:
            async with client.ws_connect("/ws") as channel:
                return await scenario(client, Tab(channel))

    return asyncio.run(run())


def status(address, path, **headers):
    """Of a GET request with these headers."""

    async def run():
        async with aiohttp.ClientSession(address, timeout=TIMEOUT) as client:
            async with client.get(path, headers=headers, allow_redirects=False) as answer:
                return answer.status, await answer.read(), answer

    return asyncio.run(run())


async def answers(client, tab):
    """The server goes on."""
    await tab.hear()
    here = tab.told["here"]
    await tab.say("step")
    await tab.until(lambda told: told["here"] > here)


def garbage(count, seed=0):
    """Text that no page sends: noise, broken JSON, right names with wrong fields, numbers of every kind."""
    dice = random.Random(seed)
    values = [None, True, -1, 1e999, float("nan"), "x" * 50, [], [1] * 3, {}, {"a": 1}, 2**70, [None, 0], "\u0000"]
    names = "hold go start pilot temperature wake_every eyes speed step run nothing __init__".split()
    fields = "do action moving seq moment name value decisions on source number".split()
    for _ in range(count):
        kind = dice.randrange(4)
        if kind == 0:
            yield "".join(chr(dice.randrange(1, 0x2FF)) for _ in range(dice.randrange(60)))
        elif kind == 1:
            yield "[" * dice.randrange(5000)
        else:
            message = {dice.choice(fields): dice.choice(values) for _ in range(dice.randrange(5))}
            if kind == 3:
                message["do"] = dice.choice(names)
            text = json.dumps(message)
            yield text[: dice.randrange(len(text) + 1)] if dice.random() < 0.2 else text
