"""Readers of VP2's files, on small ones in its layout: goals and starts of RoboDesk, classifiers of success."""

import importlib.util
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Command
from torch import nn

import envs
from mbrl.plan.costs import load_classifier
from mbrl.plan.goals import goal_frame
from mbrl.plan.plan import main
from mbrl.plan.vp2 import SuccessClassifier, load_instances
from world_model.schema import UserError

installed = pytest.mark.skipif(
    importlib.util.find_spec("robodesk") is None,
    reason="robodesk is not installed: pip install --no-deps robodesk==1.0.0",
)


def write_goals(path: Path, states: np.ndarray, size: int = 64) -> np.ndarray:
    """A file of instances, (N, T, S) numbers; returns the images, uint8 (N, T, H, W, 3). Odd ones start at moment 1."""
    count, length = states.shape[:2]
    images = np.random.default_rng(0).integers(0, 256, (count, length, size, size, 3), dtype=np.uint8)
    with h5py.File(path, "w") as file:
        for i in range(count):
            demo = file.create_group(f"data/demo_{i + 1}")
            demo["states"], demo["obs/camera_image"] = states[i], images[i]
            if i % 2:
                demo["start_index"] = 1
    return images


def test_goals_and_starts(tmp_path: Path) -> None:
    """In the order of their numbers: the twelfth comes after the second."""
    states = np.random.default_rng(1).normal(size=(12, 3, 76))
    images = write_goals(tmp_path / "goals.hdf5", states)
    instances = load_instances(tmp_path / "goals.hdf5")
    assert len(instances) == 12
    for i, instance in enumerate(instances):
        np.testing.assert_array_equal(instance.state, states[i, i % 2])
        np.testing.assert_array_equal(instance.goal, images[i, -1].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.pop("data"), "cannot be read"),
        (lambda file: file["data"].clear(), "it has no instances"),
        (lambda file: file["data/demo_1"].pop("states"), "cannot be read"),
        (lambda file: file["data/demo_1/obs"].pop("camera_image"), "cannot be read"),
        (lambda file: file.move("data/demo_1", "data/other"), "cannot be read"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "goals.hdf5"
    write_goals(path, np.zeros((1, 2, 76)))
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(UserError, match=said) as caught:
        load_instances(path)
    assert "goals.hdf5 of one of VP2's tasks of RoboDesk" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_states_of_other_environments_and_files_of_other_kinds(tmp_path: Path) -> None:
    write_goals(tmp_path / "robosuite.hdf5", np.zeros((1, 2, 32)))
    with pytest.raises(UserError, match=r"a state of \(32,\), not of 73 numbers"):
        load_instances(tmp_path / "robosuite.hdf5")
    (tmp_path / "text.hdf5").write_text("no goals")
    with pytest.raises(UserError, match=r"text.hdf5 cannot be read"):
        load_instances(tmp_path / "text.hdf5")
    with pytest.raises(UserError, match=r"nowhere.hdf5 is missing"):
        load_instances(tmp_path / "nowhere.hdf5")


class Official(nn.Module):
    """Their layout, by the names of the weights and what is done in between."""

    def __init__(self) -> None:
        super().__init__()
        blocks = {f"net.{i}.cnv.{j}": nn.Conv2d(32, 32, 3, padding=1) for i in (1, 3, 5) for j in (0, 2)}
        ends = {"net.0": nn.Conv2d(3, 32, 3, padding=1), "net.7": nn.Conv2d(32, 3, 3, padding=1)}
        linear = {"net.9": nn.Linear(12288, 1024), "net.11": nn.Linear(1024, 1)}
        self.parts = blocks | ends | linear

    def weights(self) -> dict[str, torch.Tensor]:
        return {f"{name}.{key}": value for name, part in self.parts.items() for key, value in part.state_dict().items()}

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        p = self.parts
        maps = p["net.0"](frames)
        for i in (1, 3, 5):
            maps = (maps + p[f"net.{i}.cnv.2"](p[f"net.{i}.cnv.0"](maps).relu())).relu()
        return p["net.11"](p["net.9"](p["net.7"](maps).flatten(1)).relu())


def test_a_classifier_of_theirs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = Official()
    torch.save(theirs.weights(), tmp_path / "push_red.pt")
    ours = load_classifier(f"vp2:{tmp_path / 'push_red.pt'}", torch.device("cpu"))
    assert isinstance(ours, SuccessClassifier)
    frames = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames), theirs(frames))


