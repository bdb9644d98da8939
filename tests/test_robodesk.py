"""RoboDesk beside the package that its model is from: the same physics, rewards and images; experts; both scorings."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

import envs
from envs import rendering, robodesk, robodesk_rewards, suites
from envs.snapshot import MujocoSnapshot
from mbrl.collector import collect_demonstrations

INSTALLED = importlib.util.find_spec("robodesk") is not None
installed = pytest.mark.skipif(not INSTALLED, reason="robodesk is not installed: pip install --no-deps robodesk==1.0.0")

BESIDE = """
import sys
import gymnasium
import numpy as np
import PIL.Image
import envs

env = envs.make("robodesk/open-slide", frame_stack=1, render_quality="paper")
obs, _ = env.reset(seed=2)
for _ in range(3):
    obs, *_ = env.step(np.array([0.5, 0.2, -1, 0, 0]))
sys.modules["gym"] = gymnasium
PIL.Image.ANTIALIAS = PIL.Image.LANCZOS
from robodesk import RoboDesk

theirs = RoboDesk()
theirs.physics.data.qpos[:] = env.simulator._data.qpos
theirs.physics.forward()
theirs = theirs.render().transpose(2, 0, 1)
assert theirs.std() > 5
print(np.abs(obs.astype(float) - theirs).mean(), flush=True)
"""


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Theirs, undrawn, with the places of the blocks copied."""
    rendering.choose_backend()  # before dm_control is imported
    monkeypatch.setitem(sys.modules, "gym", gymnasium)
    from robodesk import RoboDesk

    class Undrawn(RoboDesk):
        def render(self, *_: Any, **__: Any) -> np.ndarray:
            return np.zeros((64, 64, 3), np.uint8)

        def reset(self) -> Any:
            obs = super().reset()
            self.original_pos = {name: place.copy() for name, place in self.original_pos.items()}
            return obs

    return Undrawn()


def state_of(theirs: Any) -> robodesk.State:
    """Where theirs is now, as a snapshot of ours."""
    kind, physics = mujoco.mjtState.mjSTATE_INTEGRATION, theirs.physics
    numbers = np.empty(mujoco.mj_stateSize(physics.model.ptr, kind))
    mujoco.mj_getState(physics.model.ptr, physics.data.ptr, numbers, kind)
    return robodesk.State(MujocoSnapshot(numbers, {}, ()), dict(theirs.original_pos))


def make(task: str, **settings: Any) -> robodesk.RoboDesk:
    settings = {"camera": robodesk.CAMERA, "image_size": 16, "render_quality": "fast"} | settings
    return robodesk.RoboDesk(task, **settings)


@installed
@pytest.mark.parametrize(("seed", "hold"), [(0, 1), (1, 1), (2, 50)])
def test_random_actions_lead_where_theirs_do(upstream: Any, seed: int, hold: int) -> None:
    """To the last bit, and to equal rewards and successes in all tasks."""
    np.random.seed(seed)  # noqa: NPY002
    upstream.reset()
    simulator = make("stack")
    simulator.restore(state_of(upstream))
    generator = np.random.default_rng(seed)
    for frame in range(200):
        if frame % hold == 0:
            action = generator.uniform(-1, 1, 5).astype(np.float32)
        upstream.step(action.astype(float))
        simulator.advance(action)
        np.testing.assert_allclose(simulator._data.qpos, upstream.physics.data.qpos, rtol=0, atol=1e-9)
        if frame % 10 == 0:
            check_rewards(upstream, simulator)
    simulator.close()


def check_rewards(upstream: Any, simulator: robodesk.RoboDesk) -> None:
    for name, (rule, thing) in robodesk_rewards.RULES.items():
        reward, success = rule(simulator._scene, thing)
        theirs = name.replace("-", "_")
        assert np.clip(reward, 0, 1) == pytest.approx(upstream._get_task_reward(theirs, "dense_reward"), abs=1e-9), name
        assert success == upstream._get_task_reward(theirs, "success"), name


