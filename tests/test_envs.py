"""The contract that every environment keeps, whatever its suite; seeds; names; the optimum of the toy."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs import dmcontrol, metaworld, rendering, toy
from envs.wrappers import FrameResult

ROBODESK = pytest.param(
    "robodesk/open-slide",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("robodesk") is None,
        reason="robodesk is not installed: pip install --no-deps robodesk==1.0.0",
    ),
)
DECISIONS = 6  # an episode in these tests: enough for the stack to fill, short enough for six simulators
TASKS = (
    *metaworld.PAPER_TASKS,
    "dm_control/walker-walk",
    "ogbench/cube-double",
    "ogbench/scene",
    ROBODESK,
    *(f"toy/{task}" for task in toy.TASKS),
)


def make(task, **settings):
    return envs.make(task, **({"seed": 1, "episode_frames": 2 * DECISIONS} | settings))


def play(env, seed):
    """Observations and rewards of one episode; the seed decides its reset and its actions."""
    generator = np.random.default_rng(seed)
    observations, rewards, over = [env.reset(seed=seed)[0]], [], False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(generator.uniform(-1, 1, env.action_space.shape))
        observations.append(obs)
        rewards.append(reward)
        over = terminated or truncated
    return np.stack(observations), np.array(rewards)


@pytest.fixture(scope="module", params=TASKS)
def env(request):
    """One environment a task for the whole module: it has lived through other tests, as in a real run."""
    env = make(request.param)
    env.task = request.param
    yield env
    env.close()


def test_contract(env):
    assert env.action_repeat == 2
    assert env.episode_decisions == DECISIONS
    assert env.observation_space.shape == (9, 64, 64)
    assert env.observation_space.dtype == np.uint8
    assert env.action_space.dtype == np.float32
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()

    obs, info = env.reset(seed=3)
    assert env.observation_space.contains(obs)
    assert info["success"] == 0.0
    assert isinstance(info["seed"], int)
    assert (obs == np.tile(obs[:3], (3, 1, 1))).all(), "the first image fills the stack"
    assert obs[:3].std() > 5, "an image shows something"
    kept = obs.copy()
    for decision in range(1, DECISIONS + 1):
        last, (obs, reward, terminated, truncated, info) = obs, env.step(np.ones(env.action_space.shape))
        assert env.observation_space.contains(obs)
        assert (obs[:6] == last[3:]).all(), "the oldest frame comes first and is the one that goes"
        assert isinstance(reward, float)
        assert np.isfinite(reward)
        assert terminated is False
        assert truncated is (decision == DECISIONS)
        assert info["success"] in (0.0, 1.0)
        assert isinstance(info["success"], float)
    assert (obs[-3:] != kept[-3:]).any(), "the actions moved something"
    assert env.render().shape == (64, 64, 3)
    assert (env.render() == obs[-3:].transpose(1, 2, 0)).all()
    with pytest.raises(envs.EpisodeOver):
        env.step(np.zeros(env.action_space.shape))


def test_observations_are_not_overwritten(env):
    first, _ = env.reset(seed=3)
    kept = first.copy()
    env.step(np.ones(env.action_space.shape))
    assert (first == kept).all()


def test_actions_are_checked_and_clipped(env):
    size = env.action_space.shape[0]
    env.reset(seed=4)
    for action in (
        np.full(size, np.nan),
        np.full(size, np.inf),
        np.zeros(size + 1),
        np.zeros((1, size)),
        0.5,
    ):
        with pytest.raises(envs.InvalidAction):
            env.step(action)
    clipped = env.step(np.ones(size))
    env.reset(seed=4)
    beyond = env.step(np.full(size, 7.0))
    assert (clipped[0] == beyond[0]).all()
    assert clipped[1] == beyond[1]


def test_gymnasium_has_no_complaint(env):
    check_env(env)


def test_a_reset_seed_decides_everything_that_follows(env):
    """In a used environment and in a new one, and whatever numpy's global generator is doing."""
    np.random.seed(1)  # noqa: NPY002
    first = play(env, 5)
    second = play(env, 6)
    for _ in range(2):
        env.reset()
        env.step(env.action_space.sample())  # leave an episode unfinished
    np.random.seed(2)  # noqa: NPY002
    before = np.random.get_state()  # noqa: NPY002
    again = play(env, 5)
    new = make(env.task, seed=99)
    fresh = play(new, 5)
    new.close()
    after = np.random.get_state()  # noqa: NPY002
    for other in (again, fresh):
        assert (first[0] == other[0]).all()
        assert (first[1] == other[1]).all()
    assert (first[0] != second[0]).any(), "another seed, another episode"
    assert before[2] == after[2]
    assert (before[1] == after[1]).all(), "the global generator is left alone"


