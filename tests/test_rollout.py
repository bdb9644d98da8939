"""Dreams: their place in time, their images, their share of a batch, and how they are held against reality.

Frames are index-coded: every pixel of frame i is i, so any mix-up of time or of episodes is a wrong number.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny, train
from torch import Tensor

from agents import Uniform
from mbrl import mbpo
from mbrl.collector import Collector
from mbrl.evaluate import Evaluation
from mbrl.experiment.run import Run, stream_seed
from mbrl.experiment.settings import load
from mbrl.mbpo import MBPO
from mbrl.replay import ReplayBuffer, Starts
from mbrl.rollout import dream, to_float, to_uint8
from mbrl.session import Session
from mbrl.world import training as world_training
from mbrl.world.validate import CLIPS, cut_clips, validate
from world_model import Clips, Dream, Episode
from world_model.api import FrameRollout

SIZE, STACK, HORIZON = 4, 3, 5


class StubWorld:
    """A world model that follows a rule: the next image, and what the action earned."""

    device, context_length, heads = torch.device("cpu"), 2, ("reward",)

    def __init__(self, rule: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.rule = rule
        self.actions: list[Tensor] = []  # (B, A) of each step
        self.diagnosed: Clips | None = None

    def start(self, context: Tensor, *_: Any, **__: Any) -> FrameRollout:
        def predict(frames: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            self.actions.append(action)
            image, reward = self.rule(frames[:, -1], action)
            return image, {"reward": reward}

        return FrameRollout(context, predict)

    def diagnose(self, clips: Clips, dream: Dream) -> dict[str, float]:
        self.diagnosed = clips
        return {"of_its_own": 1.0}


class Coder:
    """An agent whose action names the newest frame that it saw; it keeps all it was shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.begun = 0

    def begin_episode(self, eval_mode: bool) -> None:
        self.begun += 1

    def act(self, obs: Tensor, decision: int, eval_mode: bool) -> Tensor:
        assert not eval_mode, "in a dream the agent explores"
        assert self.begun == 1, "and is told that one begins"
        self.seen.append(obs)
        return obs[:, -1, 0, 0, None].float().repeat(1, 2)


def count_on(image: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Frame i + 1 follows frame i; the reward names the action."""
    return image + 1 / 255, 10 * action[:, 0]


def follow_action(image: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve more than the action says follows it, whatever the frame before."""
    return (action[:, :1, None, None] + 12).expand_as(image) / 255, 10 * action[:, 0]


def stand_still(image: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    return image.clone(), action[:, 0]


def coded_episode(decisions: int, first: int = 0, step: int = 1) -> Episode:
    """Frame i is `first + step * i`, action i is the same number, reward i ten times that."""
    index = first + step * np.arange(decisions + 1)
    frames = np.broadcast_to(index.astype(np.uint8)[:, None, None, None], (decisions + 1, 3, SIZE, SIZE)).copy()
    actions = np.repeat(index[:-1, None], 2, axis=1).astype(np.float32)
    return Episode(frames, actions, 10 * index[:-1].astype(np.float32), terminated=False)


def buffer(**changes: Any) -> ReplayBuffer:
    settings = dict(frame_stack=STACK, nstep=1, discount=0.99, seed=0, episode_decisions=HORIZON) | changes
    return ReplayBuffer(1000, (3, SIZE, SIZE), 2, **settings)


def dreams(learner: StubWorld, agent: Any, starts: Starts) -> list[Episode]:
    generator = torch.Generator().manual_seed(0)
    return dream(learner, agent, starts, HORIZON, 7, temperature=1.0, top_k=100, generator=generator)


# -- images and time -------------------------------------------------------------------------------------------------


def test_images_survive_the_way_to_float_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert to_uint8(to_float(every)).equal(every)
    assert to_uint8(torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 2.0])).tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("nstep", [1, 3])
def test_a_dream_lines_up_in_a_replay_buffer(nstep: int) -> None:
    real, imagined = buffer(), buffer(nstep=nstep)
    for first in (0, 100):
        real.add(coded_episode(20, first))
    agent = Coder()
    starts = real.sample_starts(32)
    episodes = dreams(StubWorld(count_on), agent, starts)
    for start, episode in zip(starts.frames, episodes, strict=True):
        assert episode.prefix == STACK - 1
        assert episode.frames.shape == (STACK + HORIZON, 3, SIZE, SIZE)
        assert np.array_equal(episode.frames[:STACK], start.numpy())
        newest = int(start[-1, 0, 0, 0])
        assert episode.frames[STACK - 1 :, 0, 0, 0].tolist() == list(range(newest, newest + HORIZON + 1))
        assert episode.actions[:, 0].tolist() == list(range(newest, newest + HORIZON))
        assert not episode.terminated
        imagined.add(episode)

    batch = imagined.sample(512)
    newest = batch.obs[:, -1, 0, 0].float()
    assert batch.action[:, 0].equal(newest), "the action belongs to the newest frame that the agent saw"
    steps = batch.next_obs[:, -1, 0, 0].float() - newest
    assert sorted(set(steps.tolist())) == list(range(1, nstep + 1))  # fewer than n at the end of a dream
    expected = sum(10 * (newest + k) * 0.99**k * (k < steps) for k in range(nstep))
    assert torch.allclose(batch.reward[:, 0], expected)
    assert torch.allclose(batch.discount[:, 0], 0.99**steps), "the end of a dream is no termination"
    # The first decision of a dream sees the real frames before it, not copies of its first frame.
    shown = {tuple(stack) for obs in agent.seen for stack in obs[:, ::3, 0, 0].tolist()}
    assert {tuple(stack) for stack in batch.obs[:, ::3, 0, 0].tolist()} <= shown


