"""What a disk or a user makes of a stored file: for `tests/fuzz.py`."""

import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

Damage = Callable[[Path], None]  # of a file that is there
MARK = "code-was-run"  # a file that appears in the present folder if a stored file was a program
SECRET = os.environ["FUZZ_SECRET"] = "a-secret-of-the-environment"  # that nothing in a file may ask for
DEEP = 100_000


class Program:
    """Runs where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (MARK, "w")


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def put(new: Callable[[bytes], bytes]) -> Damage:
    return lambda path: path.write_bytes(new(content(path))) and None


def in_place(make: Callable[[Path], object]) -> Damage:
    def replace(path: Path) -> None:
        remove(path)
        make(path)

    return replace


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """What is done to a file or folder while the body runs is undone."""
    aside = path.with_name(f"..{path.name}.aside")
    if path.is_dir():
        shutil.copytree(path, aside)
    else:
        shutil.copy2(path, aside)
    try:
        yield
    finally:
        remove(path)
        aside.rename(path)


def anything(generator: random.Random) -> dict[str, Damage]:
    """Damages of any file."""

    def flip(old: bytes) -> bytes:
        new = bytearray(old or b"x")
        new[generator.randrange(len(new))] ^= generator.randrange(1, 256)
        return bytes(new)

    return {
        "missing": remove,
        "empty": put(lambda old: b""),
        "cut off": put(lambda old: old[: generator.randrange(max(1, len(old)))]),
        "one byte": put(flip),
        "noise": put(lambda old: generator.randbytes(200)),
        "zeros": put(lambda old: bytes(len(old))),
        "another encoding": put(lambda old: old[: len(old) // 2] + b"\xff\xe9" + old[len(old) // 2 :]),
        "utf-16": put(lambda old: old.decode(errors="replace").encode("utf-16")),
        "a folder": in_place(Path.mkdir),
        "a pipe": in_place(os.mkfifo),
        "a loop": in_place(lambda path: path.symlink_to(path.name)),
        "a device": in_place(lambda path: path.symlink_to("/dev/zero")),
        "a pickle": put(lambda old: pickle.dumps(Program())),
    }


WRONG = (
    None,
    [],
    {},
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    "x" * 10_000,
    "${oc.env:FUZZ_SECRET}",
    "../x",
    True,
    [[1]],
)


def changed_leaf(value: Any, generator: random.Random) -> Any:
    """The same with one part replaced by something else."""
    if isinstance(value, dict) and value and generator.random() < 0.95:
        key = generator.choice(list(value))
        return value | {key: changed_leaf(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.8:
        place = generator.randrange(len(value))
        return [*value[:place], changed_leaf(value[place], generator), *value[place + 1 :]]
    return generator.choice(WRONG)


def without_a_key(value: Any, generator: random.Random) -> Any:
    if not isinstance(value, dict) or not value:
        return []
    gone = generator.choice(list(value))
    return {key: one for key, one in value.items() if key != gone}


def shapes(generator: random.Random, load: Callable[[bytes], Any], dump: Callable[[Any], bytes]) -> dict[str, Damage]:
    """Well formed and of another shape."""
    return {
        "null": put(lambda old: b"null"),
        "a list": put(lambda old: b"[]"),
        "a number": put(lambda old: b"7"),
        "a word": put(lambda old: b'"word"'),
        "no keys": put(lambda old: b"{}"),
        "deep": put(lambda old: b"[" * DEEP),
        "deep keys": put(lambda old: b'{"a":' * DEEP),
        "another value": put(lambda old: dump(changed_leaf(load(old), generator))),
        "another value again": put(lambda old: dump(changed_leaf(load(old), generator))),
        "a key less": put(lambda old: dump(without_a_key(load(old), generator))),
        "a long number": put(lambda old: b'{"seed": ' + b"9" * 10_000 + b"}"),
    }


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


def yamls(generator: random.Random) -> dict[str, Damage]:
    dump = lambda value: yaml.safe_dump(value, sort_keys=False).encode()  # noqa: E731
    return shapes(generator, yaml.safe_load, dump) | {
        "a bomb": put(lambda old: BOMB.encode() + old),
        "an anchor loop": put(lambda old: b"x: &x [*x]\n" + old),
        "a merge": put(lambda old: b"x: &x {a: 1}\ny:\n  <<: *x\n" + old),
        "a program": put(lambda old: f"x: !!python/object/apply:builtins.open [{MARK}, w]\n".encode() + old),
        "an environment variable": put(
            lambda old: old.replace(b"coffee-push", b"${oc.env:FUZZ_SECRET}").replace(
                b"toy/reach", b"${oc.env:FUZZ_SECRET}"
            )
        ),
        "tabs": put(lambda old: old.replace(b"  ", b"\t")),
        "twice": put(lambda old: old + old),
    }


def jsons(generator: random.Random) -> dict[str, Damage]:
    return shapes(generator, json.loads, lambda value: json.dumps(value).encode())


def tables(generator: random.Random) -> dict[str, Damage]:
    """Of CSV files."""

    def cell(old: bytes) -> bytes:
        rows = [line.split(b",") for line in old.splitlines()]
        row = generator.choice(rows)
        row[generator.randrange(len(row))] = generator.choice(
            [b"", b"nan", b"inf", b"-1", b"7", b"1e308", b"x", b'"', b"=1+1", b"\x00", b"9" * 5000, b"1e-400"]
        )
        return b"\n".join(b",".join(row) for row in rows) + b"\n"

    return {
        "a cell": put(cell),
        "a cell again": put(cell),
        "a long field": put(lambda old: old + b"x" * 200_000 + b",1,1,1,1\n"),
        "a quote": put(lambda old: old + b'"' + old),
        "a column less": put(lambda old: b"\n".join(line.rsplit(b",", 1)[0] for line in old.splitlines()) + b"\n"),
        "the header alone": put(lambda old: old.splitlines(keepends=True)[0]),
        "no header": put(lambda old: b"".join(old.splitlines(keepends=True)[1:])),
        "backwards": put(lambda old: b"".join(old.splitlines(keepends=True)[:0:-1])),
    }


def tensors(generator: random.Random) -> dict[str, Damage]:
    """Of safetensors files."""

    def header(new: bytes) -> Damage:
        return put(lambda old: len(new).to_bytes(8, "little") + new)

    return {
        "a long header": put(lambda old: (2**60).to_bytes(8, "little") + old[8:]),
        "no tensors": header(b"{}"),
        "a deep header": header(b'{"a":' * DEEP),
        "a header of another shape": header(b"[]"),
        "a huge tensor": header(b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'),
        "another tensor": header(b'{"x":{"dtype":"F32","shape":[],"data_offsets":[0,0]}}'),
    }


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def torches(generator: random.Random) -> dict[str, Damage]:
    """Of files that `torch.save` wrote."""

    def zipped(old: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Program()))
        return file.getvalue()

    return {
        "a list in torch": put(lambda old: saved([1, 2])),
        "nothing in torch": put(lambda old: saved({})),
        "a tensor in torch": put(lambda old: saved(torch.zeros(3))),
        "other keys in torch": put(lambda old: saved({"x": {"y": 1}, 3: None})),
        "a program in torch": put(lambda old: saved(Program())),
        "a program in a zip": put(zipped),
        "json": put(lambda old: b"{}"),
    }


def arrays(generator: random.Random) -> dict[str, Damage]:
    """Of npz and npy files."""

    def written(value: Any, **more: Any) -> bytes:
        file = io.BytesIO()
        np.savez(file, **more) if more else np.save(file, value, allow_pickle=True)
        return file.getvalue()

    huge = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 3, 64, 64), }"
    return {
        "a program in npy": put(lambda old: written(np.array([Program()], object))),
        "a program in npz": put(lambda old: written(None, lengths=np.array([Program()], object))),
        "another array": put(lambda old: written(np.zeros(3))),
        "other arrays": put(lambda old: written(None, x=np.zeros(3))),
        "a huge array": put(lambda old: huge.ljust(127) + b"\n"),
        "words": put(lambda old: written(None, lengths=np.array(["a"]), actions=np.zeros(1), rewards=np.zeros(1))),
    }


BY_SUFFIX: dict[str, Callable[[random.Random], dict[str, Damage]]] = {
    ".yaml": yamls,
    ".json": jsons,
    ".csv": tables,
    ".safetensors": tensors,
    ".pt": torches,
    ".pth": torches,
    ".npz": arrays,
    ".npy": arrays,
}


def of(path: Path, generator: random.Random) -> dict[str, Damage]:
    """Damages of this file, by their names, in an order of chance."""
    found = anything(generator) | BY_SUFFIX.get(path.suffix, lambda _: {})(generator)
    names = sorted(found)
    generator.shuffle(names)
    return {name: found[name] for name in names}
