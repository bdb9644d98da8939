"""OGBench: its experts solve whole tasks, goals follow from the seed, and images are those that it draws itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import Command

import envs
from mbrl.data import data
from mbrl.plan import plan
from world_model.data import ClipDataset

BESIDE = """
import numpy as np
import envs

for task in ("ogbench/cube-double", "ogbench/scene"):
    env = envs.make(task, frame_stack=1, render_quality="paper")
    obs, _ = env.reset(seed=2)
    for action in np.random.default_rng(0).uniform(-1, 1, (10, 5)):
        obs, *_ = env.step(action)
    theirs = env.simulator._env.render().transpose(2, 0, 1)
    assert theirs.std() > 5
    print(np.abs(obs.astype(float) - theirs).mean(), flush=True)
"""


def solved(task: str, seed: int, most: int) -> bool:
    env = envs.make(task, frame_stack=1, episode_frames=2 * most)
    _, info = env.reset(seed=seed)
    over = False
    while not (over or info["success"]):
        _, reward, _, over, info = env.step(env.simulator.expert_action(2))
    env.close()
    assert reward <= 10.0
    return bool(info["success"])


@pytest.mark.parametrize(
    ("task", "seed", "most"),
    [
        ("ogbench/cube-single-task4", 0, 60),
        ("ogbench/cube-double-task5", 2, 60),  # one on the other
        ("ogbench/scene-task2", 0, 70),  # two locks opened, a drawer and a window shut, both locked again
    ],
)
def test_the_expert_solves_a_task(task: str, seed: int, most: int) -> None:
    assert solved(task, seed, most)


def test_each_episode_draws_a_task_from_its_seed_and_a_named_one_has_its_own() -> None:
    env, named = envs.make("ogbench/cube-single"), envs.make("ogbench/cube-single-task3")
    drawn = []
    for seed in (1, 2, 3, 4, 5, 6, 1):
        env.reset(seed=seed)
        named.reset(seed=seed)
        drawn.append(env.simulator._env.cur_task_id)
        assert named.simulator._env.cur_task_id == 3
    assert drawn[0] == drawn[-1]
    assert len(set(drawn)) > 1
    env.close()
    named.close()


def test_an_episode_is_as_long_as_theirs() -> None:
    for task, frames in (("cube-single", 200), ("cube-double", 500), ("scene", 750)):
        env = envs.make(f"ogbench/{task}-task1", action_repeat=5)
        assert env.episode_decisions * 5 == frames
        env.close()


def test_images_are_those_that_it_draws(project_root: Path) -> None:
    """In a process of its own: two ways to draw that end together complain."""
    line = [sys.executable, "-c", BESIDE]
    out = subprocess.run(line, cwd=project_root, stdout=subprocess.PIPE, check=True, text=True).stdout
    apart = [float(word) for word in out.split()]
    assert len(apart) == 2
    assert max(apart) < 2


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogbench.manipspace.envs.cube_env", None)
    with pytest.raises(envs.MissingPackage, match=r"needs a package .*: .*pip install ogbench dm-control mujoco"):
        envs.make("ogbench/cube-single")
    assert envs.make("toy/reach").reset(seed=1)[0].dtype == np.uint8


def test_its_episodes_are_recorded_and_no_other_suites_beside_them(tmp_path: Path, typed: Command) -> None:
    words = ("episodes_per_task=2", "episode_frames=20", "workers=1", f"out={tmp_path / 'data'}")
    code, out, error = typed(data.main, "task_names=[ogbench/cube-single,ogbench/scene]", *words)
    assert (code, "4 episodes added" in out) == (0, True), error
    clips = ClipDataset(tmp_path / "data", "all", 4)
    assert (clips.num_episodes, clips.action_dim, clips.frame_shape) == (4, 5, (3, 64, 64))
    code, _, error = typed(data.main, "task_names=[reach,ogbench/scene]", *words[:-1], f"out={tmp_path / 'other'}")
    assert code == 2
    assert "reach and ogbench/scene are of different suites" in error
    assert "name at least one task" in typed(data.main, "task_names=[]")[2]


def test_a_planner_reaches_for_the_experts_last_frame(tmp_path: Path, typed: Command, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("task=ogbench/cube-single", "episodes=1", "episode_frames=8", "model=simulator", "cost=image")
    small = (
        "planning.horizon=2",
        "planning.samples=16",
        "planning.iterations=1",
        "planning.execute=2",
        "planning.elites=2",
        "planning.kept=1",
    )
    code, out, error = typed(plan.main, *words, *small, "goal=expert", "name=x", "device=cpu")
    assert code == 0, error
    assert "ogbench/cube-single, goal expert, simulator" in out
