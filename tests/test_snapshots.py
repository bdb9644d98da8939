"""Snapshots and replays of environments: from any decision of an episode, the same future, bit for bit."""

import pickle

import numpy as np
import pytest
from test_envs import ROBODESK

import envs
from envs import dmcontrol, metaworld, ogbench, toy
from envs.snapshot import MujocoState
from mbrl.collector import collect_demonstrations as collect

DECISIONS = 12
TASKS = (
    *metaworld.PAPER_TASKS,
    "dm_control/walker-walk",
    "dm_control/reacher-easy",
    "ogbench/scene",
    "ogbench/cube-single",
    ROBODESK,
    "toy/reach",
)
# Attributes that are views into the simulator's memory, and a height field that every reset draws anew.
ODD_TASKS = ("basketball", "bin-picking", "door-unlock", "dm_control/quadruped-escape")


class Recorded:
    """An episode of random actions with a snapshot at each decision."""

    def __init__(self, env, seed):
        generator = np.random.default_rng(seed)
        obs, info = env.reset(seed=seed)
        self.seed = info["seed"]
        self.observations, self.outcomes, self.actions, self.snapshots = [obs], [], [], [env.snapshot()]
        for _ in range(DECISIONS):
            self.actions.append(generator.uniform(-1, 1, env.action_space.shape).astype(np.float32))
            obs, *outcome = env.step(self.actions[-1])
            self.observations.append(obs)
            self.outcomes.append(outcome)
            self.snapshots.append(env.snapshot())

    def check_from(self, decision, env):
        """`env` stands at `decision`: the rest of the episode is as recorded."""
        for i in range(decision, DECISIONS):
            obs, *outcome = env.step(self.actions[i])
            np.testing.assert_array_equal(obs, self.observations[i + 1])
            assert outcome == self.outcomes[i], f"reward, ends and success of decision {i}"


@pytest.fixture(scope="module", params=(*TASKS, *ODD_TASKS))
def pair(request):
    """Two environments of one task; the second has lived through something else."""
    first, second = (
        envs.make(request.param, seed=seed, episode_frames=2 * DECISIONS, image_size=32) for seed in (1, 2)
    )
    Recorded(second, 99)
    yield first, second
    first.close()
    second.close()


def test_every_snapshot_leads_to_the_same_future(pair):
    first, second = pair
    recorded, another = Recorded(first, 3), Recorded(first, 4)
    for env, decisions in ((second, range(DECISIONS, -1, -1)), (first, (10, 8))):
        for decision in decisions:
            obs = env.restore(recorded.snapshots[decision])
            np.testing.assert_array_equal(obs, recorded.observations[decision])
            np.testing.assert_array_equal(env.simulator.render(), obs[-3:])
            assert env.decisions_left == DECISIONS - decision
            recorded.check_from(decision, env)
        env.restore(another.snapshots[9])
        another.check_from(9, env)


def test_a_snapshot_in_a_new_environment_and_through_a_pickle():
    first, second = (envs.make("hammer", episode_frames=2 * DECISIONS) for _ in range(2))
    recorded = Recorded(first, 3)
    second.restore(pickle.loads(pickle.dumps(recorded.snapshots[4])))  # before any reset
    recorded.check_from(4, second)
    first.close()
    second.close()


def test_the_seed_in_info_starts_the_episode_again(pair):
    first, second = pair
    recorded = Recorded(first, 3)
    assert isinstance(recorded.seed, int)
    obs, info = second.reset_to(recorded.seed)
    np.testing.assert_array_equal(obs, recorded.observations[0])
    assert info == {"success": 0.0, "seed": recorded.seed}
    recorded.check_from(0, second)


def test_a_replay_draws_nothing_and_ends_where_the_episode_did(pair, monkeypatch):
    first, second = pair
    recorded = Recorded(first, 3)
    with monkeypatch.context() as patch:
        patch.setattr(second.simulator, "render", None)
        snapshots = second.replay(recorded.seed, recorded.actions)
        known = snapshots[7]._replace(stack=recorded.observations[7])
        second.restore(known)
    assert len(snapshots) == DECISIONS + 1
    recorded.check_from(7, second)
    for decision in (8, 1, DECISIONS):
        obs = first.restore(snapshots[decision])
        np.testing.assert_array_equal(obs, recorded.observations[decision])
        recorded.check_from(decision, first)


def test_replays_are_checked_as_steps_are():
    env = envs.make("toy/reach", episode_frames=4)
    with pytest.raises(envs.EpisodeOver):
        env.replay(0, np.zeros((3, 2)))
    with pytest.raises(envs.InvalidAction):
        env.replay(0, [np.zeros(3)])
    snapshots = env.replay(0, np.zeros((2, 2)))
    with pytest.raises(envs.EpisodeOver):
        env.step(np.zeros(2))
    env.restore(snapshots[1])
    assert env.step(np.zeros(2))[3] is True


