"""DrQ-v2: its parts against references, its state bit for bit, and that it learns."""

import dataclasses
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agents import (
    BehaviourCloner,
    DrQv2,
    DrQv2Config,
    InvalidConfig,
    StateMismatch,
    TransitionBatch,
    Uniform,
    parse_schedule,
)
from agents.networks import random_shift

OBS_SHAPE = (9, 64, 64)
CONFIG = DrQv2Config(
    encoder="strided",
    feature_dim=16,
    hidden_dim=32,
    lr=1e-3,
    critic_target_tau=0.01,
    stddev_schedule="linear(1.0,0.1,100)",
    stddev_clip=0.3,
    bc_updates=0,
    bc_stddev_schedule="linear(0.2,0.1,100)",
    bc_schedule="linear(1.0,0.0,10)",
    bc_batch_size=4,
    anchor_schedule="0",
    ibrl=False,
    random_shift=4,
    layer_norm=False,
    saturation_penalty=0.0,
    reward_scale=1.0,
    actor_average=0.0,
    precision="fp32",
)


# Everything that is off by default, at once.
ALL = {"bc_updates": 3, "ibrl": True, "layer_norm": True, "actor_average": 0.9}


def agent(seed=1, obs_shape=OBS_SHAPE, **changes):
    return DrQv2(obs_shape, 2, dataclasses.replace(CONFIG, **changes), "cpu", seed)


def shown(learner, seed=99):
    """The learner, with the same demonstrations whenever it asks."""
    learner.demonstrations = lambda size: batch(seed, size)
    return learner


def cloned(learner):
    """The learner, after behaviour cloning on demonstrations."""
    assert len(list(shown(learner).clone())) == learner.config.bc_updates
    return learner


def batch(seed, size=4):
    generator = torch.Generator().manual_seed(seed)

    def images():
        return torch.randint(0, 256, (size, *OBS_SHAPE), dtype=torch.uint8, generator=generator)

    def uniform(width):
        return torch.rand(size, width, generator=generator)

    discount = torch.full((size, 1), 0.97)
    return TransitionBatch(images(), uniform(2) * 2 - 1, uniform(1), discount, images())


def assert_same_weights(a, b):
    ours, theirs = a.weights(), b.weights()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def grid_sample_shift(obs, shifts, pad):
    """DrQ-v2's augmentation: the padded image sampled bilinearly on a shifted grid of pixel centres."""
    size = obs.shape[-1]
    padded = F.pad(obs.double(), (pad,) * 4, mode="replicate")
    whole = size + 2 * pad
    centres = (2 * torch.arange(size, dtype=torch.float64) + 1) / whole - 1
    rows = centres + 2 * shifts[:, :1].double() / whole  # (B, size)
    columns = centres + 2 * shifts[:, 1:].double() / whole
    shape = (len(obs), size, size)
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], -1)
    return F.grid_sample(padded, grid, padding_mode="zeros", align_corners=False)


def test_random_shift_equals_the_published_grid_sample():
    shifts = torch.cartesian_prod(torch.arange(9), torch.arange(9))  # every shift there is
    obs = torch.randint(0, 256, (81, 2, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shifted = random_shift(obs, shifts, 4)
    assert shifted.dtype == torch.uint8
    torch.testing.assert_close(shifted.double(), grid_sample_shift(obs, shifts, 4), atol=1e-9, rtol=0)
    centre = random_shift(obs, torch.full((81, 2), 4), 4)
    assert torch.equal(centre, obs)


def test_the_published_encoder_has_its_size():
    assert agent(encoder="drqv2").encoder.repr_dim == 20_000
    assert 512 <= agent(encoder="strided").encoder.repr_dim <= 1600
    assert agent(encoder="quarter", obs_shape=(9, 64, 64)).encoder.repr_dim == 32 * 16 * 16


def test_images_are_scaled_once_inside_the_network():
    encoder = agent().encoder
    seen = []
    encoder.convnet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    encoder(torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, *OBS_SHAPE))
    assert (seen[0][0] == -0.5).all()
    assert (seen[0][1] == 0.5).all()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.25", {0: 0.25, 10**6: 0.25}),
        ("linear(1.0,0.1,100000)", {0: 1.0, 50_000: 0.55, 100_000: 0.1, 10**6: 0.1}),
        ("step_linear( 1, 0.5, 10, 0.1, 20 )", {0: 1.0, 5: 0.75, 10: 0.5, 20: 0.3, 30: 0.1, 99: 0.1}),
    ],
)
def test_schedules(text, values):
    schedule = parse_schedule(text)
    assert {decision: pytest.approx(schedule(decision)) for decision in values} == values


