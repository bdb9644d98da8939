"""Progress bars: one that moves in a terminal, a line now and then in a log file."""

import sys
from collections.abc import Iterable
from typing import Any, TypeVar, overload

from tqdm import tqdm

T = TypeVar("T")


@overload
def progress_bar(items: Iterable[T], **settings: Any) -> "tqdm[T]": ...
@overload
def progress_bar(items: None = None, **settings: Any) -> "tqdm[Any]": ...
def progress_bar(items: Iterable[Any] | None = None, **settings: Any) -> "tqdm[Any]":
    """A tqdm bar over `items`, or up to a `total`; `settings` are tqdm's."""
    every_s = 0.5 if sys.stderr.isatty() else 30
    return tqdm(items, **{"dynamic_ncols": True, "mininterval": every_s} | settings)
