"""Stored files are read or refused by name, nothing in them is run or looked up, and what cannot fit is not tried."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mbrl.experiment.capacity import Need, needs_of_run, refuse_too_large, space
from mbrl.experiment.identity import with_defaults
from mbrl.experiment.settings import UserError, load, to_dict
from mbrl.experiment.stored_config import read_config, read_yaml, write_config
from world_model import WeightsError
from world_model.files import LARGEST_TEXT, read_json, read_text, reading


def test_an_error_names_the_file_and_is_of_the_kind_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(WeightsError, match=r"x\.json is missing: make it"), reading(path, WeightsError, "make it"):
        read_json(path)
    path.write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"x\.json cannot be read \(it has no b\)"), reading(path):
        read_json(path)["b"]
    with pytest.raises(UserError, match=rf"^{path}: what$"), reading(path):
        raise UserError(f"{path}: what")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "too large"])
def test_only_files_with_an_end_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, LARGEST_TEXT + 1)
    with pytest.raises(UserError, match="x cannot be read"), reading(path):
        read_text(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [1, 1]\nb: [*a, *a]\n", "alias"),
        ("x: &x [*x]\n", "alias"),
        ("[" * 1_000_000, "nested too deeply"),
        ("x: !!python/object/apply:os.getcwd []\n", "constructor"),
        ("- 1\n", "no keys"),
    ],
    ids=["twice", "loop", "deep", "program", "list"],
)
def test_a_config_is_plain(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_config(path)


def test_what_a_config_asks_for_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    config = to_dict(load(["preset=smoke", "device=cpu"])) | {"camera": "${oc.env:SECRET}"}
    write_config(tmp_path, config)
    assert read_yaml(tmp_path / "config.yaml") == config
    assert with_defaults(config)["camera"] == "${oc.env:SECRET}"
    with pytest.raises(UserError, match=r"^task=\$\{oc\.env:SECRET\}: there is no such task$"):
        with_defaults(config | {"task": "${oc.env:SECRET}"})


def test_memory_and_disk_are_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.experiment.capacity.space", {"memory": 100, str(tmp_path): 10}.get)
    refuse_too_large([Need("a=1", 60), Need("b=2", 40), Need("c=3", 10, str(tmp_path))], "cpu")
    with pytest.raises(
        UserError, match=r"a=1 takes 0\.06 kB or more, with all else 0\.101 kB; there are 0\.1 kB of memory"
    ):
        refuse_too_large([Need("a=1", 60), Need("b=2", 41, "device")], "cpu")
    with pytest.raises(UserError, match=r"c=3 takes .* on the disk of "):
        refuse_too_large([Need("c=3", 11, str(tmp_path))], "cpu")


def test_every_preset_fits_what_it_is_for() -> None:
    for preset, most in (("smoke", 1e9), ("small", 4e9), ("paper", 16e9)):
        for agent in ("mbpo", "drqv2", "dreamerv3"):
            settings = load([f"preset={preset}", f"agent={agent}", "device=cpu"])
            assert 0 < sum(need.bytes for need in needs_of_run(settings)) < most
    assert space("memory") > 1e9
    assert space("runs/that/is/not/there") > 0


def test_a_reader_that_has_seen_enough(project_root: Path) -> None:
    """Of `make tasks | head -1`."""
    line = f"{sys.executable} -m mbrl | true"
    done = subprocess.run(line, shell=True, cwd=project_root, capture_output=True, text=True)
    assert done.stderr == ""
