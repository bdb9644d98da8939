"""The other world models behind the contract: the simulator itself, and a one-step predictor."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import envs
from mbrl.collector import record
from mbrl.replay import ReplayBuffer
from mbrl.rollout import to_float, to_uint8
from mbrl.session import Session
from mbrl.world.simulator import SimulatorWorld
from mbrl.world.validate import validate
from tests.tiny import different, train
from tests.tiny_world import make_clips
from world_model import Origin, WeightsError, imagine
from world_model.onestep import OneStep, OneStepConfig, OneStepLearning, OneStepWorld

CPU = torch.device("cpu")
CONFIG = OneStepConfig(
    width=8, frames=2, steps=3, batch_size=4, update_every_frames=4, lr=1e-3, max_grad_norm=1.0, mse_weight=5.0,
    motion_weight=0.3, reward_weight=1.0, precision="fp32",
)  # fmt: skip


# -- the simulator -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        "coffee-push", "hammer", "door-lock", "handle-pull-side", "plate-slide", "button-press-topdown-wall",
        "dm_control/walker-walk", "toy/reach",
    ],
)  # fmt: skip
def test_the_simulator_dreams_what_really_happened(task):
    """From decisions of a recorded episode, under the actions really taken: the same frames and rewards to the bit."""
    settings = dict(episode_frames=24, image_size=32)
    env, dreaming = envs.make(task, 3, **settings), envs.make(task, 4, **settings)
    generator = np.random.default_rng(0)
    size = env.action_space.shape
    episode = record(env, lambda obs: generator.uniform(-1, 1, size).astype(np.float32))
    world, horizon = SimulatorWorld(dreaming, CPU), 4
    starts = [0, 5, 8]
    origins = [Origin(episode.seed, episode.actions, i) for i in starts]
    context = to_float(torch.from_numpy(np.stack([episode.frames[i : i + 1] for i in starts])))
    actions = torch.from_numpy(np.stack([episode.actions[i : i + horizon] for i in starts]))
    dream = imagine(world, context, actions, horizon, origins=origins)
    for row, i in enumerate(starts):
        assert np.array_equal(to_uint8(dream.frames[row]).numpy(), episode.frames[i + 1 : i + 1 + horizon])
        assert np.array_equal(dream.rewards[row].float().numpy(), episode.rewards[i : i + horizon])
        assert np.array_equal(dream.heads["success"][row].float().numpy(), episode.successes[i : i + horizon])
    env.close()
    dreaming.close()


def test_candidates_and_forks_of_the_simulator():
    env = envs.make("toy/reach", 0, image_size=32)
    episode = record(env, lambda obs: np.full(2, 0.5, np.float32))
    world = SimulatorWorld(env, CPU)
    context = to_float(torch.from_numpy(episode.frames[None, 3:4]))
    rollout = world.start(context, origins=[Origin(episode.seed, episode.actions, 3)])
    left, right = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    other, both = rollout.fork(), rollout.expand(2).step(torch.cat([left, right]))
    assert torch.equal(rollout.step(left).frame[0], both.frame[0])
    assert torch.equal(other.step(right).frame[0], both.frame[1])
    assert not torch.equal(both.frame[0], both.frame[1])
    with pytest.raises(ValueError, match="give an origin for each dream"):
        world.start(context)


def test_the_simulator_draws_what_is_looked_at(monkeypatch):
    """Heads alone cost no image; an image costs one, however often it is looked at."""
    env = envs.make("toy/reach", 0, image_size=32)
    episode = record(env, lambda obs: np.full(2, 0.5, np.float32))
    context = to_float(torch.from_numpy(episode.frames[None, 3:4]))
    start = SimulatorWorld(env, CPU).start(context, origins=[Origin(episode.seed, episode.actions, 3)])
    drawn: list[int] = []
    render = env.simulator.render
    monkeypatch.setattr(env.simulator, "render", lambda: (drawn.append(1), render())[1])
    rollout = start.expand(5)
    steps = [rollout.step(torch.full((5, 2), 0.5)) for _ in range(4)]
    assert [float(step.heads["reward"][0]) for step in steps] == pytest.approx(episode.rewards[3:7].tolist())
    assert not drawn
    for _ in range(2):
        assert np.array_equal(to_uint8(steps[1].frame)[0].numpy(), episode.frames[5])
    assert len(drawn) == 5


def test_a_replay_knows_where_its_starts_are():
    env = envs.make("toy/reach", 0, image_size=32, episode_frames=12)
    replay = ReplayBuffer(50, (3, 32, 32), 2, frame_stack=3, nstep=1, discount=0.99, seed=0)
    generator = np.random.default_rng(0)
    for _ in range(12):  # the oldest are dropped
        replay.add(record(env, lambda obs: generator.uniform(-1, 1, 2).astype(np.float32)))
    starts = replay.sample_starts(40)
    for stack, origin in zip(starts.frames, starts.origins, strict=True):
        moment = env.replay(origin.seed, origin.actions)[origin.decision]
        assert np.array_equal(env.restore(moment).reshape(3, 3, 32, 32), stack.numpy())
    replay.add(next(replay.episodes())._replace(seed=None))
    assert replay.sample_starts(500).origins is None, "an older episode does not say"


# -- the one-step predictor --------------------------------------------------------------------------------------------


def given(config):
    """What is kept with the weights: the keys of the network and its learning."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(OneStepLearning)}


