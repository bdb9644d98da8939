"""Streams of random numbers that must be apart: weights, noise, evaluation, and those of the next seed."""

from typing import Any

import pytest
import test_dreamer
import test_drqv2 as drqv2
import torch

from agents import Uniform
from agents.dreamerv3 import agent as agent_module
from agents.seeding import substreams


def test_more_streams_leave_the_first_ones_as_they_are():
    assert substreams(7, 5)[:2] == substreams(7, 2)
    assert len({seed for number in range(20) for seed in substreams(number, 5)}) == 100


def test_drqv2_draws_weights_and_noise_from_streams_of_their_own(monkeypatch):
    drawn = set()
    monkeypatch.setattr("agents.drqv2.orthogonal_init", lambda network, generator: drawn.add(generator.initial_seed()))
    noise = {drqv2.agent(seed=seed)._generator.initial_seed() for seed in (1, 2)}
    assert len(drawn | noise) == 2 * 2


def test_uniform_evaluation_does_not_repeat_training():
    uniform, obs = Uniform(2, "cpu", seed=1), drqv2.batch(0).obs
    training, evaluation = (uniform.act(obs, 0, eval_mode=mode) for mode in (False, True))
    assert (training != evaluation).all()


def test_dreamer_draws_weights_noise_and_evaluation_from_streams_of_their_own(monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []
    initialise = agent_module.initialise

    def noted(network: Any, generator: torch.Generator, *arguments: Any) -> None:
        drawn.append(generator.initial_seed())
        initialise(network, generator, *arguments)

    monkeypatch.setattr(agent_module, "initialise", noted)
    agents = [test_dreamer.make_agent(seed) for seed in (1, 2)]
    noises = [noise.generator.initial_seed() for a in agents for noise in (a.noise, a._evaluation_noise)]
    assert len({*drawn, *noises}) == 2 * 3, "agents of seeds 1 and 2 share none either"
