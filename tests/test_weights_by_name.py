"""Where a world model starts: which name is a folder, which one is the hub's, and which keys follow from it."""

import dataclasses
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import LEARNER

import envs
from mbrl.build import at_random, beyond_the_start, find_pretrained, make_ivideogpt, make_onestep
from mbrl.experiment.settings import UserError, load
from world_model.hub import ROOT
from world_model.onestep import OneStep

SMALL = "world_model/pretrained/small"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None]]:
    """A stand-in for huggingface_hub that knows the repository `owner/model`; what it was asked for."""
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(repository: str, revision: str | None = None) -> str:
        asked.append((repository, revision))
        if repository != "owner/model":
            raise RuntimeError(f"404 Client Error.\n\nRepository Not Found for url: {repository}")
        return str(tmp_path)

    hub: Any = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    hub.__spec__ = importlib.machinery.ModuleSpec("huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return asked


def test_a_folder_is_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_pretrained(SMALL) == ROOT / SMALL


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("owner/model", None),
        ("hub:owner/model", None),
        ("owner/model@v1.0", "v1.0"),
        ("hub:owner/model@0a1b2c", "0a1b2c"),
    ],
)
def test_a_hub_name(fetched: list[tuple[str, str | None]], tmp_path: Path, name: str, revision: str | None) -> None:
    assert find_pretrained(name) == tmp_path
    assert fetched == [("owner/model", revision)]


@pytest.mark.parametrize(
    "name",
    ["world_model/pretraned", "runs/nope", "./owner/model", "/owner/model", "../model", "a/b/c", "nope", "~/x"],
)
def test_a_mistyped_folder_is_not_asked_of_the_hub(fetched: list[tuple[str, str | None]], name: str) -> None:
    with pytest.raises(UserError, match="start_from=.*there is no such folder") as caught:
        find_pretrained(name, "start_from")
    assert "\n" not in str(caught.value)
    assert fetched == []


def test_what_the_hub_refuses_is_one_line(fetched: list[tuple[str, str | None]]) -> None:
    with pytest.raises(
        UserError, match=r"owner/modle: the hub refused: 404 Client Error. Repository Not Found"
    ) as caught:
        find_pretrained("owner/modle")
    assert "\n" not in str(caught.value)


def test_a_hub_name_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # `import` fails, and find_spec finds none
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs pip install huggingface_hub"):
        find_pretrained("owner/model")


@pytest.mark.parametrize(("typed", "frozen"), [(None, True), (True, True), (False, False)])
def test_codebooks_beside_pretrained_weights(typed: bool | None, frozen: bool) -> None:
    learner = beyond_the_start(dataclasses.replace(LEARNER, freeze_codebooks=typed, quantize_after=400))
    assert (learner.freeze_codebooks, learner.quantize_after) == (frozen, 0)


def test_codebooks_of_a_model_that_starts_at_random() -> None:
    assert at_random(dataclasses.replace(LEARNER, freeze_codebooks=None)).freeze_codebooks is False
    assert at_random(dataclasses.replace(LEARNER, freeze_codebooks=True)).freeze_codebooks is True
    with pytest.raises(UserError, match="freeze_codebooks=true would keep random codes"):
        at_random(dataclasses.replace(LEARNER, freeze_codebooks=True, revive_codes_until=1))


@pytest.mark.parametrize(
    ("overrides", "moves"),
    [([], False), (["freeze_codebooks=true"], False), (["freeze_codebooks=false"], True)],
)
def test_small_starts_with_fixed_codebooks(overrides: list[str], moves: bool) -> None:
    """Typing what is the default anyway is not refused because of keys that belong to another start."""
    settings = load(["preset=small", "device=cpu", *(f"world_model.learner.{override}" for override in overrides)])
    world = make_ivideogpt(settings, envs.make("toy/reach"), torch.device("cpu"))
    assert world.model.tokenizer.quantize.embedding.weight.requires_grad is moves


def test_small_begins_with_the_shipped_one_step_predictor() -> None:
    """Toy actions have two numbers, Meta-world's four: their layer alone begins anew."""
    settings = load(["preset=small", "device=cpu", "task=toy/reach"])
    begun = make_onestep(settings, envs.make("toy/reach"), torch.device("cpu")).weights()
    shipped = OneStep.from_pretrained(find_pretrained(settings.world_model.onestep_pretrained)).state_dict()
    assert torch.equal(begun["read.weight"], shipped["read.weight"])
    assert begun["action.weight"].shape == (128, 2)
    assert shipped["action.weight"].shape == (128, 4)
