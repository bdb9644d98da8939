"""Whom the page lets in (`mbrl/play/server.py`)."""

import asyncio
import socket

import aiohttp
import pytest
from playing import answers, served, session_of, status, visit

from mbrl.experiment.settings import UserError
from mbrl.interop.trained import open_run
from mbrl.play import server


@pytest.fixture
def session(tmp_path):
    with session_of(tmp_path) as session:
        yield session


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
    ],
    ids=str,
)
def test_another_sites_page_cannot_drive(session, headers):
    async def refused(client, tab):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await client.ws_connect("/ws", headers=headers)

    with served(session) as address:
        visit(address, refused)
        for path in ("/film.gif", "/moments/0", "/episodes", "/static/main.js"):
            assert status(address, path, **headers)[0] == 403
        own = address.removeprefix("http://")
        visit(address, answers, {"Origin": address, "Sec-Fetch-Site": "same-origin"})
        assert status(address, "/moments/0", Host=own.replace("127.0.0.1", "localhost"))[0] == 200


def test_with_a_token_nobody_comes_in_without_it(session):
    with served(session, token="sesame") as address:
        for path in ("/", "/ws", "/static/main.js", "/moments/0", "/?token=wrong", "/?token=s%C3%A9same"):
            assert status(address, path)[0] == 401
        code, _, answer = status(address, "/?token=sesame")
        assert (code, answer.headers["Location"]) == (303, "/")
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert status(address, "/moments/0", Cookie=cookie.split(";")[0])[0] == 200
        assert status(address, "/ws", Cookie=cookie.split(";")[0], Origin="http://evil.example")[0] == 403


def test_which_hosts_need_a_token(session, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(server, "_serve", lambda app, host, port, token: asyncio.sleep(0, made.append(token)))
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        server.serve(session, host, 0)
    assert made == [None] * 4
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        server.serve(session, host, 0)
    assert len(set(made[4:])) == 4
    assert all(len(token) > 20 for token in made[4:])


def test_a_port_that_is_taken(session):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at host=127.0.0.1 port={port}: .*port=0 is a free one"):
            server.serve(session, "127.0.0.1", port)


def test_nothing_of_the_page_comes_from_elsewhere(session):
    with served(session) as address:
        code, page, answer = status(address, "/")
        assert code == 200
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        for path in sorted(server.PAGE.iterdir()):
            code, text, _ = status(address, f"/static/{path.name}")
            assert (code, text) == (200, path.read_bytes())
            assert b"http://" not in text.replace(b"http://www.w3.org/2000/svg", b"")
            assert b"https://" not in text
        assert status(address, "/static/../server.py")[0] == 404
        assert b"<script" in page


def test_a_session_that_cannot_be_built_says_why(tmp_path):
    with pytest.raises(UserError, match="has no checkpoints"), session_of(tmp_path, open_run(str(tmp_path))):
        pass