class Harmful:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it ran')",)


def test_other_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    weights = Official().weights()
    for content, said in (
        ({key: value for key, value in weights.items() if key != "net.7.bias"}, r"net\.7\.bias"),
        (weights | {"net.11.weight": torch.zeros(2, 1024)}, r"net\.11\.weight"),
        (Harmful(), "cannot be read"),
        ([1, 2], "cannot be read"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=said) as caught:
            load_classifier(f"vp2:{path}", torch.device("cpu"))
        assert "it must be a success classifier of VP2" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is missing"):
        load_classifier(f"vp2:{tmp_path / 'nowhere.pt'}", torch.device("cpu"))


def test_goals_that_do_not_fit(tmp_path: Path, typed: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_goals(tmp_path / "goals.hdf5", np.zeros((1, 2, 76)))
    code, _, error = typed(main, "task=toy/reach", "model=simulator", "cost=image", "goal=vp2:goals.hdf5", "device=cpu")
    assert code == 2
    assert "goal=vp2:goals.hdf5 is for tasks of robodesk, not for toy/reach" in error


@installed
def test_planning_from_a_start_of_theirs(tmp_path: Path, typed: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The episode begins at the state of the file, for the planner's simulator as well, and the goal is the image."""
    monkeypatch.chdir(tmp_path)
    source: Any = envs.make("robodesk/push-red", frame_stack=1)
    states = []
    for seed in (5, 6):
        source.reset(seed=seed)
        data = source.simulator._data
        for _ in range(3):
            source.step(np.ones(5))
        states.append(np.concatenate([data.qpos[:9], data.qvel[:9], data.qpos[9:], data.qvel[9:], np.zeros(3)]))
    source.close()
    images = write_goals(tmp_path / "goals.hdf5", np.stack([states, states], axis=1))

    env: Any = envs.make("robodesk/push-red", frame_stack=1, starts={})
    for seed, i in ((1, 0), (2, 1), (3, 0)):
        goal = goal_frame("vp2:goals.hdf5", env, seed)
        assert goal is not None
        np.testing.assert_array_equal(goal, images[i, -1].transpose(2, 0, 1))
        env.reset(seed=seed)
        np.testing.assert_array_equal(env.simulator._data.qpos[:9], states[i][:9])
    env.close()

    torch.save(Official().weights(), "push_red.pt")
    small = dict(samples=4, iterations=1, horizon=2, execute=2, elites=2, kept=0, proposals=0)
    words = [f"planning.{key}={value}" for key, value in small.items()]
    words += ["task=robodesk/push-red", "model=simulator", "goal=vp2:goals.hdf5", "classifier=vp2:push_red.pt"]
    words += ["cost=0.5*image+10*classifier", "cost_frames=null", "scoring=vp2", "action_repeat=5", "episode_frames=20"]
    code, out, error = typed(main, *words, "episodes=2", "name=x", "device=cpu")
    assert (code, error) == (0, "")
    assert "robodesk/push-red, goal vp2:goals.hdf5, simulator" in out
    rows = Path("runs/plans/robodesk-push-red-x/episodes.csv").read_text().splitlines()
    for row in rows[1:]:
        promised, earned = map(float, row.split(",")[5:7])
        assert promised == pytest.approx(earned, rel=1e-4), "its simulator began there too"
    Image.open("runs/plans/robodesk-push-red-x/000.gif").close()
