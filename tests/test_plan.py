"""`make plan`: rows, controls, goals, what is promised and earned, and what is refused."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Command
from tiny_world import make_model

import envs
from mbrl.compare.stats import fisher_exact, wilson
from mbrl.experiment.settings import UserError
from mbrl.plan import plan
from mbrl.plan.goals import goal_frame
from mbrl.plan.plan import main

SIMULATOR = (
    "task=toy/reach",
    "model=simulator",
    "device=cpu",
    "planning.samples=24",
    "planning.iterations=2",
    "planning.horizon=5",
    "planning.execute=5",
    "planning.std=[1.0]",
    "shown=1",
)
NO_GOAL = ("cost=reward", "goal=none")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(f"runs/plans/{name}/episodes.csv").read_text().splitlines()))


def test_the_true_model_and_its_controls(typed: Command) -> None:
    """It succeeds, earns what it promised, and beats the same planner with shuffled scores and random actions."""
    said = {}
    for control in ("shuffled", "random", "none"):
        code, said[control], error = typed(main, *SIMULATOR, *NO_GOAL, "episodes=6", "seed=3", f"control={control}")
        assert (code, error) == (0, "")
    name = "toy-reach-icem_goal-reward-simulator"
    ours, shuffled, random = rows(name), rows(f"{name}-shuffled"), rows(f"{name}-random")
    assert list(ours[0])[:4] == ["episode", "seed", "success", "decisions"]
    assert [(row["episode"], row["seed"]) for row in ours] == [(str(i), str(3 + i)) for i in range(6)]
    assert [row["success"] for row in ours] == ["1"] * 6
    assert all(row["promised"] == row["earned"] != "" for row in ours)
    assert all(row["promised"] == row["earned"] == row["plan_s"] == "" for row in random)
    reached = [sum(int(row["success"]) for row in some) for some in (shuffled, random)]
    assert sum(int(row["decisions"]) for row in ours) < sum(int(row["decisions"]) for row in shuffled)
    low, high = wilson(6, 6)
    assert f"success 6 of 6: 1.000 ({low:.3f} to {high:.3f}, 95 %)" in said["none"]
    for control, successes in zip(("shuffled", "random"), reached, strict=True):
        p = fisher_exact(6, 6, successes, 6)
        assert f"control {control}: {successes} of 6, Fisher's exact test one-sided p = {p:.2g}" in said["none"]
    with Image.open(f"runs/plans/{name}/000.gif") as film:
        assert film.n_frames == int(ours[0]["decisions"])
    assert not Path(f"runs/plans/{name}/001.gif").exists()


def test_it_continues_where_it_stopped(typed: Command) -> None:
    def numbers(name: str) -> list[dict[str, str]]:
        return [row | {"plan_s": ""} for row in rows(name)]

    typed(main, *SIMULATOR, *NO_GOAL, "episodes=3", "name=whole")
    typed(main, *SIMULATOR, *NO_GOAL, "episodes=1", "name=parts")
    first = rows("toy-reach-parts")
    typed(main, *SIMULATOR, *NO_GOAL, "episodes=3", "name=parts")
    assert rows("toy-reach-parts")[:1] == first, "not played again"
    assert numbers("toy-reach-parts") == numbers("toy-reach-whole")
    code, _, error = typed(main, *SIMULATOR, *NO_GOAL, "episodes=3", "name=parts", "planning.samples=25")
    assert code == 2
    assert "planning.samples was 24, is 25" in error


def test_goal_of_the_expert(typed: Command) -> None:
    env = envs.make("toy/reach", frame_stack=1)
    goal = goal_frame("expert", env, seed=5)
    env.reset(seed=5)
    env.simulator.dot = env.simulator.goal  # type: ignore[attr-defined]
    assert goal is not None
    assert np.array_equal(goal, env.simulator.render()), "the dot ends on the square"
    Image.fromarray(goal.transpose(1, 2, 0)).save("goal.png")
    assert np.array_equal(goal_frame("goal.png", env, seed=9), goal)
    code, out, _ = typed(main, *SIMULATOR, "cost=image", "episodes=1", "seed=5", "planning.horizon=20")
    assert code == 0
    assert "goal expert" in out


def test_a_learned_model(typed: Command, tmp_path: Path) -> None:
    """Codes, images and rewards of iVideoGPT, weighed together, and a classifier in a file."""
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(Bright()).save("bright.pt")
    make_model(heads=("reward", "success"), action_dim=2).save_pretrained("model")
    chosen = ("task=toy/reach", "model=model", "device=cpu", "precision=fp32", "episodes=1", "episode_frames=20")
    small = dict(samples=8, elites=2, kept=1, proposals=0, horizon=3, execute=3, iterations=1)
    planning = [f"planning.{key}={value}" for key, value in small.items()]
    cost = "cost=codes+0.5*image+0.1*reward+2*success+classifier"
    code, _, error = typed(main, *chosen, *planning, cost, "classifier=bright.pt", "name=x")
    assert (code, error) == (0, "")
    [row] = rows("toy-reach-x")
    assert float(row["promised"]) != float(row["earned"])
    code, _, error = typed(main, *chosen, "planning.horizon=400", "name=y")
    assert code == 2
    assert "planning.horizon=400: model has room for" in error


class Bright(torch.nn.Module):
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.mean((1, 2, 3))[:, None]


def test_what_is_refused(typed: Command) -> None:
    Image.new("RGB", (32, 32)).save("small.png")
    Path("broken.png").write_text("no image")
    make_model(action_dim=4, heads=()).save_pretrained("model")
    for overrides, said in (
        (("goal=nowhere.png", "cost=image"), "goal=nowhere.png: no such file"),
        (("goal=small.png", "cost=image"), "goal=small.png is 32x32 pixels, the model sees 64x64"),
        (("goal=broken.png", "cost=image"), "goal=broken.png must be an image"),
        (("goal=none", "cost=image"), "cost=image needs a goal frame"),
        (("cost=codes",), "simulator has no tokens"),
        (("cost=imge",), "'imge' is no cost; did you mean 'image'?"),
        (("cost=image+2*image",), "image stands there twice"),
        (("cost=1e400*image",), "a weight must be between 1e-06 and 1e+06"),
        (("cost=0*image",), "a weight must be between"),
        (("planning.weight_scale=1e308",), "planning.weight_scale=1e+308 is out of range"),
        (("cost=classifier", "goal=none"), "classifier=none must be a TorchScript file for cost=classifier"),
        (("cost=classifier", "classifier=small.png", "goal=none"), "classifier=small.png must be a TorchScript file"),
        (("task=dm_control/walker-walk", "cost=image"), "has no scripted expert"),
        (("task=reach", "model=model", "cost=reward"), "model has no reward head (it has: none)"),
        (("model=model", "cost=image"), "model=model wants 4 action numbers, toy/reach has 2"),
        (("model=nowhere",), "model=nowhere"),
        (("planning.elites=99",), "elites=99: must be at most samples=24"),
    ):
        code, _, error = typed(main, *dict.fromkeys((*SIMULATOR[2:], *SIMULATOR[:2])), *overrides)
        assert code == 2, overrides
        assert said in error, overrides
        assert error.count("\n") == 0


def test_rows_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    header, row = ",".join(plan.COLUMNS), "0,1,1,5,2.5,-1.0,-2.0,0.1"
    (tmp_path / plan.EPISODES).write_text(f"{header}\n{row}\n")
    assert len(plan.read(tmp_path)) == 1
    (tmp_path / plan.EPISODES).write_text(f"{header}\n{row.replace('-1.0', 'nan').replace('-2.0', '-inf')}\n")
    assert len(plan.read(tmp_path)) == 1, "a model that went wrong promises such"
    for broken in (row.replace("2.5", "nan"), row.replace("-1.0", "1e999"), row.replace("0,1,", "0,x,", 1), "0,1,1"):
        (tmp_path / plan.EPISODES).write_text(f"{header}\n{broken}\n")
        with pytest.raises(UserError, match=r"cannot be read \(line 2 is no row of numbers\)"):
            plan.read(tmp_path)


def test_interval_and_test() -> None:
    """Against scipy."""
    from scipy import stats

    for successes, trials in ((0, 5), (3, 24), (24, 24)):
        expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)
    for table in ((8, 24, 1, 24), (0, 5, 0, 5), (2, 10, 7, 12)):
        ours, n, theirs, m = table
        expected = stats.fisher_exact([[ours, n - ours], [theirs, m - theirs]], alternative="greater")
        assert fisher_exact(*table) == pytest.approx(expected.pvalue)
