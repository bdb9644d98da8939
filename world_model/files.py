"""Stored files: each is read whole, or refused by its name in one line, whatever a disk or a user made of it.

    with reading(path, WeightsError):
        config = build(TransformerConfig, read_json(path))
    tensors = read_tensors(path, device)

Nothing that is read here runs code: text, JSON, safetensors, and torch files of tensors and plain values. A TorchScript
file alone is a program, and `read_program` says whom it takes for trusted.
"""

import csv
import errno
import json
import lzma
import pickle
import stat
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from world_model.schema import UserError

LARGEST_TEXT = 2**26  # bytes of a file of settings or of results; lists of a data set are larger
LONGEST_REASON = 160  # characters

# What readers raise on a file that is damaged, or valid but of another shape: their own errors, those of decompressors
# that a changed byte can name, and those of whoever looks for a field. No MemoryError: that one is about the machine.
READ_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ArithmeticError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    pickle.UnpicklingError,
    csv.Error,
    SafetensorError,
)
# The same with a file that asks for more than there is.
READ_OR_MEMORY_ERRORS: tuple[type[Exception], ...] = (MemoryError, *READ_ERRORS)


@contextmanager
def reading(path: Path, kind: type[ValueError] = UserError, advice: str = "") -> Iterator[None]:
    """Around reading a file and making something of it: what goes wrong becomes a `kind` that names the file.

    `advice`: what to do about it, behind the reason.
    """
    behind = f": {advice}" if advice else ""
    try:
        yield
    except FileNotFoundError:
        raise kind(f"{path} is missing{behind}") from None
    except READ_OR_MEMORY_ERRORS as error:
        if isinstance(error, kind) and str(path.parent) in str(error):
            raise
        raise kind(f"{path} cannot be read ({reason(error)}){behind}") from error


def reason(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, KeyError):
        return f"it has no {str(error.args[0] if error.args else '')[:LONGEST_REASON]}"
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__


def regular(path: str | Path) -> Path:
    """The path of a file that has an end: no folder, pipe or device. Raises OSError."""
    path = Path(path)
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path


def read_text(path: Path, limit: int = LARGEST_TEXT) -> str:
    """UTF-8 text. Raises one of READ_ERRORS."""
    if (size := regular(path).stat().st_size) > limit:
        raise ValueError(f"{size:,} bytes are too many")
    return path.read_text(encoding="utf-8")


def read_json(path: Path, limit: int = LARGEST_TEXT) -> Any:
    """Raises one of READ_ERRORS."""
    return json.loads(read_text(path, limit))


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A safetensors file. Raises one of READ_ERRORS."""
    return load_file(regular(path), device=str(device))


def read_torch(path: Path, device: torch.device | str = "cpu") -> Any:
    """A file of `torch.save` that holds tensors and plain values alone. Raises one of READ_ERRORS."""
    return torch.load(regular(path), map_location=device, weights_only=True)


def read_program(path: Path, device: torch.device | str = "cpu") -> Any:
    """A module in a TorchScript file, with a warning that it is a program. Raises one of READ_ERRORS."""
    said = f"{regular(path)} is a program in TorchScript, which runs here: whoever made it is trusted with this machine"
    warnings.warn(said, stacklevel=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch calls the format deprecated, and has none like it
        return torch.jit.load(str(path), map_location=device).eval()