def test_resets_without_a_seed_follow_from_the_last_one_given():
    def starts(env, **first):
        return [env.reset(**first)[0], env.reset()[0], env.reset()[0]]

    one, two, other = (envs.make("toy/reach", seed=seed) for seed in (1, 1, 2))
    a, b, c = starts(one), starts(two), starts(other)
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert all((x != y).any() for x, y in zip(a, c, strict=True))
    assert (a[0] != a[1]).any(), "every reset draws another goal"
    assert (a[1] != a[2]).any()
    d, e = starts(one, seed=8), starts(other, seed=8)
    assert all((x == y).all() for x, y in zip(d, e, strict=True))


def test_where_the_goal_of_the_toy_is():
    goals = {task: [] for task in toy.TASKS}
    for task, seen in goals.items():
        env = envs.make(f"toy/{task}", seed=0)
        for _ in range(5):
            env.reset()
            seen.append(tuple(env.simulator.goal))
    assert len(set(goals["reach"])) == 5
    assert set(goals["centre"]) == {(0.0, 0.0)}


def test_reward_is_summed_over_the_repeat_and_the_bonus_paid_once_a_decision():
    single = envs.make("toy/reach", action_repeat=1, success_bonus=0.0)
    double = envs.make("toy/reach", action_repeat=2, success_bonus=10.0)
    single.reset(seed=0)
    double.reset(seed=0)
    paid = set()
    for _ in range(double.episode_decisions):
        action = toy.optimal_action(double)
        frames = [single.step(action) for _ in range(2)]
        obs, reward, _, _, info = double.step(action)
        touched = any(frame[4]["success"] for frame in frames)
        assert info["success"] == float(touched)
        assert reward == pytest.approx(sum(frame[1] for frame in frames) + 10.0 * touched)
        assert (obs[-3:] == frames[-1][0][-3:]).all(), "the image is taken at the end of the repeat"
        paid.add(touched)
    assert paid == {False, True}


def test_success_is_seen_even_if_it_does_not_last_to_the_end_of_the_repeat():
    env = envs.make("toy/reach", action_repeat=8)
    env.reset(seed=0)
    simulator = env.simulator
    simulator.dot, simulator.goal = np.array([-0.25, 0.0]), np.array([0.0, 0.0])
    _, _, _, _, info = env.step(np.array([1.0, 0.0]))  # through the goal and 0.55 beyond
    assert np.abs(simulator.dot - simulator.goal).max() > toy.RADIUS
    assert info["success"] == 1.0


def test_meta_world_takes_the_bonus_and_dm_control_does_not():
    push = make("coffee-push", success_bonus=0.0)
    push.reset(seed=0)
    assert push.step(np.zeros(4))[1] < 10.0
    push.close()
    walk = make("dm_control/walker-walk")
    walk.reset(seed=0)
    _, reward, _, _, info = walk.step(np.zeros(6))
    assert info["success"] == 0.0
    assert 0.0 <= reward <= 2.0, "at most 1 a frame"
    walk.close()


def test_dm_control_cameras(monkeypatch):
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # dm_control 1.0.28 needs it, numpy 2.4 lacks it
    for task, usual in (("dm_control/walker-walk", 0), ("dm_control/quadruped-walk", 2)):
        by_default, by_number = make(task), make(task, camera=usual)
        assert (by_default.reset(seed=0)[0] == by_number.reset(seed=0)[0]).all()
        other = make(task, camera=1)
        assert (by_default.reset(seed=0)[0] != other.reset(seed=0)[0]).any()
        for env in (by_default, by_number, other):
            env.close()


def test_default_episode_lengths():
    for task, decisions in (("coffee-push", 100), ("dm_control/walker-walk", 500), ("toy/reach", 20)):
        env = envs.make(task)
        assert env.episode_decisions == decisions
        env.close()


def test_an_episode_may_be_longer_than_meta_world_allows():
    env = envs.make("coffee-push", action_repeat=260, episode_frames=520)
    env.reset(seed=0)
    assert env.step(np.zeros(4))[3] is False
    assert env.step(np.zeros(4))[3] is True
    env.close()


