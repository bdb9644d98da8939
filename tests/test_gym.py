"""Environments of other packages by their id, and ours in gymnasium's registry."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from tiny import checkpoints, different, tiny, weights

import envs
from mbrl import evaluate, tasks, train
from mbrl.session import Session

DOT = "gym:other_package:other/Dot-v0"


def make(kind, **settings):
    return envs.make(f"gym:other_package:other/{kind}-v0", **{"success_bonus": 0.0} | settings)


def test_an_environment_by_its_id_keeps_the_contract():
    env = make("Dot", seed=1)
    assert env.observation_space.shape == (9, 64, 64)
    assert env.action_space.shape == (1,)
    assert env.episode_decisions == 10, "of 21 frames the last fills no decision"
    check_env(env)
    obs, info = env.reset(seed=3)
    place = env.simulator._env.unwrapped.place
    obs, reward, terminated, truncated, info = env.step([0.0])  # the middle of [-3, 1]
    assert env.simulator._env.unwrapped.place == place - 2
    assert reward == pytest.approx((2 * place - 3) / 10)
    assert (terminated, truncated, info["success"]) == (False, False, 0.0)
    while not (truncated or terminated):
        *_, terminated, truncated, info = env.step([1.0])
    assert (terminated, truncated, info["success"]) == (False, True, 1.0), "is_success is looked for by itself"
    rows, columns = np.nonzero(env.render()[..., 0].astype(int) - env.render()[..., 2] > 100)
    assert (rows.min(), rows.max()) == (27, 36), "squeezed from 48 x 96 to 64 x 64"
    assert (columns.min(), columns.max()) == (53, 58)
    env.reset(seed=3)
    assert env.step([-1.0])[2:4] == (True, False), "it ends by itself"


def test_snapshots_are_played_to():
    first, second = make("Dot"), make("Dot")
    actions = np.random.default_rng(0).uniform(0, 1, (10, 1)).astype(np.float32)

    def played(env):
        return [env.step(action) for action in actions[4:]]

    first.reset(seed=3)
    for action in actions[:4]:
        first.step(action)
    moment = first.snapshot()
    future = played(first)
    for env in (first, second, first):  # from behind it, from nowhere, and again
        np.testing.assert_array_equal(env.restore(moment), moment.stack)
        for (obs, *outcome), (then, *earned) in zip(played(env), future, strict=True):
            np.testing.assert_array_equal(obs, then)
            assert outcome == earned


def test_an_image_of_the_observation():
    env = make("Pixels", image_key="pixels", success_key="arrived")
    drawn = make("Dot")
    np.testing.assert_array_equal(env.reset(seed=3)[0], drawn.reset(seed=3)[0])
    successes = {env.step([1.0])[4]["success"] for _ in range(env.episode_decisions)}
    assert successes == {0.0, 1.0}


def test_a_time_limit_of_its_own_truncates():
    env = make("Short", action_repeat=2)
    env.reset()
    assert [env.step([0.0])[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    with pytest.raises(envs.EpisodeOver):
        env.step([0.0])


def test_what_carries_something_over_is_made_anew_for_each_episode():
    with pytest.warns(UserWarning, match="carries something from one episode into the next, so it is made anew"):
        env = make("Marking")
    first = env.reset(seed=3)[0]
    env.step([1.0])
    moment = env.snapshot()
    env.step([-1.0])
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    np.testing.assert_array_equal(env.restore(moment)[-3:], env.simulator.render())


def test_a_camera_is_handed_on():
    assert (make("Dot", camera="side").reset(seed=1)[0] != make("Dot").reset(seed=1)[0]).any()


@pytest.mark.parametrize(
    ("kind", "settings", "line"),
    [
        ("Discrete", {}, r"takes actions of Discrete\(3\): they must be a Box"),
        ("Whole", {}, "they must be real numbers"),
        ("Boundless", {}, r"they must have bounds, to be scaled to \[-1, 1\]"),
        ("Blind", {}, r"gives no uint8 image \(H, W, 3\) by render\(\), but NoneType; there is none"),
        ("Pixels", {}, "cannot be made with render_mode=rgb_array"),
        ("Pixels", {"image_key": "image"}, "has no image_key=image in its observation; there is pixels"),
        ("Pixels", {"image_key": "place"}, r"by image_key=place, but float32 \(1,\); there is pixels"),
        ("Dot", {"image_key": "pixels"}, "has no image_key=pixels in its observation; there is none"),
        ("Dot", {"success_key": "sucess"}, "has no success_key=sucess in its info; there is is_success"),
        ("Dot", {"camera": "7"}, "cannot be made with render_mode=rgb_array, camera_id=7"),
        ("Unseeded", {}, r"gives another image at once when it is reset with the same seed again"),
        ("Drifting", {}, "gives another reward or end after 1 frames when it is reset with the same seed again"),
        ("Dot", {"action_repeat": 30}, "episode_frames=0 must be a multiple of action_repeat=30"),
    ],
)
def test_what_does_not_fit_is_one_line(kind, settings, line):
    with pytest.raises(envs.InvalidSetting, match=line) as caught:
        make(kind, **settings)
    assert "\n" not in str(caught.value)


def test_without_a_time_limit_it_must_be_given_one():
    with pytest.raises(envs.InvalidSetting, match="no time limit of its own: set episode_frames"):
        envs.make("gym:other_package:Endless-v0")
    assert envs.make("gym:other_package:Endless-v0", episode_frames=30).episode_decisions == 15


@pytest.mark.parametrize(
    ("task", "error", "line"),
    [
        ("gym:other_package:other/Dott-v0", envs.UnknownTask, "unknown task .*other/Dott"),
        ("gym:no_such_package:Dot-v0", envs.MissingPackage, "no_such_package.*pip install no_such_package"),
        ("gym:other_package:other/Needy-v0", envs.MissingPackage, "pybox2d is missing, run `pip install box2d`$"),
        ("gym:Pendulum-v1", envs.UnknownTask, "write gym:<package>:<Id>, such as"),
        ("gym:other_package:../x-v0", envs.UnknownTask, "write gym:<package>:<Id>"),
        ("gym:", envs.UnknownTask, "write gym:<package>:<Id>"),
    ],
)
def test_what_is_not_there_is_one_line(task, error, line):
    with pytest.raises(error, match=line) as caught:
        envs.make(task)
    assert "\n" not in str(caught.value)


def test_its_keys_are_refused_elsewhere():
    with pytest.raises(envs.InvalidSetting, match="image_key=pixels is for gym:<package>:<Id>, not for toy/reach"):
        envs.make("toy/reach", image_key="pixels")


def test_a_run_by_its_id_alone_ends_resumes_and_is_evaluated(tmp_path, typed, monkeypatch):
    """The loop that dreams, on a task that can end before its time limit."""
    root, whole = tmp_path / "runs", tmp_path / "whole"
    words = tiny(root, f"task={DOT}", "demonstrations=0")
    train.main(tiny(whole, f"task={DOT}", "demonstrations=0"))
    act = Session.act

    def until_110(self, agent):
        act(self, agent)
        if self.frame == 110:
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "act", until_110)
    with pytest.raises(KeyboardInterrupt):
        train.main(words)
    monkeypatch.undo()
    folder = root / DOT / "mbpo" / "1"
    assert 0 < checkpoints(folder)[-1] < 160
    train.main(words)
    assert weights(folder)
    assert different(folder, whole / DOT / "mbpo" / "1") == []
    code, out, _ = typed(evaluate.evaluate, f"task={DOT}", f"run_root={root}", "num_eval_episodes=1")
    assert code == 0
    assert re.search(r"success rate \d\.\d\d", out)


def test_the_list_of_tasks_says_that_there_are_more(typed):
    assert "gym:<package>:<Id>" in typed(tasks.main)[1]


def test_our_tasks_are_made_by_gymnasium():
    env = gymnasium.make("envs:ivideogpt/toy-reach-v0", render_mode="rgb_array", image_size=32)
    check_env(env.unwrapped)
    obs, _ = env.reset(seed=5)
    np.testing.assert_array_equal(obs, envs.make("toy/reach", image_size=32).reset(seed=5)[0])
    assert env.render().shape == (32, 32, 3)
    ours = {spec for spec in gymnasium.registry if spec.startswith("ivideogpt/")}
    assert len(ours) == len(envs.task_names())
    assert {"ivideogpt/coffee-push-v0", "ivideogpt/dm_control-walker-walk-v0"} <= ours
    with pytest.raises(envs.InvalidSetting, match="render_mode=human"):
        gymnasium.make("ivideogpt/toy-reach-v0", render_mode="human")


@pytest.mark.parametrize("words", [(), ("dry_run=true",)])
def test_a_task_whose_package_is_missing_leaves_nothing_behind(run_root, typed, words):
    code, out, line = typed(train.main, *tiny(run_root, "task=gym:no_such_package:Dot-v0"), *words)
    assert (code, out) == (2, "")
    assert "needs a package that is not installed" in line
    assert not run_root.exists()
