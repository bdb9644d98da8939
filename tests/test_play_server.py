"""The server of the page: what it refuses, what it survives, what it serves (`mbrl/play/server.py`)."""

import asyncio
import logging
import resource
import socket
import threading
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from playing import SIZE, Tab, answers, garbage, served, session_of, unpack, visit

from mbrl.play import server


@pytest.fixture
def session(tmp_path):
    with session_of(tmp_path) as session:
        yield session


# -- what it is for ----------------------------------------------------------------------------------------------------


def test_a_page_drives_goes_back_and_branches(session):
    async def scenario(client, tab):
        await tab.hear()
        start, about = tab.told["here"], tab.about
        assert (about["task"], about["actions"], about["pilots"]) == ("toy/reach", 2, ["expert", "planner"])
        images = []
        for seq in range(1, 6):
            await tab.say("hold", action=[1, 0], moving=True, seq=seq)
            await tab.say("hold", action=[0, 0], moving=False, seq=100 + seq)
            await tab.until(lambda told, seq=seq: told["heeded"] == seq)
            await tab.until(lambda told: len(told["moments"]) == 0 or told["here"] == told["moments"][-1]["id"])
            async with client.get(f"/moments/{tab.told['here']}") as answer:
                images.append(await answer.read())
        way = [tab.told["here"]]
        while (parent := tab.moments[way[-1]]["parent"]) is not None:
            way.append(parent)
        assert way[-1] == start
        middle = way[2]
        await tab.say("go", moment=middle)
        await tab.until(lambda told: told["here"] == middle)
        async with client.get(f"/moments/{middle}") as answer:
            assert await answer.read() == images[2], "the frames that were there"
        await tab.say("step")
        await tab.until(lambda told: told["here"] not in (*way, middle))
        branch = tab.moments[tab.told["here"]]
        assert (branch["parent"], branch["pilot"], branch["depth"]) == (middle, "you", 4)
        assert branch["predicted"].keys() == {"reward"}

    with served(session) as address:
        visit(address, scenario)


def test_all_pages_show_the_same(session):
    async def scenario(client, tab):
        async with client.ws_connect("/ws") as channel:
            other = Tab(channel)
            await other.hear()
            await tab.say("step")
            await other.until(lambda told: told["here"] == 1)
            await tab.until(lambda told: told["here"] == 1)
            assert other.moments == tab.moments
        async with client.ws_connect("/ws") as channel:
            late = Tab(channel)
            await late.hear()
            assert late.moments == tab.moments

    with served(session) as address:
        visit(address, scenario)


def test_recorded_episodes_and_films(session):
    async def scenario(client, tab):
        async with client.get("/film.gif") as answer:
            assert (answer.status, await answer.text()) == (409, "nothing was driven yet\n")
        async with client.get("/episodes") as answer:
            sources = await answer.json()
        assert sources["expert"] == {"title": "the expert's episode", "count": None}
        async with client.get("/episodes/expert/3") as answer:
            told, frames = unpack(await answer.read())
        assert told["decisions"] == 10
        assert frames.size == 11 * SIZE
        async with client.get("/episodes/kept/3") as answer:
            assert (answer.status, await answer.text()) == (
                409,
                "demonstration: there are 0 episodes, counted from 0\n",
            )
        await tab.say("start", source="expert", number=3, decision=4)
        await tab.until(lambda told: told["moments"] and told["moments"][-1]["depth"] == 4)
        assert np.array_equal((await tab_images(client, tab))[1], frames.reshape(11, -1)[4])
        await tab.say("step")
        await tab.until(lambda told: tab.moments[told["here"]]["depth"] == 5)
        for format, begins in (("gif", b"GIF89a"), ("mp4", b"\x00\x00\x00")):
            async with client.get(f"/film.{format}") as answer:
                assert answer.status == 200
                assert (await answer.read()).startswith(begins)

    with served(session) as address:
        visit(address, scenario)


async def tab_images(client, tab):
    async with client.get(f"/moments/{tab.told['here']}") as answer:
        return np.frombuffer(await answer.read(), np.uint8).reshape(2, -1)


def test_what_could_not_be_done_is_told(session):
    async def scenario(client, tab):
        await tab.say("go", moment=77)
        await tab.until(lambda told: told.get("note"))
        assert (tab.told["note"], tab.told["fault"]) == ("that moment is forgotten", True)
        await tab.say("step")
        await tab.until(lambda told: told["here"] == 1)

    with served(session) as address:
        visit(address, scenario)


