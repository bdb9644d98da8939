"""Settings as frozen dataclasses: a field's type and range stand where the field is, and are checked here.

class Options:
    lr: Annotated[float, "(0, inf)"]
    frames: Positive | None
    name: Name

options = build(Options, {"lr": 1e-4, "frames": None, "name": "x"})

Those of a command and those that a model was saved with are checked alike.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

T = TypeVar("T")
LARGEST_FLOAT = 10**38  # what float32 holds


class UserError(ValueError):
    """Something the user can put right, said in one line: what is wrong and what to do."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The interval of a number, or of the length of a list.

    A field's type names it in the notation of mathematics, `lr: Annotated[float, "(0, inf)"]`, so that the configs of
    `agents` and `world_model`, which import nothing of ours, can say it too; `build` checks it.
    """

    low: float
    high: float = math.inf
    above: bool = False  # low itself is outside
    below: bool = False  # high itself is outside

    @classmethod
    def parse(cls, interval: str) -> "Range":
        """`[0, 1)` or the like."""
        low, high = interval[1:-1].split(",")
        return cls(float(low), float(high), interval[0] == "(", interval[-1] == ")")

    def complaint(self, number: float) -> str | None:
        """What `number` must be instead, or None where it lies inside. NaN lies nowhere."""
        if not (number > self.low or (number == self.low and not self.above)):
            bound = f"more than {self.low:g}" if self.above else f"at least {self.low:g}"
        elif not (number < self.high or (number == self.high and not self.below)):
            bound = f"less than {self.high:g}" if self.below else f"at most {self.high:g}"
        else:
            return None
        return f"{self.low:g}" if self.low == self.high else bound


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What a word may be made of."""

    expression: str
    meaning: str

    def complaint(self, word: str) -> str | None:
        return None if re.fullmatch(self.expression, word) else self.meaning


Positive = Annotated[int, "[1, inf)"]
Count = Annotated[int, "[0, inf)"]
Fraction = Annotated[float, "[0, 1]"]
Weight = Annotated[float, "[0, inf)"]
# Of a folder or file that a command makes; a name leads nowhere else.
Name = Annotated[str, Pattern(r"[\w-][\w.-]{0,99}", "only letters, digits, '_', '-' and '.', it names a folder")]
Suffix = Annotated[str, Pattern(r"[\w.-]{0,99}", "only letters, digits, '_', '-' and '.', it names a folder")]
Folder = Annotated[str, Pattern(r".+", "it must be a folder")]


def build(cls: type[T], values: Mapping[str, Any], prefix: str = "", file: str = "configs/config.yaml") -> T:
    """A frozen dataclass from a mapping, checking names, types and ranges on the way. `file` is what errors name."""
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in values:
        if name not in hints:
            raise UserError(f"unknown key {prefix}{name}{nearest(name, hints, file)}")
    missing = [field.name for field in dataclasses.fields(cls) if field.name not in values]
    if missing:
        raise UserError(f"{prefix}{missing[0]} has no value in {file}")
    fields = {name: convert(hints[name], value, f"{prefix}{name}", file) for name, value in values.items()}
    try:
        return cls(**fields)
    except ValueError as error:  # a part's own check of how its values go together
        where = f"{prefix.rstrip('.')}: " if prefix else ""
        raise UserError(f"{where}{first_line(error)}") from error


def convert(kind: Any, value: Any, key: str, file: str = "") -> Any:
    """`value` as `kind`, or a UserError that names `key`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _in_range(convert(args[0], value, key, file), args[1], key)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args or isinstance(value, str) and str in args:
            return value
        return convert(next((arg for arg in args if arg not in (type(None), str)), str), value, key, file)
    if origin is Literal:
        if value not in args:
            names = [str(arg) for arg in args]
            raise UserError(f"{key}={value}: it must be one of {', '.join(names)}{close(str(value), names)}")
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise UserError(f"{key}={value!s}: it must be a list, such as [32,64]")
        return tuple(convert(args[0], item, f"{key}[{index}]", file) for index, item in enumerate(value))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise UserError(f"{key} is a section; set one of its keys")
        return build(kind, value, f"{key}.", file)
    return _plain(kind, value, key)


def _in_range(value: Any, bound: str | Range | Pattern, key: str) -> Any:
    if isinstance(bound, Pattern):
        if complaint := bound.complaint(value):
            raise UserError(f"{key}={value}: {complaint}")
        return value
    interval = Range.parse(bound) if isinstance(bound, str) else bound
    if isinstance(value, tuple) and (complaint := interval.complaint(len(value))):
        raise UserError(f"{key}={list(value)} has the wrong length: it must be {complaint}")
    if isinstance(value, int | float) and (complaint := interval.complaint(value)):
        raise UserError(f"{key}={value} is out of range: it must be {complaint}")
    return value


def _plain(kind: Any, value: Any, key: str) -> Any:
    """A number, a switch or a word."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(min(max(value, -2 * LARGEST_FLOAT), 2 * LARGEST_FLOAT))  # any whole number
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # a schedule such as "0" is a number in YAML and on the command line
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[kind]
        raise UserError(f"{key}={value} has the wrong type: it must be {expected}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{key}={value} is out of range: it must be finite")
    if kind is float and abs(value) > LARGEST_FLOAT:
        raise UserError(f"{key}={value} is out of range: it must be at most 1e38 in size, as float32 is")
    return value


def close(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest(name: str, names: Iterable[str], file: str = "configs/config.yaml") -> str:
    """`; did you mean 'x'?` for the closest of `names`, or the whole list when none is close."""
    names = list(names)
    # A bare `lr` should find `drqv2.lr`, which edit distance alone puts far away.
    tails = [other for other in names if other.rsplit(".", 1)[-1] == name]
    close = tails or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if len(names) <= 20 else f"; see {file} for all keys"


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