@installed
def test_rewards_where_things_were_put(upstream: Any) -> None:
    """In random scenes, some of which solve each task; and the tasks are theirs."""
    assert {name.replace("-", "_") for name in robodesk.TASKS} == set(upstream.all_tasks)
    generator, solved = np.random.default_rng(0), dict.fromkeys(robodesk.TASKS, 0)
    places = {"shelf": (0.45, 1.05, 0.9), "bin": (0.4, 0.5, 0.2), "floor": (-0.9, 0.5, 0.1), "air": (0.0, 0.8, 1.0)}
    simulator = make("stack")
    for _ in range(60):
        np.random.seed(int(generator.integers(1000)))  # noqa: NPY002
        upstream.reset()
        named = upstream.physics.named.data.qpos
        named["drawer_joint"], named["slide_joint"] = generator.uniform(-0.4, 0), generator.uniform(0.3, 0.6)
        for colour in ("red", "green", "blue"):
            named[f"{colour}_light"] = generator.uniform(-0.005, -0.004)
        block = generator.choice(list(robodesk_rewards.LIFTED))
        named[block][:3] = places[generator.choice(list(places))] + generator.normal(0, 0.01, 3)
        if generator.random() < 0.2:
            named["upright_block"][:3] = named["flat_block"][:3] + robodesk_rewards.STACKED
        upstream.physics.forward()
        simulator.restore(state_of(upstream))
        check_rewards(upstream, simulator)
        for name, (rule, thing) in robodesk_rewards.RULES.items():
            solved[name] += rule(simulator._scene, thing)[1]
    assert all(0 < count < 60 for count in solved.values()), solved
    simulator.close()