def test_nothing_goes_on_while_no_page_is_open(tmp_path):
    with session_of(tmp_path, runs=True, speed=60.0) as session, served(session) as address:
        assert len(session.conduct.drive.tree) == 1

        async def scenario(client, tab):
            await tab.until(lambda told: told["here"] > 3)

        visit(address, scenario)
        deadline = time.monotonic() + 10
        while session._pages and time.monotonic() < deadline:
            time.sleep(0.01)
        session.call(lambda conduct: None).result()
        count = len(session.conduct.drive.tree)
        time.sleep(0.3)
        assert len(session.conduct.drive.tree) == count
        visit(address, scenario)


# -- what it survives --------------------------------------------------------------------------------------------------


def memory_mb():
    """Of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def test_garbage_harms_nothing(session, caplog):
    async def flood(client, tab, count, seed):
        for i, text in enumerate(garbage(count, seed)):
            await (tab.channel.send_bytes(text.encode()) if i % 9 == 0 else tab.channel.send_str(text))
            if i % 50 == 0:
                await asyncio.sleep(0)
        await tab.say("temperature", value=0.25 + seed / 100)
        await tab.until(lambda told: told.get("temperature") == 0.25 + seed / 100)
        return tab.complaints

    with served(session) as address, caplog.at_level(logging.WARNING):
        assert visit(address, lambda client, tab: flood(client, tab, 200, 0))
        before = memory_mb()
        for seed in range(1, 6):
            visit(address, lambda client, tab, seed=seed: flood(client, tab, 1000, seed))
        assert memory_mb() - before < 20
        visit(address, answers)
    assert caplog.records == []


def test_a_message_of_any_length_is_refused(session, caplog):
    async def scenario(client, tab):
        await tab.channel.send_str("x" * 10**6)
        while (message := await tab.channel.receive()).type is aiohttp.WSMsgType.BINARY:
            pass
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1009)

    with served(session) as address, caplog.at_level(logging.WARNING):
        visit(address, scenario)
        visit(address, answers)
    assert caplog.records == []


def test_twenty_tabs_come_and_go(session, caplog):
    async def scenario(client, tab):
        for _ in range(2):
            channels = [await client.ws_connect("/ws") for _ in range(20)]
            tabs = [Tab(channel) for channel in channels]
            for one in tabs:
                await one.hear()
                await one.say("hold", action=[1, 0], moving=True, seq=1)
            for channel in channels[::2]:
                await channel.close()
            for channel in channels[1::2]:
                channel._response.connection.transport.abort()  # a lost connection says nothing
        await answers(client, tab)

    with served(session) as address, caplog.at_level(logging.WARNING):
        visit(address, scenario)
        visit(address, answers)
        deadline = time.monotonic() + 10
        while session._pages and time.monotonic() < deadline:
            time.sleep(0.01)
        assert session._pages == 0
        session.call(lambda conduct: None).result()
        assert session.conduct.heeded == {}
        assert not session.conduct.due, "nobody holds a key any more"
    assert caplog.records == []


def test_too_many_pages_are_refused(session, monkeypatch):
    monkeypatch.setattr(server, "MOST", 1)

    async def scenario(client, tab):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
            await client.ws_connect("/ws")

    with served(session) as address:
        visit(address, scenario)


def test_a_page_that_stops_reading_holds_nobody_up(tmp_path, monkeypatch, caplog):
    """What it does not read does not pile up, and when it answers no ping it is dropped."""
    pages, make = [], server.Page
    monkeypatch.setattr(server, "Page", lambda socket: pages.append(make(socket)) or pages[-1])
    monkeypatch.setattr(server, "HEARTBEAT_S", 6.0)
    with session_of(tmp_path, runs=True, speed=60.0) as session, served(session) as address:
        host, port = address.removeprefix("http://").split(":")
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((host, int(port)))
        deaf.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

        async def scenario(client, tab):
            await tab.until(lambda told: len(pages) == 2)
            transport = pages[0].socket._req.transport
            most, dropped = 0, False
            while not dropped:  # in half of HEARTBEAT_S behind a ping
                await tab.hear()
                most = max(most, transport.get_write_buffer_size())
                dropped = session._pages == 1
            assert tab.told["here"] > 20
            assert most < 200_000

        visit(address, scenario)
        deaf.close()
        visit(address, answers)
    assert caplog.records == []


def test_too_many_messages_at_once_are_dropped(session):
    busy = threading.Event()
    session.call(lambda conduct: busy.wait(30))

    async def scenario(client, tab):
        for _ in range(400):
            await tab.say("run", on=False)
        await tab.until(lambda told: tab.complaints)
        busy.set()
        assert tab.complaints[0] == "too many messages at once"
        await answers(client, tab)

    with served(session) as address:
        visit(address, scenario)
