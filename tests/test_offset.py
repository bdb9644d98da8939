"""`make plan GOAL=offset:N`: where episodes begin, what they are to reach, when they have, and what is refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
from tiny import Command, train

import envs
from mbrl.data import data
from mbrl.experiment.episodes import EpisodeStore
from mbrl.experiment.settings import UserError
from mbrl.plan.offset import OffsetGoals, parse_offset
from mbrl.plan.plan import main
from world_model import Episode

SIMULATOR = ("model=simulator", "device=cpu", "cost=image", "cost_frames=1", "shown=1")
TOY = (
    "task=toy/reach",
    "goal=offset:5",
    "planning.samples=48",
    "planning.iterations=3",
    "planning.horizon=5",
    "planning.execute=5",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def env():
    env = envs.make("toy/reach")
    yield env
    env.close()


def rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(f"runs/plans/{name}/episodes.csv").read_text().splitlines()))


def record(out: str, typed: Command, *words: str) -> str:
    """What `make data` writes of toy/reach."""
    given = ("task_names=[toy/reach]", "episodes_per_task=4", "workers=1", f"out={out}")
    code, _, error = typed(data.main, *dict.fromkeys((*given, *words)))
    assert code == 0, error
    return f"data={out}"


@pytest.mark.parametrize("task", ["toy/reach", "dm_control/reacher-easy", "reach"])
def test_an_episode_begins_within_a_recorded_one_and_its_goal_is_ahead(task: str) -> None:
    """The recorded actions lead from the start to the goal, of which the frame is one, and to success there."""
    env = envs.make(task, episode_frames=40)
    goals = OffsetGoals(env, task, ahead=6)
    for seed in (1, 2):
        aim = goals.draw(seed)
        obs = env.restore(aim.moment)
        assert env.decisions_left == 12
        assert not aim.reached()
        origin = aim.origin
        again = env.restore(env.replay(origin.seed, origin.actions)[origin.decision])
        np.testing.assert_array_equal(again, obs)
        env.restore(aim.moment)
        for action in origin.actions[origin.decision : origin.decision + 6]:
            obs, _, _, over, _ = env.step(action)
        assert aim.reached()
        assert not over
        np.testing.assert_array_equal(obs[-3:], aim.frame)
    assert {goals.draw(seed).origin.decision for seed in range(6)} != {0}
    env.close()


def test_what_is_drawn_depends_on_the_seed_alone(env: envs.PixelEnv) -> None:
    goals = OffsetGoals(env, "toy/reach", 4, budget=30)
    one, other, again = (goals.draw(seed) for seed in (1, 2, 1))
    assert one.origin.seed == again.origin.seed != other.origin.seed
    assert one.origin.decision == again.origin.decision
    np.testing.assert_array_equal(one.frame, again.frame)
    env.restore(one.moment)
    assert env.decisions_left == 30, "a budget may be more than the task's own episode has"


def test_starts_and_goals_of_recorded_episodes(env: envs.PixelEnv, typed: Command, run_root: Path) -> None:
    """Of `make data`, of a run, and of its replay: the goal is a recorded frame."""
    record("recorded", typed)
    run = train(run_root, "image_size=64", "world_model.tokenizer.resolution=64", "agent=drqv2")
    for folder in (Path("recorded"), run, run / "replay"):
        goals = OffsetGoals(env, "toy/reach", 3, data=str(folder))
        for seed in range(3):
            aim = goals.draw(seed)
            env.restore(aim.moment)
            for action in aim.origin.actions[aim.origin.decision :][:3]:
                obs, *_ = env.step(action)
            np.testing.assert_array_equal(obs[-3:], aim.frame)


def test_the_true_model_reaches_goals_and_shuffled_scores_do_not(typed: Command) -> None:
    for control in ("shuffled", "random", "none"):
        code, out, error = typed(main, *TOY, *SIMULATOR, "episodes=8", f"control={control}")
        assert (code, error) == (0, "")
    name = "toy-reach-icem_goal-image-simulator-offset5"
    ours, shuffled, random = rows(name), rows(f"{name}-shuffled"), rows(f"{name}-random")
    reached, by_luck = (sum(int(row["success"]) for row in some) for some in (ours, shuffled))
    assert reached > by_luck + 2
    assert all(row["promised"] == row["earned"] != "" for row in ours)
    for row in (*ours, *shuffled, *random):
        assert row["success"] == "1" or row["decisions"] == "10"
    assert f"toy/reach, goal offset:5, simulator, icem_goal, cost image, control none\n\nsuccess {reached} of 8" in out
    assert f"control shuffled: {by_luck} of 8" in out
    assert Path(f"runs/plans/{name}/000.gif").exists()


def test_it_continues_where_it_stopped(typed: Command) -> None:
    def numbers(name: str) -> list[dict[str, str]]:
        return [row | {"plan_s": ""} for row in rows(name)]

    typed(main, *TOY, *SIMULATOR, "episodes=3", "name=whole")
    typed(main, *TOY, *SIMULATOR, "episodes=1", "name=parts")
    typed(main, *TOY, *SIMULATOR, "episodes=3", "name=parts")
    assert numbers("toy-reach-parts") == numbers("toy-reach-whole")
    assert "goal was offset:5, is offset:6" in typed(main, *TOY, *SIMULATOR, "name=parts", "goal=offset:6")[2]


def test_reacher_poses(typed: Command) -> None:
    """From near by, with the simulator as the model: more than with shuffled scores."""
    words = ("task=dm_control/reacher-easy", "goal=offset:6", "episodes=4", "shown=0", "name=x")
    small = ("planning.samples=24", "planning.iterations=3", "planning.horizon=6", "planning.execute=6")
    for control in ("shuffled", "none"):
        code, _, error = typed(main, *SIMULATOR, *words, *small, f"control={control}")
        assert (code, error) == (0, "")
    ours, by_luck = rows("dm_control-reacher-easy-x"), rows("dm_control-reacher-easy-x-shuffled")
    assert sum(int(row["success"]) for row in ours) > sum(int(row["success"]) for row in by_luck)


def test_what_is_refused(typed: Command, env: envs.PixelEnv) -> None:
    recorded = record("recorded", typed)
    record("small", typed, "image_size=32")
    record("long", typed, "episode_frames=60")
    record("repeated", typed, "action_repeat=4")
    black, still, moved = (
        np.zeros((11, 3, 64, 64), np.uint8),
        np.zeros((10, 2), np.float32),
        np.ones((10, 2), np.float32),
    )
    for name, actions, seed in (
        ("still", still, 3),
        ("other", moved, 3),
        ("seedless", moved, None),
        ("arm", np.zeros((10, 4), np.float32), 3),
    ):
        EpisodeStore(Path(name)).save(0, Episode(black, actions, np.zeros(10, np.float32), seed=seed))
    for overrides, said in (
        (("goal=offset:0",), "goal=offset:0: write goal=offset:<decisions>, a whole number from 1 on"),
        (("goal=offset:x",), "goal=offset:x: write goal=offset:<decisions>"),
        (("goal=offset:-3",), "goal=offset:-3: write goal=offset:<decisions>"),
        (("goal=offset:2.5",), "goal=offset:2.5: write goal=offset:<decisions>"),
        (("goal=offset:",), "goal=offset:: write goal=offset:<decisions>"),
        (
            ("goal=ofset:5",),
            "goal=ofset:5: no such file; it is expert, offset:<decisions>, vp2:<file>, none or an image",
        ),
        (("goal=offset:21",), "goal=offset:21: an episode of toy/reach has 20 decisions"),
        (("goal=offset:16", "data=repeated"), "the longest of 20 episodes of repeated has 10 decisions"),
        (("task=dm_control/walker-walk",), "dm_control/walker-walk cannot tell whether a goal state is reached"),
        (("data=nowhere",), "nowhere holds no recorded episodes"),
        (("data=small",), "data=small: its frames are 32x32 pixels, the model sees 64x64"),
        (("data=arm",), "data=arm: its actions have 4 numbers, toy/reach has 2"),
        (("data=seedless",), "data=seedless: its episodes were recorded without their seeds"),
        (
            ("data=long",),
            "an episode of it has 30 decisions, one of toy/reach 20: set action_repeat and episode_frames",
        ),
        (
            ("data=other",),
            "data=other: an episode of it, played again, looks different: it was recorded of another task",
        ),
        (("data=repeated",), "with another action_repeat, camera or render_quality"),
        (("data=still",), "in 20 episodes of still everything is where it was 5 decisions before"),
        (("goal=expert", recorded), "data=recorded is for goal=offset:<decisions>, not for goal=expert"),
        (("goal=expert", "budget=9"), "budget=9 is for goal=offset:<decisions>, not for goal=expert; episode_frames"),
        (("budget=0",), "budget=0 is out of range: it must be at least 1"),
    ):
        code, _, error = typed(main, *dict.fromkeys((*TOY, *SIMULATOR)), *overrides)
        assert code == 2, overrides
        assert said in error, overrides
        assert error.count("\n") == 0
    assert not Path("runs/plans").exists()
    assert parse_offset("expert") is None
    assert parse_offset("offset:025") == 25
    with pytest.raises(UserError, match="offset:99999999999"):
        parse_offset("offset:99999999999")