def test_the_actor_sees_the_same_numbers_of_a_real_and_of_an_imagined_copy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 3, SIZE, SIZE), dtype=np.uint8)
    images[:5] = images[4]  # the stack at decision 4 shows one image: its next frame is the same again
    real, imagined = buffer(), buffer()
    real.add(Episode(images, np.zeros((11, 2), np.float32), np.zeros(11, np.float32), terminated=False))
    start = torch.from_numpy(images[2:5])[None]  # uint8 (1, K, 3, H, W)
    agent = Coder()
    for episode in dreams(StubWorld(stand_still), agent, Starts(start, None)):
        imagined.add(episode)
    assert len(agent.seen) == HORIZON
    for obs in (*agent.seen, *imagined.sample(20).obs[:, None]):
        assert obs.dtype == torch.uint8
        assert obs.equal(start.flatten(1, 2)), "every image of the dream is the real one, bit for bit"


# -- the share of dreams -----------------------------------------------------------------------------------------------


@pytest.fixture
def loop(run_root: Path) -> Iterator[Callable[..., MBPO]]:
    """A loop of the tiny run that has not begun."""
    opened: list[tuple[Run, MBPO]] = []

    def build(*overrides: str) -> MBPO:
        run = Run.open(load(tiny(run_root, *overrides)))
        opened.append((run, MBPO(run)))
        return opened[-1][1]

    yield build
    for run, made in opened:
        made.close()
        run.close()


def flat_episode(value: int, decisions: int = 3, prefix: int = 0) -> Episode:
    frames = np.full((prefix + decisions + 1, 3, 32, 32), value, np.uint8)
    rewards = np.full(decisions, 10 * value, np.float32)
    return Episode(frames, np.zeros((decisions, 2), np.float32), rewards, terminated=False, prefix=prefix)


@pytest.mark.parametrize(("ratio", "real"), [(0.5, 4), (0.25, 2), (1.0, 8), (0.0, 0)])
def test_real_ratio_of_an_agents_batch_is_real(loop: Callable[..., MBPO], ratio: float, real: int) -> None:
    trained = loop("batch_size=8", "nstep=1", f"real_ratio={ratio}")
    trained.replay.add(flat_episode(1))
    assert (trained.mixed_batch(8).obs == 1).all(), "as long as there are no dreams, everything is real"
    trained.imagined.add(flat_episode(2, prefix=2))
    batch = trained.mixed_batch(8)
    assert len(batch.obs) == len(batch.reward) == 8
    for field in (batch.obs[:, 0, 0, 0], batch.next_obs[:, -1, 0, 0]):
        assert sorted(field.tolist()) == [1] * real + [2] * (8 - real)
    assert batch.reward[:, 0].equal(10 * batch.obs[:, 0, 0, 0].float()), "rewards come from the same buffer as images"


