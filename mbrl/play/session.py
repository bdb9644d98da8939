"""A play in a thread of its own, and what the pages see of it.

    session = Session(build, status, episode=0)   # build(session) makes the parts in that thread: OpenGL wants it so
    session.changed = wake_up                  # is called, in that thread, when there is something new to see
    session.open()
    session.post("tab 1", message)             # from any thread
    told, cursor = session.view("tab 1", cursor)   # what a page that has seen `cursor` does not know yet
    session.close()

Nothing waits for a page: it is told what is new when it asks, however long that is ago.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from mbrl.experiment.command import USER_ERRORS
from mbrl.play.conduct import Conduct, Parts, Status
from mbrl.play.messages import Message
from mbrl.play.tree import Moment

T = TypeVar("T")
PENDING = 200  # messages that wait; more are dropped
RECENT = 8  # steps that the rate is a mean over
TAKES_OVER = frozenset({"hold", "run", "pilot", "start", "go"})


class Cursor(NamedTuple):
    """What a page has seen."""

    forgotten: int = -1
    moments: int = 0


class View(NamedTuple):
    """What a page is told."""

    told: dict[str, Any]
    here: Moment


class Session:
    def __init__(self, build: Callable[[Session], Parts], status: Status, episode: int) -> None:
        self.status = status
        self.changed: Callable[[], None] = lambda: None
        self._build, self._episode = build, episode
        self._lock = threading.Condition()
        self._queue = deque[tuple[str, Message] | Callable[[], None]]()
        self._closing = False
        self._pages = 0
        self._records: list[dict[str, Any]] = []  # of the moments, oldest first
        self._moments: dict[int, Moment] = {}
        self._forgotten = 0
        self._here: Moment
        self._steps = deque[float](maxlen=RECENT)  # when they began, while time goes on
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, name="play", daemon=True)
        self.conduct: Conduct
        self.about: dict[str, Any]

    # -- for other threads -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Build and begin. Raises whatever building raises."""
        self._thread.start()
        self._ready.result()

    def post(self, page: str, message: Message) -> bool:
        """Have it done; False where too much waits already."""
        with self._lock:
            if len(self._queue) >= PENDING:
                return False
            self._queue.append((page, message))
            self._lock.notify()
        return True

    def call(self, function: Callable[[Conduct], T]) -> Future[T]:
        """Have something computed in between, in the thread of the play."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(self.conduct))
            except Exception as error:  # noqa: BLE001, it is raised where the result is asked for
                future.set_exception(error)

        with self._lock:
            self._queue.append(run)
            self._lock.notify()
        return future

    def came(self, page: str) -> None:
        """A page is there. Nothing goes on while there is none."""
        with self._lock:
            self._pages += 1
            self._lock.notify()

    def left(self, page: str) -> None:
        with self._lock:
            self._pages -= 1
            self._queue.append(lambda: self.conduct.left(page))
            self._lock.notify()

    def view(self, page: str, cursor: Cursor) -> tuple[View, Cursor]:
        """What is new behind `cursor`, and the cursor behind it."""
        with self._lock:
            whole = cursor.forgotten != self._forgotten
            told = dataclasses.asdict(self.status) | {
                "here": self._here.id,
                "rate": self._rate(),
                "heeded": self.conduct.heeded.get(page, 0),
                "whole": whole,
                "moments": self._records[0 if whole else cursor.moments :],
            }
            return View(told, self._here), Cursor(self._forgotten, len(self._records))

    def moment(self, number: int) -> Moment | None:
        """None: there never was one of that number, or it is forgotten."""
        with self._lock:
            return self._moments.get(number)

    def wanted_back(self) -> bool:
        """Whether a message waits that may end what a pilot does."""
        with self._lock:
            waiting = [entry[1] for entry in self._queue if isinstance(entry, tuple)]
            return self._closing or any(
                message.do in TAKES_OVER and message.fields.get("moving", True) for message in waiting
            )

    def close(self) -> None:
        """Stop, whatever waits."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            parts = self._build(self)
            self.conduct, self.about = Conduct(parts, self.status, self._episode), parts.about
            self._publish()
        except BaseException as error:  # noqa: BLE001, `open` raises it
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        while (job := self._next()) is not None:
            try:
                job()
            except Exception as error:  # noqa: BLE001, whatever goes wrong, the page stays
                self._tell(error)
            self._publish()
        parts.drive.close()

    def _tell(self, error: Exception) -> None:
        """The pages what could not be done, and the terminal what should not have happened."""
        line = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, USER_ERRORS):
            print(f"error: {type(error).__name__}: {line}", file=sys.stderr)
        self.status.runs = False
        self.conduct.note(line, fault=True)

    def _next(self) -> Callable[[], None] | None:
        """What is to be done next; None at the end."""
        with self._lock:
            while not self._closing:
                if self._queue:
                    waiting = self._queue.popleft()
                    if isinstance(waiting, tuple):
                        return lambda: self.conduct.do(*waiting)
                    return waiting
                if not (self._pages and self.conduct.due):
                    self._steps.clear()
                    self._lock.wait()
                elif (pause := self._pause()) > 0:
                    self._lock.wait(pause)
                else:
                    return self._advance
        return None

    def _pause(self) -> float:
        """Seconds until the next step."""
        last = self._steps[-1] if self._steps else 0.0
        return last + 1 / self.status.speed - time.monotonic()

    def _advance(self) -> None:
        self._steps.append(time.monotonic())
        self.conduct.advance()

    def _publish(self) -> None:
        """Show what is there now."""
        tree = self.conduct.drive.tree
        with self._lock:
            if tree.forgotten != self._forgotten:
                self._forgotten, self._moments, self._records = tree.forgotten, {}, []
            last = self._records[-1]["id"] if self._records else -1
            for number in range(last + 1, tree.next_id):
                if (moment := tree.moments.get(number)) is not None:
                    self._moments[number] = moment
                    self._records.append(record(moment))
            self._here = self.conduct.drive.here
        self.changed()

    def _rate(self) -> float:
        if len(self._steps) < 2:
            return 0.0
        return (len(self._steps) - 1) / max(1e-6, self._steps[-1] - self._steps[0])


def record(moment: Moment) -> dict[str, Any]:
    """What a page draws of a moment, beside its images."""
    return {
        "id": moment.id,
        "parent": None if moment.parent is None else moment.parent.id,
        "pilot": moment.pilot,
        "action": None if moment.action is None else [round(float(part), 3) for part in moment.action],
        "depth": moment.depth,
        "predicted": {name: round(value, 4) for name, value in moment.predicted.items()},
        "reward": None if moment.reward is None else round(moment.reward, 4),
        "mse": round(moment.mse, 6),
        "success": moment.success,
        "terminated": moment.terminated,
        "anchored": moment.anchored,
    }
