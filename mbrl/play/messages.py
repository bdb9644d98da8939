"""What a page may send: `{"do": <name>, <field>: <value>, ...}`, checked in full before anything is done with it."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LONGEST = 65536  # bytes of a message
LARGEST = 2**31 - 1
Check = Callable[[Any], bool]


class BadMessage(ValueError):
    """Something else; the message says what, in one line."""


class Message(NamedTuple):
    do: str
    fields: dict[str, Any]


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not _flag(value) and 0 <= value <= LARGEST


def _number(low: float, high: float) -> Check:
    return lambda value: isinstance(value, int | float) and not _flag(value) and low <= value <= high


def _one_of(*names: str) -> Check:
    return lambda value: isinstance(value, str) and value in names


def _name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 40


def _action(value: Any) -> bool:
    each = _number(-1, 1)
    return isinstance(value, list) and all(map(each, value))


KNOWN: dict[str, dict[str, Check]] = {
    "hold": {"action": _action, "moving": _flag, "seq": _whole},  # what the keys and the mouse say now
    "run": {"on": _flag},
    "step": {},
    "go": {"moment": _whole},
    "wake": {},
    "start": {"source": _one_of("reset", "expert", "episode", "kept"), "number": _whole, "decision": _whole},
    "pilot": {"name": _name},
    "eyes": {"name": _one_of("simulator", "dream")},
    "temperature": {"value": _number(0, 2)},
    "speed": {"value": _number(1, 60)},
    "wake_every": {"decisions": _whole},
    "again": {"on": _flag},
    "keep": {},
}


def read(text: str, action_dim: int) -> Message:
    """Raises BadMessage."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise BadMessage("that is no JSON") from None
    if not isinstance(values, dict) or not isinstance(values.get("do"), str):
        raise BadMessage('a message is {"do": <name>, ...}')
    do = values.pop("do")
    if do not in KNOWN:
        raise BadMessage(f"nothing is called {do[:40]!r}; known: {', '.join(KNOWN)}")
    checks = KNOWN[do]
    if values.keys() != checks.keys():
        raise BadMessage(f"{do} has the fields {', '.join(checks) or 'none'}")
    for name, check in checks.items():
        if not check(values[name]):
            raise BadMessage(f"{do}: {name} has no such value")
    if do == "hold":
        if len(values["action"]) != action_dim:
            raise BadMessage(f"an action here has {action_dim} numbers")
        values["action"] = np.asarray(values["action"], np.float32)
    return Message(do, values)