def test_half_of_every_batch_of_a_run_is_imagined(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the run itself, after the first dreams."""
    sizes: list[tuple[str, int]] = []
    sample = ReplayBuffer.sample

    def counted(self: ReplayBuffer, batch_size: int) -> Any:
        sizes.append(("dream" if any(episode.prefix for episode in self.episodes()) else "real", batch_size))
        return sample(self, batch_size)

    monkeypatch.setattr(ReplayBuffer, "sample", counted)
    train(run_root, "num_train_frames=60", "drqv2.bc_batch_size=3")
    assert {size for size in sizes if size[1] != 3} == {("real", 2), ("dream", 2)}
    assert sizes.count(("dream", 2)) == sizes.count(("real", 2)) == 5  # half an update a decision


def test_the_imagined_buffer_forgets_the_oldest_dreams(loop: Callable[..., MBPO], monkeypatch) -> None:
    trained = loop("imagined_buffer_frames=48")  # 24 decisions: two times four dreams of three
    trained.replay.add(flat_episode(0))
    number = iter(range(1, 100))
    monkeypatch.setattr(mbpo, "dream", lambda *_, **__: [flat_episode(next(number), prefix=2) for _ in range(4)])
    for _ in range(5):
        trained.dream(trained.agent)
        assert len(trained.imagined) <= 24
    assert [int(episode.frames[0, 0, 0, 0]) for episode in trained.imagined.episodes()] == list(range(13, 21))
    assert set(trained.imagined.sample(500).obs[:, 0, 0, 0].tolist()) == set(range(13, 21))


# -- reality, as it is collected ---------------------------------------------------------------------------------------


def test_a_collected_episode_can_be_played_again(loop: Callable[..., MBPO]) -> None:
    """The stored actions, taken in a fresh episode of the same seed, give the stored frames and rewards."""
    trained = loop()
    agent = Uniform(2, "cpu", seed=0)
    while trained.replay.num_episodes < 2:
        trained.session.collector.act(agent)
    for number, episode in enumerate(trained.session.collector.stored_episodes(0, 2)):
        obs, _ = trained.session.eval_env.reset(seed=stream_seed(trained.session.settings.seed, "episode", number))
        assert np.array_equal(obs[-3:], episode.frames[0])
        for action, reward, frame in zip(episode.actions, episode.rewards, episode.frames[1:], strict=True):
            obs, earned, _, over, _ = trained.session.eval_env.step(action)
            assert np.float32(earned) == reward
            assert np.array_equal(obs[-3:], frame)
        assert over


# -- dreams held against reality ---------------------------------------------------------------------------------------


def test_validation_dreams_under_the_actions_that_were_taken() -> None:
    """A model that knows how frames and rewards follow from actions is found to be perfect."""
    learner = StubWorld(follow_action)
    episodes = [coded_episode(20, step=12), coded_episode(12, first=5, step=12), coded_episode(3)]
    metrics, grid = validate(learner, episodes, HORIZON, seed=0)
    assert metrics["dream_mse"] < 1e-12
    assert metrics["moving_error_ratio"] < 1e-6
    assert metrics["moving_error_ratio_shuffled"] > 1.0
    assert metrics["reward_mae"] == 0.0
    assert metrics["reward_correlation"] == pytest.approx(1.0)
    assert metrics["of_its_own"] == 1.0
    assert "token_accuracy" not in metrics, "a model without tokens has no metrics of tokens"
    assert grid is not None
    assert len(grid) == HORIZON

    known = learner.context_length
    cut = cut_clips(episodes, CLIPS, known + HORIZON, seed=0)
    assert cut is not None
    frames, actions, rewards = cut[0].frames, cut[0].actions[:, :-1], cut[0].rewards[:, :-1]
    assert actions.equal(frames[:, :-1, :2, 0, 0].float())
    assert rewards.equal(10 * actions[..., 0])
    assert cut[1] is None, "episodes without a seed have no origins"
    assert {int(clip[0, 0, 0, 0]) % 12 for clip in frames} == {0, 5}, "every episode long enough is used"
    taken, shuffled = torch.stack(learner.actions, dim=1).split(HORIZON, dim=1)
    assert taken[:, 0, 0].equal(frames[:, known - 1, 0, 0, 0].float()), "it belongs to the last known frame"
    assert not shuffled.equal(taken)
    assert sorted(shuffled[:, 0, 0].tolist()) == sorted(taken[:, 0, 0].tolist())
    assert learner.diagnosed is not None
    assert learner.diagnosed.frames.equal(to_float(frames))
    assert learner.diagnosed.actions[:, :-1].equal(actions), "the last one leads out of the clip"


def test_validation_finds_a_model_that_copies() -> None:
    metrics, _ = validate(StubWorld(stand_still), [coded_episode(20, step=12)], HORIZON, seed=0)
    assert metrics["moving_error_ratio"] == metrics["moving_error_ratio_shuffled"] == 1.0
    assert metrics["dream_psnr"] == pytest.approx(metrics["copy_psnr"])
    mse = np.mean([(12 * k / 255) ** 2 for k in range(1, HORIZON + 1)])
    assert metrics["dream_mse"] == pytest.approx(mse, rel=1e-4)


def test_episodes_too_short_give_no_metrics() -> None:
    assert validate(StubWorld(stand_still), [coded_episode(HORIZON)], HORIZON, seed=0) == ({}, None)


def test_validation_sees_only_evaluation_episodes(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[Episode] = []
    validated: list[Episode] = []
    trained_on: list[Episode] = []
    evaluate, add = Session.evaluate, Collector.add

    def spied_evaluate(self: Session) -> Evaluation:
        evaluated.extend((result := evaluate(self)).episodes)
        return result

    def spied_add(self: Collector, episode: Episode) -> None:
        trained_on.append(episode)
        add(self, episode)

    monkeypatch.setattr(Session, "evaluate", spied_evaluate)
    monkeypatch.setattr(Collector, "add", spied_add)
    monkeypatch.setattr(
        world_training, "validate", lambda world, episodes, *_: validated.extend(episodes) or ({}, None)
    )
    train(run_root, "num_train_frames=100", "num_eval_episodes=3", "eval_every_frames=20")
    assert len(evaluated) == 3 * 3  # at 60, 80 and 100
    assert [id(episode) for episode in validated] == [id(episode) for episode in evaluated]
    assert len(trained_on) == 2 + 5  # demonstrations and training
    firsts = {episode.frames[0].tobytes() for episode in trained_on}
    assert firsts.isdisjoint(episode.frames[0].tobytes() for episode in validated)
    assert len({episode.frames.tobytes() for episode in validated}) == len(validated), "each evaluation has new seeds"
