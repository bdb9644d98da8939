"""Schedules written as DrQ-v2 writes them: `"0.1"`, `"linear(1.0,0.1,100000)"`, `"step_linear(...)"`.

The one place in the project where time counts decisions and not frames, so that a schedule copied from DrQ-v2
means here what it means there.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from agents.api import InvalidConfig

Schedule = Callable[[int], float]

LARGEST = 1e38  # what float32 holds
_FORMS = "a number, linear(initial,final,decisions) or step_linear(initial,middle,decisions,final,decisions)"


def parse_schedule(text: str) -> Schedule:
    """Turns a schedule into a function of the decisions taken so far.

    `linear(a,b,n)` goes from a to b in n decisions and stays there; `step_linear(a,b,n,c,m)` goes on from b
    to c in the m decisions after that.

    Raises:
        InvalidConfig: `text` is none of the three forms, or a duration is not positive.
    """
    return _piecewise(*_points(text))


def value_range(text: str) -> tuple[float, float]:
    """The smallest and the largest value that a schedule ever takes: it is straight between its points, so two of them.

    Raises:
        InvalidConfig: as `parse_schedule`.
    """
    initial, legs = _points(text)
    values = [initial, *(target for target, _ in legs)]
    return min(values), max(values)


def _points(text: str) -> tuple[float, list[tuple[float, float]]]:
    """The first value, then (value, decisions to get there) for each leg."""
    match = re.fullmatch(r"\s*(?:(linear|step_linear)\((.*)\)|(.+?))\s*", str(text))
    name, inside, constant = match.groups() if match else (None, None, None)
    numbers = [_number(part) for part in (inside or constant or "").split(",")]
    expected = {"linear": 3, "step_linear": 5, None: 1}[name]
    if len(numbers) != expected or any(n is None for n in numbers):
        raise InvalidConfig(f"schedule {text!r} is not understood: write {_FORMS}")
    points = [n for n in numbers if n is not None]
    if any(duration <= 0 for duration in points[2::2]):
        raise InvalidConfig(f"schedule {text!r}: a duration must be a positive number of decisions")
    return points[0], list(zip(points[1::2], points[2::2], strict=True))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST else None


def _piecewise(initial: float, legs: list[tuple[float, float]]) -> Schedule:
    def value(decision: int) -> float:
        now, elapsed = initial, float(decision)
        for target, duration in legs:
            if elapsed < duration:
                return now + (target - now) * elapsed / duration
            now, elapsed = target, elapsed - duration
        return now

    return value
