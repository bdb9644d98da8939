"""Scripted demonstrations: successful, whole, aligned with the environment, repeatable."""

import numpy as np
import pytest

import envs
from envs import toy
from mbrl import collector
from mbrl.collector import collect_demonstrations as collect


def test_a_demonstration_replays_in_its_environment():
    (demo,) = collect("button-press-topdown-wall", 1, seed=0)
    assert demo.frames.shape == (101, 3, 64, 64)
    assert demo.frames.dtype == np.uint8
    assert demo.actions.shape == (100, 4)
    assert demo.actions.dtype == np.float32
    assert demo.rewards.shape == (100,)
    assert demo.rewards.dtype == np.float32
    assert np.abs(demo.actions).max() <= 1.0
    assert demo.successes.any()
    assert not demo.successes.all(), "it starts unsolved"

    env = envs.make("button-press-topdown-wall", seed=0)
    obs, _ = env.reset()  # the stream of seeds of collect(seed=0)
    assert (obs[-3:] == demo.frames[0]).all()
    for i in range(25):
        obs, reward, _, _, info = env.step(demo.actions[i])
        assert (obs[-3:] == demo.frames[i + 1]).all()
        assert np.float32(reward) == demo.rewards[i]
        assert info["success"] == demo.successes[i]
    env.close()


@pytest.mark.parametrize("task", ["coffee-push", "door-lock", "hammer", "handle-pull-side", "plate-slide"])
def test_the_expert_of_the_papers_tasks_succeeds(task):
    (demo,) = collect(task, 1, seed=0, image_size=8)
    touched = demo.successes == 1.0
    assert touched.any()
    assert demo.rewards[touched].min() > 10.0, "the bonus is in the reward"


def test_the_bonus_is_what_a_success_adds():
    (with_bonus,) = collect("toy/reach", 1, seed=0, success_bonus=10.0)
    (without,) = collect("toy/reach", 1, seed=0, success_bonus=0.0)
    np.testing.assert_allclose(with_bonus.rewards - 10.0 * with_bonus.successes, without.rewards, atol=1e-5)


def test_same_seed_same_demonstrations():
    one, two, other = (collect("toy/reach", 3, seed=seed) for seed in (4, 4, 5))
    for a, b in zip(one, two, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert (one[0].frames != one[1].frames).any()
    assert (one[0].frames != other[0].frames).any()


def test_only_episodes_with_a_success_are_kept(monkeypatch):
    record = collector.record
    played = []

    def every_other_fails(*given):
        episode = record(*given)
        if len(played) % 2 == 0:
            episode = episode._replace(successes=np.zeros_like(episode.successes))
        played.append(episode)
        return episode

    monkeypatch.setattr(collector, "record", every_other_fails)
    kept = collect("toy/reach", 3, seed=0)
    assert len(played) == 6
    assert [id(demo) for demo in kept] == [id(demo) for demo in played[1::2]]


def test_an_expert_that_never_succeeds_is_given_up(monkeypatch):
    monkeypatch.setattr(toy, "RADIUS", -1.0)
    with pytest.raises(envs.ExpertFailed, match="succeeded in 0 of 20 episodes, 2 demonstrations"):
        collect("toy/reach", 2, seed=0)


def test_a_task_without_an_expert():
    with pytest.raises(envs.NoExpert, match="'dm_control/walker-walk' has no scripted expert"):
        collect("dm_control/walker-walk", 1, seed=0)


def test_none_asked_for():
    assert collect("toy/reach", 0, seed=0) == []