def make_onestep(seed=0, **changes):
    torch.manual_seed(seed)
    config = dataclasses.replace(CONFIG, **changes)
    return OneStepWorld(OneStep(config, 3, ("reward", "success")), 32, CPU, 2, config.update_every_frames)


def test_it_learns_a_world_that_it_can_see():
    """A square is moved by the action; what is earned is the action. Dreams of unseen clips are right."""
    generator = torch.Generator().manual_seed(0)

    def clips(count):
        actions = torch.randint(-1, 2, (count, 6, 3), generator=generator).float()
        places = 12 + torch.cat([torch.zeros(count, 1, 2), 2 * actions[:, :-1, :2].cumsum(1)], dim=1).long()
        frames = torch.full((count, 6, 3, 32, 32), 0.2)
        for i, t in np.ndindex(count, 6):
            row, column = places[i, t].tolist()
            frames[i, t, :, row : row + 6, column : column + 6] = 0.9
        return make_clips()._replace(frames=frames, actions=actions, rewards=3 * actions[..., 0])

    world = make_onestep(lr=3e-3)
    for _ in range(250):
        world.update(clips(8))
    unseen = clips(16)
    dream = imagine(world, unseen.frames[:, :2], unseen.actions[:, 1:-1], 4)
    copying = (unseen.frames[:, 1:2] - unseen.frames[:, 2:]).square().mean()
    assert (dream.frames - unseen.frames[:, 2:]).square().mean() < 0.25 * copying
    assert (dream.rewards - unseen.rewards[:, 1:-1]).abs().mean() < 0.7
    assert world.diagnose(unseen, dream)["one_step_error_ratio"] < 0.25


def test_what_a_one_step_world_saves_and_when_it_learns(tmp_path):
    world, other, clips = make_onestep(), make_onestep(seed=1), make_clips(frames=5)
    assert world.sample(None, 6) is None
    drawn = []
    for frame in (8, None):
        world.sample(type("Sampler", (), {"clips": lambda self, *given: drawn.append(given)})(), frame)
    assert drawn == 2 * [(4, 5)]
    world.update(clips)
    world.save_pretrained(tmp_path)
    other.model.load_pretrained(tmp_path)
    other.load_state(copy.deepcopy(world.state()))
    for each in (world, other):
        each.update(clips)
    assert all(torch.equal(a, b) for a, b in zip(world.weights().values(), other.weights().values(), strict=True))
    again = OneStep.from_pretrained(tmp_path)
    assert (again.config, again.resolution) == (OneStepLearning(**given(world.config)), 32)
    with pytest.raises(WeightsError, match="is missing"):
        other.model.load_pretrained(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="size mismatch"):
        make_onestep(width=16).model.load_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a dream needs 2 context frames"):
        world.start(clips.frames[:, :1])


def test_heads_that_were_saved_need_not_be_those_that_are_wanted(tmp_path):
    """Pre-trained with a reward head, used with a success head beside it, and the other way round."""
    both, reward = make_onestep().model, OneStepWorld(OneStep(CONFIG, 3), 32, CPU).model
    with torch.no_grad():
        both.heads["success"].bias.fill_(1.0)
        reward.heads["reward"].bias.fill_(2.0)
    for source, target in ((reward, both), (both, reward)):
        source.save_pretrained(tmp_path)
        target.load_pretrained(tmp_path)
        assert torch.equal(source.out.weight, target.out.weight)
    assert both.heads["success"].bias.item() == 1.0
    assert both.heads["reward"].bias.item() == reward.heads["reward"].bias.item() == 2.0
    (tmp_path / "config.json").write_text('{"kind": "onestep"}')
    with pytest.raises(WeightsError, match="config.json cannot be read"):
        OneStep.from_pretrained(tmp_path)


# -- in the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["onestep", "simulator"])
def test_a_run_with_another_world_model_resumes_bit_for_bit(run_root, kind, monkeypatch):
    keys, act = [f"world_model.kind={kind}", "num_train_frames=120"], Session.act
    whole = train(run_root / "whole", *keys)

    def until_90(self, agent):
        episode = act(self, agent)
        if self.frame == 90:
            raise KeyboardInterrupt
        return episode

    with monkeypatch.context() as patch:
        patch.setattr(Session, "act", until_90)
        with pytest.raises(KeyboardInterrupt):
            train(run_root / "cut", *keys)
    assert different(whole, train(run_root / "cut", *keys)) == []
    if kind == "onestep":
        assert (whole / "world_model/model.safetensors").exists()


def test_validation_of_the_simulator_is_exact():
    env = envs.make("toy/reach", 0, image_size=32)
    episodes = [record(env, lambda obs: np.full(2, 0.5, np.float32)) for _ in range(2)]
    metrics, grid = validate(SimulatorWorld(env, CPU), episodes, 4, seed=0)
    assert metrics["dream_mse"] == 0.0
    assert metrics["reward_mae"] < 1e-6
    assert "token_accuracy" not in metrics
    assert grid is not None
