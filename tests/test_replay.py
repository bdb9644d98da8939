"""The replay buffer against episodes whose every number tells where it comes from."""

import io

import numpy as np
import pytest
import torch

from mbrl.replay import ReplayBuffer, ReplayError
from world_model import Episode

SHAPE = (3, 2, 2)  # of a frame


def coded_episode(number, decisions, terminated=False, prefix=0):
    """Frame i holds (number, i, 0), action i is (number, i) and reward i is 100 * number + i.

    i counts from the frame of the first decision; prefix frames hold 256 - 1, 256 - 2, ... going back.
    """
    index = np.arange(-prefix, decisions + 1)
    frames = np.zeros((len(index), *SHAPE), np.uint8)
    frames[:, 0], frames[:, 1] = number, (index % 256)[:, None, None]
    i = np.arange(decisions, dtype=np.float32)
    actions = np.stack([np.full(decisions, number, np.float32), i], 1)
    return Episode(frames, actions, 100 * number + i, terminated, prefix)


def buffer(capacity=40, **changes):
    settings = {"frame_stack": 3, "nstep": 3, "discount": 0.9, "seed": 1, "episode_decisions": 8} | changes
    return ReplayBuffer(capacity, SHAPE, 2, **settings)


def frame_numbers(frames):
    """(episode, index) of frames (..., 3, 2, 2)."""
    return frames[..., 0, 0, 0].int(), frames[..., 1, 0, 0].int()


def brute_force(episode, i, nstep, discount, stack):
    """One n-step transition as `agents/api.py` draws it, with loops."""
    total, steps = 0.0, 0
    while steps < nstep and i + steps < len(episode.rewards):
        total += discount**steps * episode.rewards[i + steps]
        steps += 1
    over = episode.terminated and i + steps == len(episode.rewards)

    def stacked(j):
        return np.concatenate([episode.frames[max(0, episode.prefix + j - back)] for back in reversed(range(stack))])

    return stacked(i), total, 0.0 if over else discount**steps, stacked(i + steps)


@pytest.mark.parametrize(("nstep", "stack", "prefix"), [(1, 1, 0), (3, 3, 0), (3, 3, 2), (5, 2, 1)])
def test_transitions_equal_a_brute_force_reference(nstep, stack, prefix):
    lengths = (1, 2, 7, 4)
    episodes = [coded_episode(n, t, terminated=n % 2 == 1, prefix=prefix) for n, t in enumerate(lengths)]
    replay = buffer(nstep=nstep, frame_stack=stack)
    for episode in episodes:
        replay.add(episode)
    batch = replay.sample(500)
    assert batch.obs.shape == (500, stack * 3, 2, 2)
    assert batch.reward.shape == batch.discount.shape == (500, 1)
    seen = set()
    for obs, action, reward, discount, next_obs in zip(*batch, strict=True):
        number, i = int(action[0]), int(action[1])
        seen.add((number, i))
        expected = brute_force(episodes[number], i, nstep, 0.9, stack)
        np.testing.assert_array_equal(obs, expected[0])
        np.testing.assert_allclose(reward, expected[1], rtol=1e-6)
        np.testing.assert_allclose(discount, expected[2], rtol=1e-6)
        np.testing.assert_array_equal(next_obs, expected[3])
    assert seen == {(n, i) for n, t in enumerate(lengths) for i in range(t)}, "some decision is never sampled"


def test_every_decision_is_equally_likely():
    replay = buffer()
    for number, decisions in enumerate((1, 9, 2)):
        replay.add(coded_episode(number, decisions))
    actions = replay.sample(12_000).action
    _, counts = np.unique(actions.numpy(), axis=0, return_counts=True)
    assert len(counts) == 12
    assert counts.min() > 850
    assert counts.max() < 1150


@pytest.mark.parametrize("prefix", [0, 2])
def test_segments_are_aligned_and_reach_the_last_frame(prefix):
    replay = buffer(capacity=60)
    for number, decisions in enumerate((3, 8, 5, 12)):  # the first is too short for 5 frames
        replay.add(coded_episode(number, decisions, prefix=prefix))
    segments = replay.sample_segments(600, 5)
    numbers, index = frame_numbers(segments.frames)  # (600, 5) each
    assert (numbers == numbers[:, :1]).all()
    assert (index == index[:, :1] + torch.arange(5)).all()
    # What is stored beside frame i was done at frame i; only the last column may lead out of the episode.
    assert (segments.actions[:, :-1, 0] == numbers[:, :-1]).all()
    assert (segments.actions[:, :-1, 1] == index[:, :-1]).all()
    assert (segments.rewards[:, :-1] == (100 * numbers + index)[:, :-1]).all()
    starts = set(zip(numbers[:, 0].tolist(), index[:, 0].tolist(), strict=True))
    assert starts == {(n, i) for n, t in ((1, 8), (2, 5), (3, 12)) for i in range(t + 1 - 5 + 1)}
    ends = (numbers[:, -1] == 1) & (index[:, -1] == 8)
    assert ends.any()
    assert (segments.actions[ends, -1] == 0).all()


