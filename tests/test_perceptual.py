"""LPIPS on stand-in weights of the right shapes: the real ones cannot be fetched by a test."""

import dataclasses

import pytest
import torch
from tiny_world import LEARNER, make_clips, make_model

from world_model import WeightsError
from world_model.ivideogpt.learner import WorldModelLearner
from world_model.metrics.perceptual import LPIPS, WIDTHS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights in the two files that a user has to provide."""
    folder, generator = tmp_path_factory.mktemp("lpips"), torch.Generator().manual_seed(0)
    backbone = {
        f"features.{name}": 0.05 * torch.randn(value.shape, generator=generator)
        for name, value in LPIPS().features.state_dict().items()
    }
    torch.save(backbone | {"classifier.0.bias": torch.zeros(3)}, folder / "vgg16.pth")
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for i, width in enumerate(WIDTHS)
    }
    torch.save(heads, folder / "lpips.pth")
    return folder


def test_distance_of_images(folder):
    lpips = LPIPS.from_folder(folder)
    a = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert (lpips(a, a) == 0).all()
    near, far = lpips(a, a + 0.02), lpips(a, 1 - a)
    assert near.shape == (2,)
    assert (near < far).all()
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_the_tokenizer_learns_from_it_and_says_so(folder):
    config = dataclasses.replace(LEARNER, perceptual_weights=str(folder))
    learner = WorldModelLearner(make_model(), config, seed=0)
    assert learner.reconstruction_loss == "L1 + LPIPS"
    metrics = learner.update(frames=make_clips(batch=1).frames)
    assert metrics["tokenizer_lpips"] > 0
    without = WorldModelLearner(make_model(), LEARNER, seed=0)
    assert without.reconstruction_loss == "L1, no LPIPS (perceptual_weights=none)"
    assert "tokenizer_lpips" not in without.update(frames=make_clips(batch=1).frames)


def test_missing_or_wrong_weights_are_named(folder, tmp_path):
    with pytest.raises(WeightsError, match=r"vgg16\.pth is missing"):
        LPIPS.from_folder(tmp_path)
    for name in ("vgg16.pth", "lpips.pth"):
        (tmp_path / name).write_bytes((folder / "lpips.pth").read_bytes())
    with pytest.raises(WeightsError, match="must hold LPIPS-VGG weights"):
        LPIPS.from_folder(tmp_path)