@installed
def test_images_are_theirs(project_root: Path) -> None:
    """In a process of its own: two ways to draw that end together complain."""
    line = [sys.executable, "-c", BESIDE]
    out = subprocess.run(line, cwd=project_root, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert float(out) < 1


@installed
def test_framing() -> None:
    """The usual camera is cropped and stretched to a square of any size; others are drawn as they are."""
    for size in (32, 160):
        env = envs.make("robodesk/push-red", image_size=size, frame_stack=1)
        obs, _ = env.reset(seed=0)
        assert obs.shape == (3, size, size)
        # The red button is left of the green one, in front of the desk: the reddest pixel is in the lower left part.
        redness = obs[0].astype(int) - obs[1] - obs[2]
        row, column = np.unravel_index(redness.argmax(), redness.shape)
        assert 0.5 < row / size < 0.75
        assert column / size < 0.4
        env.close()
    fixed = envs.make("robodesk/push-red", camera="fixed", frame_stack=1)
    assert fixed.reset(seed=0)[0].shape == (3, 64, 64)
    fixed.close()
    with pytest.raises(envs.InvalidSetting, match="unknown camera 'overhed'; did you mean 'overhead'"):
        envs.make("robodesk/push-red", camera="overhed")


@installed
def test_resets_are_distributed_as_theirs(upstream: Any) -> None:
    simulator = make("stack")
    ours, theirs = [], []
    for seed in range(150):
        np.random.seed(seed)  # noqa: NPY002
        upstream.reset()
        simulator.reset(seed)
        ours.append(simulator._data.qpos.copy())
        theirs.append(upstream.physics.data.qpos.copy())
    for number in (np.min, np.mean, np.max):
        np.testing.assert_allclose(number(ours, axis=0), number(theirs, axis=0), atol=0.1)
    simulator.close()


@installed
def test_what_is_asked_of_the_other_blocks() -> None:
    """Nothing under VP2's scoring, which judges a state after a reset to it."""
    for scoring, expected in (("strict", False), ("vp2", True), (None, False)):
        env = envs.make("robodesk/flat-block-off-table", scoring=scoring, episode_frames=4)
        env.reset(seed=0)
        simulator: Any = env.simulator
        for block, place in (("flat_block", [-0.9, 0.5, 0.1]), ("ball", [0.0, 0.7, 0.8])):
            simulator._data.joint(block).qpos[:3] = place
        mujoco.mj_forward(simulator._model, simulator._data)
        assert bool(env.step(np.zeros(5))[4]["success"]) is expected
        env.close()
    with pytest.raises(envs.InvalidSetting, match="unknown scoring 'vp3'; did you mean 'vp2'"):
        envs.make("robodesk/push-red", scoring="vp3")
    with pytest.raises(envs.InvalidSetting, match="scoring=vp2 is for robodesk/<task>, not for toy/reach"):
        envs.make("toy/reach", scoring="vp2")


@installed
def test_an_episode_from_a_state_of_vp2(upstream: Any) -> None:
    np.random.seed(5)  # noqa: NPY002
    upstream.reset()
    for _ in range(20):
        upstream.step(np.array([0.3, 0.2, -1.0, 0.5, 1.0]))
    data = upstream.physics.data
    state = np.concatenate([data.qpos[:9], data.qvel[:9], data.qpos[9:], data.qvel[9:], np.zeros(3)])
    simulator = make("push-red")
    simulator.begin_at(state)
    np.testing.assert_array_equal(simulator._data.qpos, data.qpos)
    np.testing.assert_array_equal(simulator._data.qvel, data.qvel)
    assert (simulator._scene.places["ball"] == simulator._data.body("ball").xpos).all()
    simulator.close()


@installed
@pytest.mark.parametrize(
    ("task", "seed", "frames"),
    [
        ("push-red", 0, 500),  # the hand begins under the table
        ("push-blue", 7, 200),
        ("upright-block-off-table", 2, 600),
        ("flat-block-off-table", 2, 700),
        ("open-slide", 1, 1000),
    ],
)
@pytest.mark.parametrize("action_repeat", [2, 50])
def test_the_experts_solve_their_tasks(task: str, seed: int, frames: int, action_repeat: int) -> None:
    simulator = make(task)
    simulator.reset(seed)
    success, frame = False, 0
    while not success and frame < (frames if action_repeat == 2 else 1500):
        action = simulator.expert_action(action_repeat)
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
        for _ in range(action_repeat):
            success |= simulator.advance(action).success
            frame += 1
    assert success
    simulator.close()


def test_which_tasks_have_experts() -> None:
    scripted = {task for task in robodesk.TASKS if envs.has_expert(f"robodesk/{task}")}
    assert scripted == set(robodesk.PAPER_TASKS) - {"open-drawer"}
    with pytest.raises(envs.NoExpert, match="'robodesk/open-drawer' has no scripted expert: set demonstrations=0"):
        collect_demonstrations("robodesk/open-drawer", 1, seed=0)
    if INSTALLED:
        simulator = make("open-drawer")
        with pytest.raises(envs.NoExpert, match=r"robodesk/open-drawer has no scripted expert \(these have: push-red"):
            simulator.expert_action(2)
        simulator.close()


@installed
def test_where_the_arm_cannot_reach_it_comes_as_near_as_it_can(capfd: pytest.CaptureFixture[str]) -> None:
    """And says nothing about it."""
    simulator = make("stack")
    simulator.reset(3)
    for _ in range(300):
        simulator.advance(np.array([1, 1, 0.2, 0, 0], np.float32))
    place = simulator._scene.hand + [0.01, 0.01, 0.002]
    solved = simulator._kinematics.solve(simulator._data.qpos, place)
    before = np.linalg.norm([0.01, 0.01, 0.002])
    ghost = simulator._kinematics._data
    ghost.qpos[:9] = solved
    mujoco.mj_kinematics(simulator._model, ghost)
    assert 1e-6 < np.linalg.norm(ghost.site_xpos[simulator._kinematics._hand] - place) <= before
    assert capfd.readouterr() == ("", "")
    simulator.close()


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robodesk", None)
    with pytest.raises(
        envs.MissingPackage, match=r"robodesk/stack needs a package .*pip install --no-deps robodesk==1.0.0$"
    ):
        envs.make("robodesk/stack")
    assert envs.canonical("RoboDesk/push_red") == "robodesk/push-red"
    assert {f"robodesk/{task}" for task in robodesk.PAPER_TASKS} < set(envs.task_names())
    assert envs.make("toy/reach").reset(seed=1)[0].dtype == np.uint8


def test_the_package_is_not_imported() -> None:
    if INSTALLED:
        code = "import sys, envs; envs.make('robodesk/stack').reset(); print({'robodesk', 'gym'} & set(sys.modules))"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
    assert robodesk.PAPER_TASKS[0] in suites.suite_of("robodesk/push-red").tasks
