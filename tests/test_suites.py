"""The table of suites: true of the simulators, and all that the rest of the project needs of a new suite."""

import gzip
import json

import numpy as np
import pytest

import envs
from envs import suites
from envs.toy import Toy
from mbrl.collector import collect_demonstrations as collect
from mbrl.compare import foreign
from mbrl.compare.compare import score_name
from mbrl.compare.results import Curve, read_run
from mbrl.experiment.settings import load


@pytest.mark.parametrize(
    "task", ["coffee-push", "door-lock", "dm_control/walker-walk", "dm_control/hopper-hop", "toy/reach"]
)
def test_the_table_is_true_of_its_simulators(task):
    suite = envs.suite_of(task)
    env = envs.make(task)
    assert env.episode_decisions * env.action_repeat == suite.episode_frames
    assert hasattr(env.simulator, "expert_action") is bool(suite.experts)
    env.reset(seed=0)
    for _ in range(10):
        _, reward, terminated, _, _ = env.step(env.action_space.sample())
        assert suite.highest_reward is None or 0 <= reward <= suite.highest_reward * env.action_repeat
        assert terminated <= suite.terminates
    env.close()


def test_lqr_of_dm_control_is_left_out_because_it_alone_ends_and_has_no_bounds():
    """So `terminates` holds for the whole suite, and every action can be scaled to [-1, 1]."""
    envs.make("dm_control/reacher-easy").close()  # chooses the OpenGL backend before dm_control is imported
    from dm_control import suite
    from dm_control.suite.base import Task

    tasks = {f"{domain}-{task}": suite.load(domain, task) for domain, task in suite.ALL_TASKS}
    ending = {name for name, env in tasks.items() if type(env.task).get_termination is not Task.get_termination}
    unbounded = {name for name, env in tasks.items() if (env.action_spec().maximum > 1e3).any()}
    assert ending == unbounded == {"lqr-lqr_2_1", "lqr-lqr_6_2"}
    with pytest.raises(envs.UnknownTask):
        envs.make("dm_control/lqr-lqr-2-1")


def test_suite_of_a_task():
    assert [envs.suite_of(task).name for task in ("hammer", "dm_control/walker-walk", "toy/reach")] == [
        "metaworld",
        "dm_control",
        "toy",
    ]
    with pytest.raises(
        envs.UnknownTask, match=r"unknown suite 'atari' .*\(known: metaworld, dm_control, ogbench, robodesk, toy, gym\)"
    ):
        envs.suite_of("atari/pong")


class Maze(Toy):
    """A suite of its own, without success and without experts."""

    expert_action = None

    def __init__(self, task, **settings):
        super().__init__("centre", **settings)
        self.task = task


@pytest.fixture
def maze(monkeypatch):
    row = suites.Suite(
        name="maze",
        tasks=("left-hand",),
        simulator=Maze,
        usual_camera=lambda task: 0,
        episode_frames=60,
        highest_reward=2.0,
        terminates=False,
        experts=(),
        packages=("maze-world",),
        prefixes=("maze",),
    )
    monkeypatch.setattr(suites, "SUITES", (*suites.SUITES, row))
    return row


def test_a_row_is_all_that_a_new_suite_needs(maze, tmp_path):
    assert "maze/left-hand" in envs.task_names()
    assert envs.canonical("Maze/left_hand") == "maze/left-hand"
    env = envs.make("maze/left_hand")
    assert env.simulator.task == "left-hand"
    assert env.episode_decisions == 30
    with pytest.raises(envs.NoExpert, match="set demonstrations=0"):
        collect("maze/left-hand", 1, seed=0)

    settings = load(["task=maze/left-hand", "agent=drqv2", "demonstrations=0"])  # it has no file in configs/tasks
    assert settings.task == "maze/left-hand"
    assert settings.success_bonus == 10.0

    (tmp_path / "config.yaml").write_text("{task: maze/left-hand, agent: drqv2, seed: 1}")
    (tmp_path / "eval.csv").write_text(
        "frame,episode_return,success_rate,episodes,wall_time_s\n1000,30,0,2,1.5\n2000,90,0,2,3\n"
    )
    curve = read_run(tmp_path, print)
    np.testing.assert_allclose(curve.scores, [0.25, 0.75])  # of 2 a frame over 60 frames
    assert curve.rules["maze-world"] == "unknown"

    foreign.write_dreamerv3([curve], tmp_path / "out")
    with gzip.open(tmp_path / "out" / "scores.json.gz", "rt") as file:
        (record,) = json.load(file)
    assert record["task"] == "maze_left_hand"
    assert record["ys"] == [30.0, 90.0]


def test_what_the_scores_of_a_comparison_are(maze):
    class Tasks:
        def __init__(self, *tasks):
            self.tasks = tasks

    assert score_name(Tasks("hammer", "toy/reach")) == "success rate"
    assert score_name(Tasks("dm_control/walker-walk", "maze/left-hand")) == "return ÷ highest return"
    assert score_name(Tasks("hammer", "maze/left-hand")) == "score"


@pytest.mark.parametrize("task", ["coffee-push", "dm_control/walker-walk", "toy/reach"])
def test_what_is_exported_is_read_back_as_the_same_task(task, tmp_path):
    curve = Curve(task, "drqv2", "1", np.array([100.0]), np.array([0.5]), None, 1, tmp_path, "plain", {})
    foreign.write_dreamerv3([curve], tmp_path)
    (again,) = foreign.read_file(tmp_path / "scores.json.gz", frozenset(), print)
    assert again.task == task
    np.testing.assert_allclose(again.scores, curve.scores)


def test_a_missing_package_is_one_line_with_the_command(maze, monkeypatch):
    def simulator(task, **settings):
        import maze_world_that_is_not_installed  # noqa: F401

    monkeypatch.setattr(suites, "SUITES", (*suites.SUITES[:-1], suites.dataclasses.replace(maze, simulator=simulator)))
    with pytest.raises(envs.MissingPackage) as caught:
        envs.make("maze/left-hand")
    assert str(caught.value) == (
        "maze/left-hand needs a package that is not installed (No module named 'maze_world_that_is_not_installed'): "
        f"{envs.PIP} install maze-world"
    )
