"""What plans are worth to a world model: rewards, values and goal images of dreams."""

import gc
import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from planners import PRESETS
from tiny_world import make_model
from torch import Tensor

from agents import Planner
from mbrl.plan.scores import classifier, codes, image, rewards, score, success, weighted
from world_model import imagine
from world_model.api import FrameRollout, PlainStep
from world_model.ivideogpt.rollout import TokenRollout


def brighten(frames: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The next image is brighter by a tenth of the first action; the reward is that action times the brightness."""
    reward = action[:, 0] * frames[:, -1].mean((1, 2, 3))
    return (frames[:, -1] + action[:, 0, None, None, None] / 10).clamp(0, 1), {"reward": reward}


class Watched:
    """A rollout that notes how many dreams go side by side, and whose heads and frames are noted when asked for."""

    def __init__(self, rollout: FrameRollout, log: list[str]) -> None:
        self.rollout, self.log = rollout, log
        log.append(f"{len(rollout.frames)} rows")

    @property
    def frames(self) -> Tensor:
        return self.rollout.frames

    def step(self, action: Tensor) -> Any:
        self.log.append("step")
        return WatchedStep(self.rollout.step(action), self.log)

    def expand(self, n: int) -> "Watched":
        return Watched(self.rollout.expand(n), self.log)

    def fork(self) -> "Watched":
        return Watched(self.rollout.fork(), self.log)


class WatchedStep:
    tokens = None

    def __init__(self, step: PlainStep, log: list[str]) -> None:
        self._step, self._log = step, log

    @property
    def frame(self) -> Tensor:
        self._log.append("frame")
        return self._step.frame

    @property
    def heads(self) -> dict[str, Tensor]:
        self._log.append("heads")
        return self._step.heads


def start(log: list[str] | None = None) -> Any:
    context = torch.tensor([0.2, 0.4]).reshape(1, 2, 1, 1, 1).expand(1, 2, 3, 4, 4)
    return Watched(FrameRollout(context, brighten), [] if log is None else log)


def test_rewards():
    log: list[str] = []
    actions = torch.tensor([[0.5, 0.0], [1.0, 0.0], [-1.0, 0.0]])[None].repeat(2, 1, 1)
    actions[1] *= -1
    ours = score(start(log), rewards(discount=0.5))(actions)
    up = 0.5 * 0.4 + 0.5 * 1.0 * 0.45 + 0.25 * -1.0 * 0.55
    down = -0.5 * 0.4 - 0.5 * 1.0 * 0.35 + 0.25 * 1.0 * 0.25
    assert ours.tolist() == pytest.approx([up, down])
    assert log == ["1 rows", "2 rows", *["step"] * 3, *["heads"] * 3], "no frame, and no head before the last step"


@pytest.mark.parametrize(("horizon", "seen"), [(1, [0.2, 0.4, 0.5]), (2, [0.4, 0.5, 0.6]), (4, [0.6, 0.7, 0.8])])
def test_terminal_value(horizon, seen):
    log: list[str] = []
    shown: list[Tensor] = []

    def value(frames: Tensor) -> Tensor:
        shown.append(frames)
        return torch.full((len(frames),), 100.0)

    actions = torch.ones(2, horizon, 2)
    plain = score(start(), rewards(0.5))(actions)
    ours = score(start(log), rewards(0.5, value))(actions)
    assert ours.tolist() == pytest.approx((plain + 100 * 0.5**horizon).tolist())
    assert shown[0].shape == (2, 3, 3, 4, 4)
    assert shown[0][1, :, 0, 0, 0].tolist() == pytest.approx(seen)
    assert log.count("frame") == min(horizon, 3)


@pytest.mark.parametrize(("last", "frames"), [(None, [0.5, 0.6, 0.5]), (1, [0.5]), (2, [0.6, 0.5])])
def test_image(last, frames):
    log: list[str] = []
    actions = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])[None]
    ours = score(start(log), image(torch.full((3, 4, 4), 0.9), last))(actions)
    assert float(ours) == pytest.approx(-sum(48 * (0.9 - frame) ** 2 for frame in frames))
    assert log.count("frame") == len(frames)
    assert "heads" not in log


def test_no_more_rows_than_allowed():
    actions = torch.rand(10, 3, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for measure in (rewards(0.9, lambda frames: frames.mean((1, 2, 3, 4))), image(torch.ones(3, 4, 4))):
        log: list[str] = []
        parts = score(start(log), measure, max_rows=4)(actions)
        assert [line for line in log if "rows" in line] == ["1 rows", "4 rows", "4 rows", "2 rows"]
        torch.testing.assert_close(parts, score(start(), measure)(actions), rtol=0, atol=0)
        log.clear()
        score(start(log), measure, max_rows=5)(actions)
        assert [line for line in log if "rows" in line] == ["1 rows", "5 rows", "5 rows"]


def test_a_classifier_and_weights():
    """Parts of a cost look at the same dreams."""
    log: list[str] = []
    actions = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    bright = classifier(lambda frames: frames.mean((1, 2, 3))[:, None], last=2)
    assert score(start(), bright)(actions).tolist() == pytest.approx([0.6 + 0.5, 0.4 + 0.4])
    both = weighted([(0.5, rewards(1.0)), (10.0, bright)])
    expected = 0.5 * score(start(), rewards(1.0))(actions) + 10.0 * score(start(), bright)(actions)
    torch.testing.assert_close(score(start(log), both)(actions), expected)
    assert log.count("step") == 3, "dreamt once"


def test_success_is_the_sum_of_logits():
    steps = [PlainStep(torch.empty(0), {"success": torch.tensor([chance, 0.5])}) for chance in (0.0, 0.5, 0.9)]
    assert success()(start(), steps).tolist() == pytest.approx([math.log(0.001 / 0.999) + math.log(9), 0], abs=1e-4)
    assert success(last=1)(start(), steps).tolist() == pytest.approx([math.log(9), 0], abs=1e-4)


@pytest.mark.parametrize("name", ["vp2_cem", "cem", "icem", "tdmpc2"])
def test_a_plan_reaches_a_goal_image(name):
    planner = Planner(replace(PRESETS[name], horizon=5, execute=1), action_dim=2, seed=0, device="cpu")
    plan = planner.plan(score(start(), image(torch.full((3, 4, 4), 0.7), last=1)))
    dreamt = imagine(_Toy(), start().frames, plan.actions[None], 5)
    assert float(dreamt.frames[0, -1].mean()) == pytest.approx(0.7, abs=0.02)


class _Toy:
    def start(self, context: Tensor, *_: Any, **__: Any) -> FrameRollout:
        return FrameRollout(context, brighten)


def test_ivideogpt_scores_as_it_dreams(monkeypatch):
    """One start for all, in parts and without decoding: the rewards of dreams that each began alone."""
    model = make_model()
    torch.nn.init.normal_(model.heads["reward"].weight, std=0.1)  # zero at the start
    context = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    actions = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    alone = imagine(model, context.expand(5, -1, -1, -1, -1), actions, 4, temperature=0)
    assert alone.rewards is not None
    expected = (alone.rewards * 0.9 ** torch.arange(4)).sum(1)
    assert expected.std() > 0.01, "actions matter"
    decoded: list[int] = []
    decode = model.tokenizer.decode_future
    monkeypatch.setattr(model.tokenizer, "decode_future", lambda *args: (decoded.append(1), decode(*args))[1])

    begun = model.start(context, temperature=0, horizon=4)
    torch.testing.assert_close(score(begun, rewards(0.9), max_rows=3)(actions), expected, rtol=1e-4, atol=1e-5)
    assert not decoded
    last = score(begun, rewards(0.9, lambda frames: frames[:, -1].sum((1, 2, 3))))(actions)
    worth = 0.9**4 * alone.frames[:, -1].sum((1, 2, 3))
    torch.testing.assert_close(last, expected + worth, rtol=1e-4, atol=1e-3)
    assert len(decoded) == 3


def test_code_distance(monkeypatch):
    """Of the tokens that the dream drew from those that the goal has as the next frame; nothing is decoded."""
    model = make_model()
    context = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    goal = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2))
    actions = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    alone = imagine(model, context.expand(5, -1, -1, -1, -1), actions, 4, temperature=0)
    assert alone.tokens is not None
    first = model.layout.first_dynamics_id
    aim = model.layout.split(model.tokenizer.tokenize(torch.cat([context, goal[None, None]], dim=1))[0])[1][0, 0]
    book = model.tokenizer.dynamics_quantize.embedding.weight
    distances = (book[alone.tokens - first] - book[aim]).square().sum((2, 3))  # (5, 4)
    monkeypatch.setattr(model.tokenizer, "decode_future", None)
    begun = model.start(context, temperature=0, horizon=4)
    torch.testing.assert_close(score(begun, codes(goal), max_rows=2)(actions), -distances.sum(1))
    torch.testing.assert_close(score(begun, codes(goal, last=1))(actions), -distances[:, -1])
    assert distances[:, -1].unique().numel() > 1, "actions matter"
    assert torch.equal(begun.encode(goal[None]), aim[None] + first)


def test_no_plan_leaves_anything_behind(monkeypatch):
    """Memory stays flat over plans from one start."""
    made: list[weakref.ref[TokenRollout]] = []
    expand = TokenRollout.expand

    def watched(self: TokenRollout, n: int) -> TokenRollout:
        rollout = expand(self, n)
        made.append(weakref.ref(rollout))
        return rollout

    monkeypatch.setattr(TokenRollout, "expand", watched)
    begun = make_model().start(torch.rand(1, 2, 3, 32, 32), temperature=0, horizon=2)
    held = begun._cache.length
    for _ in range(50):
        score(begun, rewards(0.9))(torch.rand(4, 2, 3))
    gc.collect()
    assert (len(made), sum(rollout() is not None for rollout in made)) == (50, 0)
    assert begun._cache.length == held
