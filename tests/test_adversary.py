"""The discriminator: it learns to tell images apart, and weighs in as much as what it is weighed against."""

import dataclasses

import pytest
import torch
from tiny_world import LEARNER, make_clips, make_model

from world_model.ivideogpt.adversary import Adversary, DiscriminatorConfig
from world_model.ivideogpt.learner import WorldModelLearner

CONFIG = DiscriminatorConfig(weight=0.8, after_updates=1, lr=3e-3, channels=(8, 16))


def adversary():
    torch.manual_seed(0)
    return Adversary(CONFIG, torch.device("cpu"), warmup_updates=2, max_grad_norm=1.0)


def test_it_learns_to_tell_true_from_decoded():
    judge, generator = adversary(), torch.Generator().manual_seed(0)

    def pair():
        true = torch.rand(8, 3, 32, 32, generator=generator)
        return true, torch.nn.functional.avg_pool2d(true, 5, stride=1, padding=2)  # blurred

    seen = [judge.update([pair()]) for _ in range(200)]
    assert seen[0]["discriminator_loss"] > 1.9  # 2 is undecided
    assert seen[-1]["discriminator_loss"] < 1.4
    assert seen[-1]["discriminator_true"] > seen[-1]["discriminator_decoded"] + 0.6
    assert judge.discriminator(pair()[0]).shape == (8, 1, 8, 8)


def test_its_gradient_is_as_large_as_the_other():
    judge, last = adversary(), torch.nn.Conv2d(4, 3, 1)
    hidden, true = torch.rand(2, 4, 32, 32), torch.rand(2, 3, 32, 32)
    images = last(hidden)
    reference = 5 * (images - true).abs().mean()
    term = judge.judge(images, reference, last.weight)
    wanted, got = (torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm() for loss in (reference, term))
    torch.testing.assert_close(got, CONFIG.weight * wanted)
    assert all(weight.grad is None for weight in judge.discriminator.parameters())


def test_the_learner_asks_it_when_it_is_time_and_continues(tmp_path):
    def learner(seed):
        return WorldModelLearner(make_model(seed, cross_attention_dropout=0.0), LEARNER, seed, CONFIG)

    straight, again = learner(0), learner(7)
    assert "discriminator_loss" not in straight.update(frames=make_clips(seed=0).frames)
    metrics = straight.update(frames=make_clips(seed=1).frames)
    assert {"discriminator_loss", "tokenizer_adversarial"} <= metrics.keys()
    torch.save(straight.state(), tmp_path / "state.pt")
    again.model.load_state_dict(straight.model.state_dict())
    again.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    a, b = (each.update(frames=make_clips(seed=2).frames) for each in (straight, again))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_it_needs_a_channel():
    with pytest.raises(ValueError, match="channels"):
        dataclasses.replace(CONFIG, channels=())
