"""The predictor that VP2's planners call: the official frames, in VP2's layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mbrl.interop.vp2 import VP2Predictor
from world_model.schema import UserError

TINY = Path(__file__).parent / "data/official-tiny"


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(TINY / "expected.safetensors")


def batch(expected: dict[str, Tensor], copies: int = 1) -> dict[str, np.ndarray]:
    """Two clips; the action between the two context frames is nothing that counts."""
    video = expected["rollout_context"].permute(0, 1, 3, 4, 2).repeat(copies, 1, 1, 1, 1).numpy()
    future = expected["rollout_actions"].repeat(copies, 1, 1)
    before = torch.full_like(future[:, :1], 7.0)
    return {"video": video, "actions": torch.cat([before, future], 1).numpy()}


def test_its_frames_are_the_official_ones(expected: dict[str, Tensor]) -> None:
    predictor = VP2Predictor(TINY, temperature=0, precision="fp32")
    assert (predictor.num_context, predictor.base_prediction_modality) == (2, "rgb")
    frames = torch.from_numpy(predictor(batch(expected))["rgb"]).permute(0, 1, 4, 2, 3)
    assert frames.shape == (2, 7, 3, 64, 64)
    torch.testing.assert_close(frames[:, 1:], expected["rollout_frames"], rtol=0, atol=1e-4)
    # The second frame of a context comes back decoded.
    other = {"video": expected["frames"][:, :2].permute(0, 1, 3, 4, 2).numpy(), "actions": batch(expected)["actions"]}
    decoded = torch.from_numpy(predictor(other)["rgb"][:, 0]).permute(0, 3, 1, 2)
    torch.testing.assert_close(decoded, expected["detokenized"][:, 1].clamp(0, 1), rtol=0, atol=1e-4)


def test_many_candidates_are_split_and_all_come_back(expected: dict[str, Tensor]) -> None:
    whole = VP2Predictor(TINY, temperature=0, precision="fp32")(batch(expected))["rgb"]
    split = VP2Predictor(TINY, max_rows=3, temperature=0, precision="fp32")(batch(expected, copies=4))["rgb"]
    assert split.shape == (8, 7, 64, 64, 3)
    np.testing.assert_allclose(split, np.concatenate([whole] * 4), rtol=0, atol=1e-4)


def test_draws_follow_from_the_seed(expected: dict[str, Tensor]) -> None:
    first, second, other = (VP2Predictor(TINY, seed=seed)(batch(expected))["rgb"] for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("key", "cut", "said"),
    [
        ("video", np.s_[:, :1], r"video \(2, 1, 64, 64, 3\) must be \(B, 2, 64, 64, 3\)"),
        ("actions", np.s_[:, :1], r"actions \(2, 1, 4\) must be \(2, 2 or more, 4\)"),
        ("actions", np.s_[:, :, :3], r"actions \(2, 7, 3\) must be"),
        ("actions", np.s_[:1], r"actions \(1, 7, 4\) must be"),
    ],
)
def test_other_shapes_are_refused(expected: dict[str, Tensor], key: str, cut: tuple[slice, ...], said: str) -> None:
    asked = batch(expected)
    with pytest.raises(UserError, match=said):
        VP2Predictor(TINY)(asked | {key: asked[key][cut]})


class History:
    """Of VP2's lists of observations what its planner asks for."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames

    def __getitem__(self, asked: slice | str) -> "History | np.ndarray":
        return History(self.frames[asked]) if isinstance(asked, slice) else self.frames


def test_vp2s_own_planner_drives_it(expected: dict[str, Tensor]) -> None:
    """Where VP2 is installed: its MPPI plans with it towards a frame."""
    mppi = pytest.importorskip("vp2.mpc.mppi", reason="VP2 is in no package index: github.com/s-tian/vp2")
    sampler = pytest.importorskip("vp2.mpc.sampler").CorrelatedNoiseSampler(4, 0.5, 6)
    goal, scores = expected["rollout_frames"][0, -1].permute(1, 2, 0).numpy(), []

    def near(predictions: dict[str, np.ndarray], goal: np.ndarray) -> np.ndarray:
        scores.append(-((predictions["rgb"] - goal) ** 2).sum((1, 2, 3, 4)))
        return scores[-1][:, None, None]

    predictor = VP2Predictor(TINY, max_rows=5, temperature=0, precision="fp32")
    planner = mppi.MPPIOptimizer(sampler, predictor, near, 4, 6, 12, 1.0, np.full(4, 0.5), log_every=10**6)
    seen = History(batch(expected)["video"][0])
    plan = planner.plan(1, "", seen, [None] * 2, [np.zeros(4)] * 2, goal)
    assert plan.shape == (6, 4)
    assert np.abs(plan).max() <= 1
    assert len(scores[0]) == 12
    assert np.isfinite(scores[0]).all()