def test_resets_to_a_seed_and_replays_leave_the_stream_of_seeds_alone():
    one, two = (envs.make("toy/reach", seed=1) for _ in range(2))
    one.reset()
    two.reset()
    snapshots = two.replay(5, np.zeros((2, 2)))
    two.reset_to(6)
    two.restore(snapshots[0])
    assert one.reset()[1] == two.reset()[1]


def test_the_expert_goes_on_from_a_snapshot():
    env = envs.make("coffee-push")
    env.reset(seed=0)
    env.step(env.simulator.expert_action(2))
    snapshot = env.snapshot()
    wanted = env.simulator.expert_action(2)
    env.step(np.ones(4))
    env.restore(snapshot)
    np.testing.assert_array_equal(env.simulator.expert_action(2), wanted)
    env.close()


def test_a_demonstration_can_be_restored_from_its_seed_and_actions():
    demos = collect("toy/reach", 2, seed=3)
    env = envs.make("toy/reach")
    assert demos[0].seed != demos[1].seed
    for demo in demos:
        snapshots = env.replay(demo.seed, demo.actions)
        for decision in (0, 4, len(demo.actions) - 1):
            assert (env.restore(snapshots[decision])[-3:] == demo.frames[decision]).all()
            obs, reward, _, _, info = env.step(demo.actions[decision])
            assert (obs[-3:] == demo.frames[decision + 1]).all()
            assert np.float32(reward) == demo.rewards[decision]
            assert info["success"] == demo.successes[decision]


@pytest.mark.parametrize("task", ["coffee-push", "door-lock", "dm_control/walker-walk", "dm_control/quadruped-escape"])
def test_nothing_in_the_model_changes_within_an_episode(task):
    """Which is why a snapshot compares the model with the built one only once an episode."""
    env = envs.make(task)
    env.reset(seed=1)
    simulation = env.simulator._simulation
    assert isinstance(simulation, MujocoState)
    at_first = {name: array.copy() for name, array in simulation.snapshot().model.items()}
    for _ in range(5):
        env.step(env.action_space.sample())
    simulation._changes = None  # compare once more
    now = simulation.snapshot().model
    assert at_first.keys() == now.keys()
    assert all((at_first[name] == now[name]).all() for name in now)
    env.close()


def test_a_snapshot_is_small():
    """Both buffers and thousands of imagined starts can afford one each."""
    env = envs.make("hammer", frame_stack=1)
    env.reset(seed=0)
    env.snapshot()
    snapshot = env.snapshot()
    assert len(pickle.dumps(snapshot.states)) < 10_000
    env.close()


@pytest.mark.parametrize(
    ("task", "most"),
    [
        ("toy/reach", toy.RADIUS),
        ("dm_control/reacher-easy", dmcontrol.ANGLE),
        ("ogbench/cube-single", ogbench.CLOSE),
        ("reach", metaworld.CLOSE),
    ],
)
def test_a_state_matches_a_snapshot_within_its_tolerance(task, most):
    env = envs.make(task, frame_stack=1, image_size=32)
    env.reset(seed=1)
    simulator = env.simulator
    assert isinstance(simulator, envs.Comparable)
    goal, other = simulator.snapshot(), []
    for share in (0.9, -0.9, 1.1, -1.1):
        simulator.restore(goal)
        move(simulator, share * most)
        other.append(simulator.matches(goal))
    assert other == [True, True, False, False]
    env.reset(seed=3)
    assert not simulator.matches(goal)
    simulator.restore(goal)
    assert simulator.matches(goal)
    env.close()


def move(simulator, distance):
    """What counts in a goal, by so much."""
    if isinstance(simulator, toy.Toy):
        simulator.dot = simulator.dot + [distance, 0.0]
    elif isinstance(simulator, dmcontrol.DMControl):
        simulator._physics.data.qpos[0] += 4 * np.pi + distance  # two turns are none
    elif isinstance(simulator, ogbench.OGBench):
        simulator._data.joint("object_joint_0").qpos[1] += distance
    else:
        simulator._state = simulator._state + distance * np.eye(len(simulator._state))[4]


def test_a_scene_matches_in_all_its_parts():
    env = envs.make("ogbench/scene-task1", frame_stack=1, image_size=32)
    env.reset(seed=1)
    simulator = env.simulator
    goal = simulator.snapshot()
    for name in ("drawer", "window"):
        simulator._data.joint(f"{name}_slide").qpos[0] -= 0.05
        assert not simulator.matches(goal)
        simulator.restore(goal)
        assert simulator.matches(goal)
    simulator._env._cur_button_states = 1 - np.asarray(simulator._env._cur_button_states)
    assert not simulator.matches(goal)
    env.close()


def test_not_every_simulator_has_goal_states():
    env = envs.make("dm_control/walker-walk")
    assert not isinstance(env.simulator, envs.Comparable)
    env.close()