@pytest.mark.parametrize("text", ["", "fast", "linear(1.0,0.1)", "linear(1,0,0)", "cosine(1,0,9)", "linear(1,nan,9)"])
def test_a_schedule_that_is_not_understood_is_refused(text):
    with pytest.raises(InvalidConfig, match="schedule"):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "resnet"}, "'resnet' is unknown: choose drqv2 or quarter or strided"),
        ({"precision": "fp8"}, "choose auto or fp32 or bf16"),
        ({"bc_schedule": "-1"}, "bc_schedule='-1' must not be negative"),
        ({"stddev_schedule": "linear(1,-1,100)"}, "must not be negative"),
        ({"bc_schedule": "step_linear(1,-1,10,1,10)"}, "must not be negative"),
        ({"ibrl": True}, "ibrl needs a cloned policy: set bc_updates above 0"),
        ({"stddev_schedule": "lin(1)"}, "not understood"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes, message):
    with pytest.raises(InvalidConfig, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_exploration_follows_the_schedule_and_stays_in_bounds():
    small = (3, 16, 16)
    learner, obs = agent(obs_shape=small), torch.full((2000, *small), 99, dtype=torch.uint8)
    mean = learner.act(obs[:1], 0, eval_mode=True)
    for decision, stddev in ((0, 1.0), (100, 0.1)):
        actions = learner.act(obs, decision, eval_mode=False)
        assert actions.abs().max() < 1
        expected = (mean + stddev * torch.randn(2000, 2, generator=torch.Generator().manual_seed(3))).clamp(-1, 1)
        torch.testing.assert_close(actions.std(0), expected.std(0), atol=0.05, rtol=0.05)
        torch.testing.assert_close(actions.mean(0), expected.mean(0), atol=0.05, rtol=0)


def test_value_is_the_smaller_q_of_the_mean_action():
    learner, obs = agent(), batch(3).obs
    with torch.no_grad():
        features = learner.encoder(obs)
        q1, q2 = learner.critic(features, learner.act(obs, 0, eval_mode=True))
    assert torch.equal(learner.value(obs), torch.min(q1, q2)[:, 0])
    critic = learner.critic
    critic.Q1, critic.Q2 = critic.Q2, critic.Q1
    assert torch.equal(learner.value(obs), torch.min(q1, q2)[:, 0]), "whichever is the smaller"


def test_evaluating_leaves_training_untouched():
    one, two = agent(), agent()
    obs = batch(0).obs
    for step in range(2):
        first = two.act(obs, step, eval_mode=True)
        assert torch.equal(first, two.act(obs, step, eval_mode=True))
        for learner in (one, two):
            learner.update(batch(step), step)
    assert torch.equal(one.act(obs, 5, eval_mode=False), two.act(obs, 5, eval_mode=False))
    assert_same_weights(one, two)


def test_seeds_decide_everything_and_the_global_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    learners = [agent(seed=1), agent(seed=1), agent(seed=2)]
    for learner in learners:
        for step in range(2):
            shown(learner).update(batch(step), step)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(learners[0], learners[1])
    assert not torch.equal(
        learners[0].weights()["actor.policy.output.weight"],
        learners[2].weights()["actor.policy.output.weight"],
    )


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, ALL, ALL | {"precision": "bf16"}])
def test_resumes_bit_for_bit(changes):
    straight, first = cloned(agent(**changes)), cloned(agent(**changes))
    for step in range(4):
        shown(straight, 100 + step).update(batch(step), step)
    for step in range(2):
        shown(first, 100 + step).update(batch(step), step)
    file = io.BytesIO()
    torch.save((first.weights(), first.state()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    assert "weights" not in state, "they have a file of their own"
    resumed = agent(seed=7, **changes)
    resumed.load_weights(weights)
    obs = batch(0).obs
    assert torch.equal(first.act(obs, 2, eval_mode=True), resumed.act(obs, 2, eval_mode=True)), "weights are enough"
    resumed.load_state(state)
    for step in range(2, 4):
        shown(resumed, 100 + step).update(batch(step), step)
    assert_same_weights(straight, resumed)
    assert torch.equal(straight.act(obs, 4, eval_mode=False), resumed.act(obs, 4, eval_mode=False))


def test_weights_of_other_sizes_are_refused():
    weights = agent(hidden_dim=64).weights()
    learner = agent()
    before = learner.act(batch(0).obs, 0, eval_mode=True)
    with pytest.raises(StateMismatch, match=r"actor\.policy\.hidden\.0\.weight is \(64, 16\).*needs \(32, 16\)"):
        learner.load_weights(weights)
    with pytest.raises(StateMismatch, match="missing"):
        learner.load_weights({})
    assert torch.equal(before, learner.act(batch(0).obs, 0, eval_mode=True))


def test_without_behaviour_cloning_it_is_plain_drqv2():
    ended, off, without = shown(agent()), shown(agent(bc_schedule="0")), agent()
    for step in range(10, 12):  # the schedule of `ended` has reached zero here
        for learner in (ended, off, without):
            assert "bc_loss" not in learner.update(batch(step), step)
    assert_same_weights(ended, off)
    assert_same_weights(ended, without)


def test_demonstrations_are_asked_for_while_the_schedule_is_above_zero():
    learner, asked = agent(), []  # its schedule reaches zero at decision 10
    learner.demonstrations = lambda size: asked.append(size) or batch(99, size)
    for decision in (0, 9, 10, 11):
        learner.update(batch(0), decision)
    assert asked == [4, 4]
    assert isinstance(learner, BehaviourCloner)
    assert not isinstance(Uniform(2, "cpu", seed=1), BehaviourCloner)


def test_the_target_follows_the_critic_and_the_actor_loss_leaves_it_alone():
    learner = agent(bc_schedule="0")
    target = {k: v.clone() for k, v in learner.weights().items() if k.startswith("critic_target.")}
    learner.update(batch(0), 0)
    weights = learner.weights()
    for name, old in target.items():
        new = weights[name.replace("critic_target", "critic")]
        torch.testing.assert_close(weights[name], 0.99 * old + 0.01 * new)


def test_metrics_are_detached_scalars_and_show_a_loss_that_is_not_finite():
    learner = shown(agent(**ALL))
    cloning = list(learner.clone())
    metrics = learner.update(batch(0), 0)
    assert {"critic_loss", "actor_loss", "bc_loss", "bc_weight", "ibrl_clone_share"} <= metrics.keys()
    for value in (*metrics.values(), cloning[0]["bc_loss"]):
        assert value.shape == ()
        assert not value.requires_grad
    bad = batch(0)._replace(reward=torch.full((4, 1), float("inf")))
    assert not torch.isfinite(agent().update(bad, 0)["critic_loss"])


SMALL = (3, 48, 48)


def image_of(state):
    """uint8 (B, 3, 48, 48): a bright square whose place is `state` (B, 2) in [-1, 1]."""
    obs = np.zeros((len(state), *SMALL), np.uint8)
    for item, (row, column) in enumerate(((state.numpy() + 1) * 19 + 2).astype(int)):
        obs[item, :, row : row + 6, column : column + 6] = 255
    return torch.from_numpy(obs)


def bandit(generator, size=32):
    """One-step task: the best action is the square's place; the reward is minus the distance to it."""
    state = torch.rand(size, 2, generator=generator) * 2 - 1
    action = torch.rand(size, 2, generator=generator) * 2 - 1
    reward = -(action - state).abs().sum(1, keepdim=True)
    obs = image_of(state)
    return TransitionBatch(obs, action, reward, torch.zeros(size, 1), obs), state


def distance(learner):
    held_out, state = bandit(torch.Generator().manual_seed(123), 64)
    return (learner.act(held_out.obs, 10**6, eval_mode=True) - state).abs().sum(1).mean().item()


def test_learns_to_see_and_act():
    learner = agent(stddev_schedule="0.2", bc_schedule="0", obs_shape=SMALL, lr=2e-3, hidden_dim=128)
    generator = torch.Generator().manual_seed(5)
    before = distance(learner)
    for step in range(250):
        learner.update(bandit(generator)[0], step)
    assert distance(learner) < 0.5 * before


def test_a_saturation_penalty_keeps_the_way_out_of_a_corner_short():
    actions = {}
    for penalty in (0.0, 0.1):
        learner = agent(stddev_schedule="0.2", bc_schedule="0", obs_shape=SMALL, lr=2e-3, saturation_penalty=penalty)
        generator = torch.Generator().manual_seed(5)
        for step in range(150):  # the more the better, and then the less
            transitions = bandit(generator)[0]
            reward = (3 if step < 100 else -3) * transitions.action.sum(1, keepdim=True)
            metrics = learner.update(transitions._replace(reward=reward), step)
            if step == 99:
                assert metrics["actor_saturated"] == (1 if penalty == 0 else 0)
        actions[penalty] = learner.act(transitions.obs, 10**6, eval_mode=True)
    assert actions[0.1].mean() < -0.7
    assert actions[0.1].mean() < actions[0.0].mean() - 0.3


def test_a_cloned_actor_pays_no_saturation_penalty():
    plain, spared = (cloned(agent(bc_updates=3, saturation_penalty=penalty)) for penalty in (0.0, 5.0))
    for learner in (plain, spared):
        learner.update(batch(0), 0)
    for name, weight in plain.weights().items():
        torch.testing.assert_close(spared.weights()[name], weight, rtol=0, atol=0)


def test_cloning_imitates_before_the_first_frame():
    learner, generator = agent(bc_updates=100, bc_batch_size=32, obs_shape=SMALL), torch.Generator().manual_seed(5)
    before = distance(learner)

    def demonstrations(size):
        transitions, best = bandit(generator, size)
        return transitions._replace(action=best)

    learner.demonstrations = demonstrations
    losses = [float(metrics["bc_loss"]) for metrics in learner.clone()]
    assert distance(learner) < 0.5 * before
    assert losses[-1] < 0.3 * losses[0]


def test_behaviour_cloning_imitates_where_rewards_say_nothing():
    learner, generator = agent(bc_schedule="1.0", obs_shape=SMALL), torch.Generator().manual_seed(5)
    before = distance(learner)
    for step in range(120):
        transitions, best = bandit(generator)
        demonstrated = transitions._replace(action=best)
        learner.demonstrations = lambda _, batch=demonstrated: batch
        learner.update(transitions._replace(reward=torch.zeros_like(transitions.reward)), step)
    assert distance(learner) < 0.5 * before


def test_uniform_actions_and_their_state():
    one, two, obs = Uniform(2, "cpu", seed=1), Uniform(2, "cpu", seed=1), batch(0, size=500).obs
    actions = one.act(obs, 0, eval_mode=False)
    assert actions.min() >= -1
    assert actions.max() <= 1
    torch.testing.assert_close(actions.std(0), torch.full((2,), 3**-0.5), atol=0.05, rtol=0)
    two.act(obs, 0, eval_mode=True)
    assert torch.equal(actions, two.act(obs, 0, eval_mode=False)), "evaluation moved the training stream"
    state = one.state()
    expected = one.act(obs, 0, eval_mode=False)
    two.load_state(state)
    assert torch.equal(two.act(obs, 0, eval_mode=False), expected)
    assert one.update(batch(0), 0) == one.weights() == {}