def test_starts_are_full_stacks():
    replay = buffer()
    replay.add(coded_episode(1, 4))
    numbers, index = frame_numbers(replay.sample_starts(64).frames)
    assert index.shape == (64, 3)
    assert {tuple(row) for row in index.tolist()} == {(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3)}
    replay = buffer()
    replay.add(coded_episode(1, 2, prefix=2))
    _, index = frame_numbers(replay.sample_starts(64).frames)
    assert {tuple(row) for row in index.tolist()} == {(254, 255, 0), (255, 0, 1)}


def test_eviction_keeps_the_newest_whole_episodes_within_the_capacity():
    replay = buffer(capacity=20)
    memory = replay.nbytes
    lengths = np.random.default_rng(0).integers(1, 12, size=200)
    for number, decisions in enumerate(lengths):
        replay.add(coded_episode(number, int(decisions), prefix=number % 3))
        if number % 5 == 0:
            replay.sample_segments(1, 2)
        held = [int(episode.actions[0, 0]) for episode in replay.episodes()]
        assert held == list(range(number + 1 - len(held), number + 1))
        assert len(replay) == lengths[held].sum() <= 20
        assert set(replay.sample(100).action[:, 0].int().tolist()) <= set(held)
        for episode in replay.episodes():
            n = int(episode.actions[0, 0])
            expected = coded_episode(n, int(lengths[n]), prefix=n % 3)
            np.testing.assert_array_equal(episode.frames, expected.frames)
            np.testing.assert_array_equal(episode.rewards, expected.rewards)
    assert replay.nbytes == memory


def test_the_ring_is_filled_to_its_capacity():
    replay = buffer(capacity=40, episode_decisions=8)
    for number in range(20):
        replay.add(coded_episode(number, 8, prefix=2))  # a rollout: as many frames more as the ring foresees
    assert len(replay) == 40
    assert replay.num_episodes == 5


@pytest.mark.parametrize("with_episodes", [True, False])
def test_state_continues_bit_for_bit(with_episodes):
    replay, other = buffer(), buffer(seed=2)
    episodes = [coded_episode(n, 6, prefix=n % 3) for n in range(9)]
    for episode in episodes[:7]:
        replay.add(episode)
    replay.sample(5)
    file = io.BytesIO()
    torch.save(replay.state_dict(with_episodes=with_episodes), file)
    file.seek(0)
    if with_episodes:
        other.add(coded_episode(99, 3))  # replaced by the saved ones
    else:
        for episode in episodes[1:7]:  # a subset that holds all that had not been dropped
            other.add(episode)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert len(other) == len(replay)
    for episode in episodes[7:]:
        replay.add(episode)
        other.add(episode)
        for mine, theirs in (
            (replay.sample(50), other.sample(50)),
            (replay.sample_segments(9, 4), other.sample_segments(9, 4)),
        ):
            assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(mine, theirs, strict=True))


def test_a_large_buffer_lives_in_a_file_and_gives_the_same_samples(tmp_path):
    in_memory = buffer()
    mapped = buffer(memory_limit_bytes=100, scratch=tmp_path)
    for replay in (in_memory, mapped):
        for number in range(12):
            replay.add(coded_episode(number, 6))
    for a, b in zip(in_memory.sample(64), mapped.sample(64), strict=True):
        assert torch.equal(a, b)
    assert list(tmp_path.iterdir()) == [], "the file must not outlive the process, however that ends"
    with pytest.raises(ReplayError, match="no room"):
        buffer(memory_limit_bytes=100, scratch=tmp_path / "missing")
    with pytest.raises(ReplayError, match="memory limit"):
        buffer(memory_limit_bytes=100)


def test_seeds_decide_the_samples_and_the_global_state_is_left_alone():
    replays = [buffer(seed=seed) for seed in (1, 1, 2)]
    for replay in replays:
        replay.add(coded_episode(1, 30))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, third = (replay.sample(20).action for replay in replays)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_bad_episodes_and_impossible_samples_are_refused_in_one_line():
    replay = buffer(capacity=10)
    with pytest.raises(ReplayError, match="no episode"):
        replay.sample(1)
    good = coded_episode(1, 4)
    bad = {
        "frames": good._replace(frames=good.frames[:-1]),
        "float": good._replace(frames=good.frames.astype(np.float32)),
        "actions": good._replace(actions=good.actions[:, :1]),
        "rewards": good._replace(rewards=good.rewards.astype(np.float64)),
        "finite": good._replace(rewards=np.full(4, np.nan, np.float32)),
        "no decision": coded_episode(1, 0),
        "does not fit": coded_episode(1, 11),
    }
    for message, episode in bad.items():
        with pytest.raises(ReplayError, match=message) as caught:
            replay.add(episode)
        assert "\n" not in str(caught.value)
    assert len(replay) == 0
    replay.add(good)
    with pytest.raises(ReplayError, match="no episode holds 6 frames .* holds 5"):
        replay.sample_segments(1, 6)
    assert replay.sample_segments(2, 5).frames.shape == (2, 5, *SHAPE)
