"""The page and its web socket, on aiohttp. Nothing is loaded from another host, and no other page can drive.

/                       the page, and /static/ what it is made of
/ws                     messages of `messages.py` in; out, binary: the length of a JSON text (4 bytes, little
                        endian), the text, and two images of the moment that the drive is at: dream, simulator
/moments/<id>           the two images of any moment, uint8 (2, 3, H, W)
/episodes               how many recorded ones there are to begin in, by source
/episodes/<source>/<n>  one of them: JSON as above, then its frames, uint8 (T + 1, 3, H, W)
/film.gif, /film.mp4    what was driven to where the drive is
"""

import asyncio
import ipaddress
import itertools
import json
import secrets
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from socket import gethostname
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from aiohttp import WSMsgType, web
from aiohttp.typedefs import Handler, Middleware

from mbrl.experiment.command import USER_ERRORS
from mbrl.experiment.interrupts import STOPPING
from mbrl.experiment.settings import UserError
from mbrl.play.conduct import Conduct
from mbrl.play.keeping import Format, Reel, film, reel
from mbrl.play.messages import LONGEST, BadMessage, read
from mbrl.play.session import Cursor, Session
from world_model.files import reason

PAGE = Path(__file__).parent / "page"
MOST = 64  # pages at a time
HEARTBEAT_S = 20.0  # a page that does not answer for half as long is gone: a closed laptop, a lost connection
COOKIE = "play"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
SESSION = web.AppKey("session", Session)


class Page:
    """One open tab."""

    numbers = itertools.count(1)

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.name, self.socket = f"page {next(self.numbers)}", socket
        self.news = asyncio.Event()
        self.complaint = ""  # about its last message

    async def tell(self, session: Session) -> None:
        """Tell it what is new, as fast as it takes it in."""
        cursor, first = Cursor(), True
        while True:
            self.news.clear()
            view, cursor = session.view(self.name, cursor)
            told = view.told | ({"about": session.about} if first else {})
            if self.complaint:
                told["complaint"], self.complaint = self.complaint, ""
            await self.socket.send_bytes(packed(told, view.here.dream, view.here.real))
            first = False
            await self.news.wait()


PAGES = web.AppKey("pages", set[Page])


def packed(told: dict[str, Any], *images: np.ndarray) -> bytes:
    text = json.dumps(told, separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(text)), text, *(np.ascontiguousarray(image).tobytes() for image in images)])


