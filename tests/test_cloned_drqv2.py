"""DrQ-v2's options for learning from few demonstrations, one by one; all at once in `test_drqv2.py`."""

import pytest
import torch
from test_drqv2 import agent, batch, cloned, shown

from agents import Noisy


def test_cloning_leaves_critic_and_optimizers_as_new():
    learner, fresh = cloned(agent(bc_updates=3)), agent()
    before, after = fresh.weights(), learner.weights()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"encoder", "actor"}
    state = learner.state()
    assert state["actor_optimizer"]["state"] == state["critic_optimizer"]["state"] == {}


def test_layer_norm_stands_before_each_relu_of_the_critic_alone():
    learner = agent(layer_norm=True)
    for q in (learner.critic.Q1, learner.critic_target.Q2):
        assert [type(layer).__name__ for layer in q.hidden] == ["Linear", "LayerNorm", "ReLU"] * 2
    assert [type(layer).__name__ for layer in learner.actor.policy.hidden] == ["Linear", "ReLU"] * 2
    huge = 1e3 * torch.ones(1, 18)
    assert learner.critic.Q1.hidden(huge).square().sum() <= 32 + 1e-3, "its size is bounded, whatever the input's"


def test_scaled_returns_are_learned_and_values_given_in_units_of_reward():
    plain, scaled = agent(), agent(reward_scale=0.5)
    for step in range(3):
        transitions = batch(step)
        plain.update(transitions, step)
        scaled.update(transitions._replace(reward=2 * transitions.reward), step)
    assert all(torch.equal(value, scaled.weights()[name]) for name, value in plain.weights().items())
    assert torch.equal(scaled.value(batch(9).obs), 2 * plain.value(batch(9).obs))


def test_images_are_shifted_as_far_as_is_said():
    obs = batch(0, 50).obs
    assert torch.equal(agent(random_shift=0)._augment(obs), obs)
    shifted = agent(random_shift=1)._augment(obs)
    windows = [obs[..., 1 + i : 29 + i, 1 + j : 29 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    same = torch.stack([(shifted[..., 1:29, 1:29] == window).flatten(1).all(1) for window in windows])
    assert (same.sum(0) == 1).all()
    assert same.any(1).all(), "each of the nine is drawn"


def prefers(learner, sign):
    """Makes both target critics value an action by sign * its first number, at any observation."""
    for q in (learner.critic_target.Q1, learner.critic_target.Q2):
        q.forward = lambda hidden: sign * hidden[:, -2:-1]


@pytest.mark.parametrize("eval_mode", [False, True])
def test_ibrl_acts_with_the_better_of_two_actions(eval_mode):
    learner, obs = cloned(agent(bc_updates=2, ibrl=True)), batch(0, 50).obs
    for step in range(3):
        learner.update(batch(step), step)  # so that actor and clone differ
    state, clone = learner.state()["generator"], learner.cloned

    def act():
        learner._generator.set_state(state)
        return learner.act(obs, 0, eval_mode=eval_mode)

    learner.cloned = None
    own, proposal = act(), clone(obs)
    learner.cloned = clone
    for sign in (1, -1):
        prefers(learner, sign)
        better = torch.where(sign * proposal[:, :1] > sign * own[:, :1], proposal, own)
        assert torch.equal(act(), better)


def test_ibrl_bootstraps_with_the_better_of_two_actions():
    learner = cloned(agent(bc_updates=2, ibrl=True, bc_schedule="0"))
    transitions = batch(0)._replace(reward=torch.zeros(4, 1), discount=torch.ones(4, 1))
    for low in (-1.0, 1.0):  # actions of which the clone's is the better one, then the worse one
        learner.cloned.forward = lambda obs, low=low: torch.full((len(obs), 2), -low)
        prefers(learner, -low)
        metrics = learner.update(transitions, 0)
        assert metrics["ibrl_clone_share"] == 1
        torch.testing.assert_close(metrics["critic_target_q"], torch.tensor(1.0))
        prefers(learner, low)
        metrics = learner.update(transitions, 0)
        assert metrics["ibrl_clone_share"] == 0
        assert metrics["critic_target_q"] > -1


def test_the_clone_stays_as_it_is():
    learner = cloned(agent(bc_updates=2, ibrl=True))
    before = {name: value.clone() for name, value in learner.cloned.state_dict().items()}
    assert torch.equal(before["actor.policy.output.weight"], learner.actor.policy.output.weight)
    shown(learner).update(batch(0), 0)
    assert all(torch.equal(value, before[name]) for name, value in learner.cloned.state_dict().items())
    assert not torch.equal(before["actor.policy.output.weight"], learner.actor.policy.output.weight)


def test_evaluation_acts_with_the_average_of_the_weights():
    learner, plain, obs = cloned(agent(bc_updates=2, actor_average=0.5)), cloned(agent(bc_updates=2)), batch(5).obs
    assert torch.equal(learner.act(obs, 0, eval_mode=True), plain.act(obs, 0, eval_mode=True)), "it begins as the clone"
    expected = {name: value.clone() for name, value in plain.weights().items()}
    for step in range(2):
        for each in (learner, plain):
            shown(each).update(batch(step), step)
        expected = {name: (expected[name] + value) / 2 for name, value in plain.weights().items()}
    averaged = agent()
    averaged.load_weights(expected)
    torch.testing.assert_close(learner.act(obs, 0, eval_mode=True), averaged.act(obs, 0, eval_mode=True))
    assert torch.equal(learner.act(obs, 0, eval_mode=False), plain.act(obs, 0, eval_mode=False))


def test_noise_around_another_agents_actions():
    learner, obs = agent(), batch(0, 1).obs.expand(400, -1, -1, -1)
    noisy, before = Noisy(learner, 0.1, "cpu", seed=3), learner.state()["generator"]
    mean = learner.act(obs[:1], 0, eval_mode=True)
    actions = noisy.act(obs, 0, eval_mode=False)
    torch.testing.assert_close((actions - mean).std(0), torch.full((2,), 0.1), atol=0.02, rtol=0)
    assert torch.equal(noisy.act(obs[:1], 0, eval_mode=True), mean)
    assert torch.equal(learner.state()["generator"], before), "its training randomness is left alone"
    assert Noisy(learner, 9.0, "cpu", seed=3).act(obs, 0, eval_mode=False).abs().max() == 1
    state = noisy.state()
    expected = noisy.act(obs, 0, eval_mode=False)
    again = Noisy(learner, 0.1, "cpu", seed=4)
    again.load_state(state)
    assert torch.equal(again.act(obs, 0, eval_mode=False), expected)
    assert noisy.update(batch(0), 0) == noisy.weights() == {}
