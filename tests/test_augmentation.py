"""Random crops and colour jitter of clips."""

import colorsys
import dataclasses

import numpy as np
import pytest
import torch

from world_model.data.augmentation import AugmentationConfig, augment

OFF = AugmentationConfig(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
)
PAPER = AugmentationConfig(
    crop_scale=(0.8, 1.0), crop_ratio=(0.9, 1.1), brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05
)


def generator():
    return np.random.default_rng(0)


def images(clips=4, frames=3):
    return torch.rand(clips, frames, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def changed(config, clips):
    return augment(clips.clone(), config.draw(len(clips), generator()))


def test_nothing_is_nothing():
    clips = images()
    assert OFF.nothing
    assert not PAPER.nothing
    torch.testing.assert_close(changed(OFF, clips), clips, atol=1e-5, rtol=0)


def test_all_frames_of_a_clip_alike_and_each_clip_its_own():
    still = images(1, 1).expand(4, 3, -1, -1, -1)
    out = changed(PAPER, still)
    assert out.min() >= 0
    assert out.max() <= 1
    for frame in (1, 2):
        torch.testing.assert_close(out[:, frame], out[:, 0], atol=1e-6, rtol=0)
    assert min((out[i] - out[j]).abs().max() for i in range(4) for j in range(i)) > 0.02


def test_a_crop_is_an_enlarged_part():
    """Of a ramp from left to right, the part that was drawn, at its places."""
    ramp = ((torch.arange(16) + 0.5) / 16).expand(2, 1, 3, 16, 16).clone()
    config = dataclasses.replace(OFF, crop_scale=(0.25, 0.25))
    drawn = config.draw(2, generator())
    np.testing.assert_allclose(drawn[:, 2:4], 0.5)
    assert (drawn[:, :2] + drawn[:, 2:4] <= 1).all()
    out = augment(ramp.clone(), drawn)
    for clip, (left, _, width, _) in zip(out, drawn[:, :4], strict=True):
        expected = left + width * ((np.arange(16) + 0.5) / 16)
        np.testing.assert_allclose(clip[0, 0, 5], expected.clip(0.5 / 16, 15.5 / 16), atol=1e-5)
    boxes = PAPER.draw(1000, generator())[:, 2:4]
    area, ratio = boxes.prod(1), boxes[:, 0] / boxes[:, 1]
    assert 0.79 < area.min() < 0.82
    assert 0.98 < area.max() <= 1
    assert 0.89 < ratio.min() < 0.92
    assert 1.08 < ratio.max() < 1.11


def test_colours():
    """Each change against its definition, with the amount that was drawn; 0.5 to 0.6 keeps clear of the ends."""
    clips = 0.5 + 0.1 * images()
    grey = clips[:, :, :1] * 0.299 + clips[:, :, 1:2] * 0.587 + clips[:, :, 2:] * 0.114
    mean = grey.mean((1, 2, 3, 4), keepdim=True)
    for number, (name, other) in enumerate([("brightness", 0.0), ("contrast", mean), ("saturation", grey)]):
        config = dataclasses.replace(OFF, **{name: 0.2})
        amount = torch.from_numpy(config.draw(4, generator())[:, 4 + number]).float().view(-1, 1, 1, 1, 1)
        assert amount.std() > 0.02
        torch.testing.assert_close(changed(config, clips), amount * clips + (1 - amount) * other, atol=1e-5, rtol=0)


def test_hue_as_in_hsv():
    clips, config = images(2, 1), dataclasses.replace(OFF, hue=0.5)
    out, turns = changed(config, clips), config.draw(2, generator())[:, 7]
    for clip in (0, 1):
        for pixel in [(0, 0), (3, 7), (15, 2)]:
            hue, saturation, value = colorsys.rgb_to_hsv(*clips[clip, 0, :, *pixel].tolist())
            expected = colorsys.hsv_to_rgb((hue + turns[clip]) % 1, saturation, value)
            np.testing.assert_allclose(out[clip, 0, :, *pixel], expected, atol=1e-4)


def test_the_order_is_drawn():
    assert len({tuple(order) for order in PAPER.draw(200, generator())[:, 8:]}) == 24


def test_limits_that_are_no_limits():
    with pytest.raises(ValueError, match="crop_scale"):
        dataclasses.replace(OFF, crop_scale=(1.0, 0.5))
