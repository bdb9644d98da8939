"""Acting by planning: an agent that only plans, and a planner beside a trained policy."""

import shutil

import numpy as np
import pytest
import torch
from tiny import Command, checkpoints, different, tiny, train

from mbrl import evaluate
from mbrl.experiment.settings import UserError
from mbrl.plan.agent import PlanningAgent
from mbrl.publish import publish
from mbrl.session import Session
from mbrl.train import main

PLANNING = ("planning.samples=6", "planning.iterations=2", "planning.elites=2", "planning.kept=1",
            "planning.proposals=2", "planning.horizon=3", "planning.execute=2")  # fmt: skip
MPC = ("agent=mpc", "num_eval_episodes=1", *PLANNING)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The folder of a finished tiny run of agent=mpc."""
    return train(tmp_path_factory.mktemp("mpc") / "runs", *MPC)


def test_a_run(planned):
    rows = (planned / "eval.csv").read_text().splitlines()
    assert len(rows) == 3
    assert (planned / "world_model" / "transformer").is_dir()
    logged = (planned / "metrics.jsonl").read_text()
    for tag in ("agent/plan_promised", "agent/plan_std", "agent/plan_blind_iterations", "world_model/dream_mse"):
        assert f'"{tag}"' in logged


def test_killed_in_the_middle_of_a_plan_it_resumes_bit_for_bit(planned, tmp_path, monkeypatch):
    plan, act = PlanningAgent.act, Session.act

    def killed(self: PlanningAgent, *arguments, **keywords):
        if at[0] >= 110 and self.latest is not None:
            raise KeyboardInterrupt
        return plan(self, *arguments, **keywords)

    def noted(self: Session, agent):
        at[0] = self.frame
        act(self, agent)

    at = [0]
    with monkeypatch.context() as patch:
        patch.setattr(PlanningAgent, "act", killed)
        patch.setattr(Session, "act", noted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "runs", *MPC)
    [lock] = (tmp_path / "runs").glob("**/.lock")
    assert max(checkpoints(lock.parent)) < 110
    main(tiny(tmp_path / "runs", *MPC))
    assert different(lock.parent, planned) == []
    for file in ("eval.csv", "train.csv"):
        ours, theirs = (np.genfromtxt(folder / file, delimiter=",", names=True) for folder in (lock.parent, planned))
        for name in set(ours.dtype.names) - {"wall_time_s"}:
            assert np.array_equal(ours[name], theirs[name]), name


def test_evaluation_draws_nothing_of_training(planned, tmp_path):
    """Evaluating more often changes no weight."""
    often = train(tmp_path / "runs", *MPC, "eval_every_frames=20")
    assert different(often, planned) == []


@pytest.mark.parametrize("kept", ["as it is", "published"])
def test_eval_with_a_planner(finished, typed: Command, tmp_path, kept):
    """On a run of MBPO: the policy proposes, its critic values the end."""
    root = tmp_path / "runs"
    if kept == "published":
        assert typed(publish.main, f"run={finished}", f"out={root}")[0] == 0
    else:
        shutil.copytree(finished, root / finished.relative_to(finished.parents[3]))
    overrides = [*tiny(root), "num_eval_episodes=1", "planner=icem", *PLANNING]
    asked, values = [], []
    act, value = PlanningAgent._propose, evaluate.DrQv2.value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlanningAgent, "_propose", lambda *a: (asked.append(act(*a)), asked[-1])[1])
        patch.setattr(evaluate.DrQv2, "value", lambda *a: (values.append(value(*a)), values[-1])[1])
        code, out, error = typed(evaluate.evaluate, *overrides)
    assert (code, error) == (0, "")
    assert "planner icem" in out
    assert len(asked) == 5, "ten decisions, a plan for two"
    assert asked[0].shape == (2, 3, 2)
    assert torch.equal(asked[0].clamp(-1, 1), asked[0])
    assert {len(some) for some in values} == {6}, "of every candidate"


def test_a_planner_needs_a_world_model(typed: Command, tmp_path):
    train(tmp_path / "runs", "agent=drqv2")
    code, _, error = typed(evaluate.evaluate, *tiny(tmp_path / "runs"), "agent=drqv2", "planner=icem")
    assert code == 2
    assert "agent=drqv2 has no world model" in error


def test_the_simulator_is_refused(tmp_path):
    with pytest.raises(UserError, match="make plan MODEL=simulator"):
        train(tmp_path / "runs", *MPC, "world_model.kind=simulator")