def test_one_spelling_per_task():
    for spelling in ("coffee-push", "coffee_push", "metaworld/coffee_push", "Coffee-Push", "coffee-push-v3"):
        assert envs.canonical(spelling) == "coffee-push"
    for spelling in ("dm_control/walker-walk", "dm_control/walker_walk", "DM-Control/walker-walk"):
        assert envs.canonical(spelling) == "dm_control/walker-walk"
    assert envs.canonical("dm_control/ball_in_cup-catch") == "dm_control/ball-in-cup-catch"
    assert envs.canonical("toy/reach") == "toy/reach"
    assert envs.canonical("reach") == "reach"
    assert [envs.canonical(name) for name in envs.task_names()] == envs.task_names()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("cofee-push", "coffee-push"),
        ("metaworld/hamer", "hammer"),
        ("dm_control/walker-wlak", "dm_control/walker-walk"),
        ("walker-walk", "dm_control/walker-walk"),
        ("toy/coffee-push", "coffee-push"),
    ],
)
def test_unknown_task_names_the_nearest(wrong, right):
    with pytest.raises(envs.UnknownTask, match=f"unknown task '{wrong}'; did you mean '{right}'"):
        envs.make(wrong)


@pytest.mark.parametrize("wrong", ["", "/", "xyzzy", "metaworld/"])
def test_unknown_task_without_a_likeness(wrong):
    with pytest.raises(envs.UnknownTask, match="unknown task"):
        envs.canonical(wrong)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"action_repeat": 0}, "action_repeat must be at least 1"),
        ({"frame_stack": 0}, "frame_stack must be at least 1"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"episode_frames": 0}, "episode_frames=0"),
        ({"episode_frames": 41}, "episode_frames=41 must be a multiple of action_repeat=2"),
    ],
)
def test_settings_out_of_range(settings, line):
    with pytest.raises(envs.InvalidSetting, match=line):
        envs.make("toy/reach", **settings)


def test_the_tables_of_tasks_are_those_of_the_packages():
    rendering.choose_backend()  # before dm_control is imported
    from dm_control import suite
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    assert set(ENV_POLICY_MAP) == set(ALL_V3_ENVIRONMENTS), "every task has an expert"
    assert {f"{task}-v3" for task in metaworld.TASKS} == set(ALL_V3_ENVIRONMENTS)
    left_out = {(domain, task) for domain, task in suite.ALL_TASKS if domain == "lqr"}
    assert set(dmcontrol.TASKS.values()) == set(suite.ALL_TASKS) - left_out


def test_importing_envs_and_making_a_toy_loads_no_simulator():
    code = (
        "import sys, envs; envs.make('toy/reach').reset(); "
        "print([m for m in ('mujoco', 'metaworld', 'dm_control', 'torch', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Cliff:
    """A simulator whose episode is over for good in its third frame."""

    action_dim = 1

    def reset(self, seed):
        self.frame = 0

    def advance(self, action):
        self.frame += 1
        return FrameResult(1.0, False, self.frame == 3)

    def render(self):
        return np.full((3, 4, 4), self.frame, np.uint8)

    def snapshot(self):
        return self.frame

    def restore(self, snapshot):
        self.frame = snapshot

    def close(self):
        pass


def test_a_task_with_an_end_of_its_own_terminates():
    settings = {"frame_stack": 1, "success_bonus": 0.0, "image_size": 4}
    env = envs.PixelEnv(Cliff(), 0, action_repeat=2, episode_frames=4, **settings)
    env.reset()
    assert env.step([0.0])[1:4] == (2.0, False, False)
    obs, reward, terminated, truncated, _ = env.step([0.0])
    assert (reward, terminated, truncated) == (1.0, True, False), "nothing is earned after the end"
    assert (obs == 3).all()
    with pytest.raises(envs.EpisodeOver):
        env.step([0.0])


@pytest.mark.parametrize("action_repeat", [1, 2, 4])
def test_the_optimum_of_the_toy(action_repeat):
    env = envs.make("toy/reach", action_repeat=action_repeat)
    generator = np.random.default_rng(0)

    def episode_return(seed, policy):
        env.reset(seed=seed)
        return sum(env.step(policy())[1] for _ in range(env.episode_decisions))

    for seed in range(5):
        env.reset(seed=seed)
        promised = toy.best_return(env)
        reached = episode_return(seed, lambda: toy.optimal_action(env))
        assert reached == pytest.approx(promised, abs=1e-4)
        for _ in range(5):  # nothing near the optimum, and nothing random, is better

            def nudged():
                return toy.optimal_action(env) + generator.normal(0, 0.1, 2)

            assert episode_return(seed, nudged) <= promised + 1e-9
        assert episode_return(seed, lambda: generator.uniform(-1, 1, 2)) < promised - 1.0


def test_the_toy_draws_what_it_says():
    env = envs.make("toy/reach")
    env.reset(seed=0)
    env.simulator.goal = np.array([0.5, 0.5])
    env.simulator.dot = np.array([-0.5, -0.5])
    obs = env.step(np.zeros(2))[0][-3:].astype(int)
    rows, columns = np.nonzero(obs[0] - obs[1] > 100)  # the dot is red
    assert rows.mean() == pytest.approx(47, abs=1)
    assert columns.mean() == pytest.approx(16, abs=1)