# -- who may -----------------------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def guard(token: str | None) -> Middleware:
    """Refuses requests that another site's page makes a browser send, and those without the token if there is one."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.host
        foreign |= request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        # Without a token, only names of this machine: a foreign name may be made to point here.
        foreign |= token is None and not is_loopback(urlsplit(f"//{request.host}").hostname or "")
        if foreign and request.path != "/":
            raise web.HTTPForbidden(text="another site's page may not drive\n")
        if token is not None and not _has(token, request.cookies.get(COOKIE)):
            if not _has(token, request.query.get("token")):
                raise web.HTTPUnauthorized(text="this page needs the token that the command printed: .../?token=...\n")
            response = web.HTTPSeeOther("/")
            response.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
            raise response
        return await handler(request)

    return check


def _has(token: str, given: str | None) -> bool:
    return given is not None and secrets.compare_digest(token.encode(), given.encode())


# -- what is served ----------------------------------------------------------------------------------------------------


def make_app(session: Session, token: str | None) -> web.Application:
    """The application of an open session."""
    app = web.Application(middlewares=[guard(token)])
    app[SESSION] = session
    app[PAGES] = set[Page]()
    app.router.add_get("/", index)
    app.router.add_get("/ws", socket)
    app.router.add_get(r"/moments/{id:\d{1,9}}", images)
    app.router.add_get("/episodes", episodes)
    app.router.add_get(r"/episodes/{source:\w+}/{number:\d{1,9}}", episode)
    app.router.add_get("/film.{format:gif|mp4}", film_of)
    app.router.add_static("/static", PAGE)
    app.on_response_prepare.append(_harden)
    app.on_startup.append(_listen)
    app.on_shutdown.append(_dismiss)
    return app


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


async def _listen(app: web.Application) -> None:
    loop = asyncio.get_running_loop()

    def tell() -> None:
        for page in app[PAGES]:
            page.news.set()

    def changed() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell)

    app[SESSION].changed = changed


async def _dismiss(app: web.Application) -> None:
    app[SESSION].changed = lambda: None
    for page in app[PAGES].copy():
        await page.socket.close(code=1001)


async def index(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(PAGE / "index.html")


async def socket(request: web.Request) -> web.StreamResponse:
    session, pages = request.app[SESSION], request.app[PAGES]
    if len(pages) >= MOST:
        raise web.HTTPServiceUnavailable(text=f"{MOST} pages are open already\n")
    channel = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=LONGEST, compress=False)
    await channel.prepare(request)
    page = Page(channel)
    pages.add(page)
    session.came(page.name)
    telling = asyncio.create_task(_tell(page, session))
    try:
        async for message in channel:
            _hear(page, session, message.data if message.type is WSMsgType.TEXT else "")
    finally:
        pages.discard(page)
        telling.cancel()
        session.left(page.name)
    return channel


async def _tell(page: Page, session: Session) -> None:
    try:
        await page.tell(session)
    except ConnectionError:
        pass  # it is gone; whoever listens to it finds that out


def _hear(page: Page, session: Session, text: str) -> None:
    try:
        if not session.post(page.name, read(text, session.about["actions"])):
            raise BadMessage("too many messages at once")
    except BadMessage as error:
        page.complaint = str(error)
        page.news.set()


async def images(request: web.Request) -> web.StreamResponse:
    moment = request.app[SESSION].moment(int(request.match_info["id"]))
    if moment is None:
        raise web.HTTPNotFound(text="that moment is forgotten\n")
    return web.Response(body=moment.dream.tobytes() + moment.real.tobytes())


async def _asked(request: web.Request, function: Callable[[Conduct], Any]) -> Any:
    """Have something computed by the thread that drives."""
    try:
        return await asyncio.wrap_future(request.app[SESSION].call(function))
    except USER_ERRORS as error:
        raise web.HTTPConflict(text=f"{error}\n") from error


async def episodes(request: web.Request) -> web.StreamResponse:
    def counts(conduct: Conduct) -> dict[str, Any]:
        return {name: {"title": s.title, "count": s.episodes()} for name, s in conduct.parts.sources.items()}

    return web.json_response(await _asked(request, counts))


async def episode(request: web.Request) -> web.StreamResponse:
    source, number = request.match_info["source"], int(request.match_info["number"])
    found = await _asked(request, lambda conduct: conduct.episode(source, number))
    touched = [] if found.successes is None else [int(i) for i in found.successes.nonzero()[0]]
    told = {"decisions": len(found.actions), "success": touched[:1]}
    return web.Response(body=packed(told, found.frames[found.prefix :]))


async def film_of(request: web.Request) -> web.StreamResponse:
    format: Format = "mp4" if request.match_info["format"] == "mp4" else "gif"
    driven: Reel = await _asked(request, lambda conduct: reel(conduct.drive.tree.path(conduct.drive.here)))
    try:
        body = await asyncio.to_thread(film, driven, request.app[SESSION].status.speed, format)
    except UserError as error:
        raise web.HTTPConflict(text=f"{error}\n") from error
    return web.Response(body=body, content_type="image/gif" if format == "gif" else "video/mp4")


# -- serving -----------------------------------------------------------------------------------------------------------


def serve(session: Session, host: str, port: int) -> None:
    """Until Ctrl-C. Raises UserError: it cannot listen there."""
    token = None if is_loopback(host) else secrets.token_urlsafe(16)
    asyncio.run(_serve(make_app(session, token), host, port, token))


async def _serve(app: web.Application, host: str, port: int, token: str | None) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except (OSError, UnicodeError) as error:
        await runner.cleanup()
        raise UserError(f"cannot listen at host={host} port={port}: {reason(error)}; port=0 is a free one") from error
    bound = runner.addresses[0]
    print(_address(bound[0], bound[1], token), flush=True)
    print("Ctrl-C ends it", flush=True)
    await stop.wait()
    await runner.cleanup()


def _address(host: str, port: int, token: str | None) -> str:
    if ipaddress.ip_address(host).is_unspecified:
        host = gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
