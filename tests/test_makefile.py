"""What is typed after `make`: a word that a target does not know stops it, and a value is never code."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Make = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def make(tmp_path: Path, project_root: Path) -> Make:
    """The Makefile over an environment whose python only prints its arguments, one a line."""
    shutil.copy(project_root / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml", ".venv/.python", ".venv/.installed", ".venv/.gl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    # A make that runs these tests passes its own variables and flags down.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}

    def run(*overrides: str, **variables: str) -> subprocess.CompletedProcess[str]:
        line = ["make", "--silent", *overrides]
        return subprocess.run(line, cwd=tmp_path, env=clean | variables, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train", "task=hammer"], "task=hammer: write TASK=hammer"),
        (["train", "TASKS=hammer"], "TASKS=hammer: write TASK=hammer"),
        (["train", "sed=2"], "sed=2: write SEED=2"),
        (["train", "lr=3"], 'any other key is written ARGS="key=value"'),
        (["train", "drqv2.lr=3"], "drqv2.lr=3: make train knows TASK AGENT SEED PRESET ARGS"),
        (["train", "JOBS=2"], "JOBS=2: make train knows"),
        (["eval", "PRESET=small"], "PRESET=small: make eval knows TASK AGENT SEED ARGS"),
        (["sweep", "AGENTS=mbpo,drqv2"], "AGENTS=mbpo,drqv2: write AGENT=mbpo,drqv2"),
        (["compare", "TASK=hammer"], "TASK=hammer: write TASKS=hammer"),
        (["TASK=hammer"], "TASK=hammer: make help knows PYTHON TORCH_INDEX"),
        (["trian"], "make trian: there is no such target; did you mean make train"),
        (["evaluate"], "did you mean make eval"),
        (["fly"], "make fly: there is no such target; make help lists them"),
    ],
)
def test_a_word_that_make_does_not_know_is_refused(make: Make, overrides: list[str], said: str) -> None:
    done = make(*overrides)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_a_target_knows_is_handed_on(make: Make) -> None:
    done = make("train", "TASK=hammer", "AGENT=drqv2", "SEED=2", "PRESET=smoke", "ARGS=video=false 'variant=a b'")
    assert done.stderr == ""
    overrides = ["task=hammer", "agent=drqv2", "seed=2", "preset=smoke", "video=false", "variant=a b"]
    assert done.stdout.splitlines() == ["-m", "mbrl.train", *overrides]
    assert make("compare", "TASKS=a,b", "RUNS=x,y").stdout.splitlines()[2:] == ["task_names=[a,b]", "runs=[x,y]"]
    assert make("train", TASK="hammer").stdout.splitlines()[2:] == ["task=hammer"], "from the environment as well"


@pytest.mark.parametrize("value", ["x'; touch y; '", "$(shell touch y)", "`touch y`", '"$(touch y)"', "a b", "x,y"])
def test_a_value_is_never_code(make: Make, tmp_path: Path, value: str) -> None:
    for done in (make("train", f"TASK={value}"), make("train", TASK=value)):
        assert done.stdout.splitlines() == ["-m", "mbrl.train", f"task={value}"]
    make("train", f"task={value}")
    make(f"{value}x")
    make("train", f"PYTHON={value}")
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    "value",
    ["x; touch y", "x && touch y", "x | touch y", "$(touch y)", "`touch y`", "x > y", "$(shell touch y)", "#x", "x,y"],
)
def test_arguments_are_words_and_never_code(make: Make, tmp_path: Path, value: str) -> None:
    for done in (make("train", f"ARGS={value}"), make("train", ARGS=value), make("test", f"ARGS='{value}'")):
        assert done.returncode == 0
        assert done.stdout.split()[-len(value.split()) :] == value.split()
    assert not (tmp_path / "y").exists()


def test_a_line_more_is_no_command(make: Make, tmp_path: Path) -> None:
    make("train", "TASK=x\ntouch y", "ARGS=x\ntouch y\n$(touch y)")
    make("train", TASK="x\ntouch y", ARGS="x\ntouch y")
    make("x\ntouch y")
    done = make("--ignore-errors", "train", "TASK=x\ntouch y\nz")
    assert (done.returncode, done.stdout) == (2, "")
    assert "TASK= has a line break in it" in done.stderr
    assert not (tmp_path / "y").exists()


def test_a_quote_without_an_end_is_refused(make: Make) -> None:
    done = make("train", "ARGS=variant='a b")
    assert (done.returncode, done.stdout) == (2, "")
    assert "ARGS=variant='a b: a quote in it has no end" in done.stderr
    assert done.stderr.count("\n") == 1
    assert make("train", "ARGS= ").stdout.splitlines() == ["-m", "mbrl.train"]


def test_every_target_that_runs_python_says_what_it_knows(project_root: Path) -> None:
    """The tables at the top of the Makefile against the recipes: whatever is handed on is known, and the other way."""
    text = (project_root / "Makefile").read_text().replace("$(words)", "$(ARGS)")
    values = dict(re.findall(r"^(\w+) :?= (.*)$", text, re.MULTILINE))

    def used(recipe: str) -> set[str]:
        names = set(re.findall(r"\$\(([A-Z_]+)\)", recipe)) - {"PY"}
        lists = {name for name in names if name in values and name not in ("ARGS",)}
        return (names - lists).union(*(used(values[name]) for name in lists))

    recipes = dict(re.findall(r"^(\w+): setup\n\t\$\(PY\) (.*)$", text, re.MULTILINE))
    assert len(recipes) > 10
    for target, recipe in recipes.items():
        if target != "lint":
            assert set(values[f"KNOWS_{target}"].split()) == used(recipe), target
