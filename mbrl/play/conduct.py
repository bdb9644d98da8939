"""What happens on a page's message and between them; one thread's work, see `session.py` for the others.

Time goes on while the play `runs`, and while somebody who drives holds a key.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from mbrl.experiment.settings import UserError
from mbrl.play.drive import Drive
from mbrl.play.messages import Message
from mbrl.play.pilots import YOU, Eyes, Pilot, TakenBack
from mbrl.replay import Episode

AFTERWARDS = 8  # decisions that an episode goes on for behind its success, if the next one begins by itself
LOADED = 8  # recorded episodes held


class Source(NamedTuple):
    """Recorded episodes that a drive can begin in."""

    title: str
    episodes: Callable[[], int | None]  # how many; None: one for every seed
    load: Callable[[int], Episode]


class Parts(NamedTuple):
    drive: Drive
    pilots: Mapping[str, Pilot]  # beside you
    sources: Mapping[str, Source]
    keep: Callable[[Episode], str]  # as a demonstration; returns what was done, in words
    about: dict[str, Any]  # what a page is told first


@dataclasses.dataclass
class Status:
    """What every page shows."""

    runs: bool = False
    pilot: str = YOU
    eyes: Eyes = "simulator"
    temperature: float = 0.0
    speed: float = 12.0  # decisions a second, at most
    wake_every: int = 0  # decisions after which the dream is woken; 0: never
    again: bool = False  # whether a pilot's next episode begins by itself
    played: int = 0  # episodes that a pilot drove from their reset to their end
    solved: int = 0  # of those, with a success
    note: str = ""
    fault: bool = False  # whether the note says what could not be done
    notes: int = 0  # so far


class Hold(NamedTuple):
    """What the keys and the mouse of a page say."""

    page: str
    seq: int  # the page's own number of it
    action: np.ndarray
    moving: bool


class Conduct:
    """See the module's docstring.

    Args:
        episode: the number of the first of the episodes that begin by themselves.
    """

    def __init__(self, parts: Parts, status: Status, episode: int) -> None:
        self.parts, self.status, self.drive = parts, status, parts.drive
        self.heeded: dict[str, int] = {}  # by page, the newest hold that a step went by
        self._episodes: OrderedDict[tuple[str, int], Episode] = OrderedDict()
        self._nobody = Hold("", 0, np.zeros(self.drive.env.action_space.shape, np.float32), False)
        self._hold = self._nobody
        self._pressed: Hold | None = None  # since the last step, if it was let go of again
        self._next_episode = episode
        self._begin_next()

    # -- between messages --------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether time goes on."""
        return self.status.runs or (self.status.pilot == YOU and (self._hold.moving or self._pressed is not None))

    def advance(self) -> None:
        """One decision of whoever drives; before it, whatever comes by itself."""
        status, drive = self.status, self.drive
        if status.again and status.pilot != YOU and self.over:
            self._count()
            self._begin_next()
            return
        if status.wake_every and self._dreamt() >= status.wake_every:
            drive.wake()
        if status.pilot == YOU:
            hold, self._pressed = self._pressed or self._hold, None
            drive.step(hold.action, YOU)
            if hold is not self._nobody:
                self.heeded[hold.page] = hold.seq
            return
        try:
            drive.step(self.parts.pilots[status.pilot].act(drive, status.eyes), status.pilot)
        except TakenBack:
            return  # by a message that waits

    def left(self, page: str) -> None:
        """A page is gone, and so are the hands on its keys."""
        self.heeded.pop(page, None)
        if self._hold.page == page:
            self._hold = self._nobody
        if self._pressed is not None and self._pressed.page == page:
            self._pressed = None

    def note(self, text: str, fault: bool = False) -> None:
        self.status.note, self.status.fault = text, fault
        self.status.notes += 1

    @property
    def over(self) -> bool:
        """Whether an episode that a pilot drives is over: its end, or a while after its success."""
        here = self.drive.here
        if here.terminated or here.depth >= self.drive.episode_decisions:
            return True
        return any(moment.success for moment in self.drive.tree.path(here)[:-AFTERWARDS])

    def _dreamt(self) -> int:
        """Decisions since the dream last saw what is real."""
        moment, decisions = self.drive.here, 0
        while moment.seen is None and moment.parent is not None:
            moment, decisions = moment.parent, decisions + 1
        return decisions

    def _count(self) -> None:
        """The episode that is over, if a pilot drove all of it."""
        path = self.drive.tree.path(self.drive.here)
        taken = [moment for moment in path if moment.action is not None]
        whole = path[0].depth == 0 and {moment.pilot for moment in taken} == {self.status.pilot}
        if whole:
            self.status.played += 1
            self.status.solved += any(moment.success for moment in taken)

    def _begin_next(self) -> None:
        self.drive.begin(self.drive.fresh(self._next_episode))
        self._next_episode += 1

    # -- messages ----------------------------------------------------------------------------------------------------

    def do(self, page: str, message: Message) -> None:
        """Raises UserError, one line, where it cannot be done."""
        getattr(self, f"_do_{message.do}")(page, **message.fields)

    def episode(self, source: str, number: int) -> Episode:
        """A recorded episode that a drive can begin in. Raises UserError."""
        if (source, number) not in self._episodes:
            if source not in self.parts.sources:
                raise UserError(f"there are no episodes of {source} here")
            known, count = self.parts.sources[source], self.parts.sources[source].episodes()
            if count is not None and number >= count:
                raise UserError(f"{known.title}: there are {count} episodes, counted from 0")
            self._episodes[source, number] = known.load(number)
            if len(self._episodes) > LOADED:
                self._episodes.popitem(last=False)
        return self._episodes[source, number]

    def _do_hold(self, page: str, action: np.ndarray, moving: bool, seq: int) -> None:
        before, self._hold = self._hold, Hold(page, seq, action, moving)
        if moving and not before.moving:
            self._pressed = self._hold  # a tap is one step, however short it is
        if moving and self.status.pilot != YOU:
            self._take_over(YOU)
            self.status.runs = False

    def _do_run(self, page: str, on: bool) -> None:
        self.status.runs = on

    def _do_step(self, page: str) -> None:
        self.status.runs = False
        self.advance()

    def _do_go(self, page: str, moment: int) -> None:
        if moment not in self.drive.tree.moments:
            raise UserError("that moment is forgotten")
        self.status.runs = False
        self.drive.go(self.drive.tree.moments[moment])

    def _do_wake(self, page: str) -> None:
        self.drive.wake()

    def _do_start(self, page: str, source: str, number: int, decision: int) -> None:
        if source == "reset":
            start = self.drive.fresh(number)
        else:
            title = f"{self.parts.sources[source].title} {number}" if source in self.parts.sources else source
            start = self.drive.within(self.episode(source, number), decision, title)
        self.status.runs = False
        self.drive.begin(start)

    def _do_pilot(self, page: str, name: str) -> None:
        if name != YOU and name not in self.parts.pilots:
            known = ", ".join([YOU, *self.parts.pilots])
            raise UserError(f"nobody here is called {name}; known: {known}")
        self._take_over(name)
        self.status.runs = name != YOU

    def _take_over(self, name: str) -> None:
        if name != self.status.pilot:
            self.status.pilot, self.status.played, self.status.solved = name, 0, 0

    def _do_eyes(self, page: str, name: Literal["simulator", "dream"]) -> None:
        self.status.eyes = name

    def _do_temperature(self, page: str, value: float) -> None:
        self.status.temperature = self.drive.temperature = float(value)

    def _do_speed(self, page: str, value: float) -> None:
        self.status.speed = float(value)

    def _do_wake_every(self, page: str, decisions: int) -> None:
        self.status.wake_every = decisions

    def _do_again(self, page: str, on: bool) -> None:
        self.status.again = on

    def _do_keep(self, page: str) -> None:
        self.note(self.parts.keep(self.drive.episode()))
