"""Two processes that learn together are one process with the joined batch; so is a batch that is split."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_world import LEARNER, make_clips, make_model
from together import together, without_dropout

from mbrl.world.validate import validate
from world_model import Episode
from world_model.ivideogpt import parallel
from world_model.ivideogpt.adversary import DiscriminatorConfig
from world_model.ivideogpt.config import TokenClips
from world_model.ivideogpt.learner import WorldModelLearner

STEPS = 10
# Everything that is drawn, counted or divided by over a batch.
CONFIG = dataclasses.replace(
    LEARNER,
    tokenizer_lr=1e-4,
    token_noise=0.5,
    quantize_after=2,
    revive_codes_until=100,
    mse_weight=1.0,
    motion_weight=1.0,
)
# In the last three steps alone: the tokenizer's and the discriminator's gradients feed each other, and what rounding
# leaves grows about tenfold with each step. Without it, it stays below 1e-6.
JUDGED = DiscriminatorConfig(weight=0.8, after_updates=STEPS - 3, lr=3e-4, channels=(8, 16))
WAYS = {
    "copies": {},
    "judged": {"discriminator": JUDGED},
    "split shares": {"sharded": True, "accumulate": 2},
}


def make_learner(**how):
    return WorldModelLearner(without_dropout(make_model()), CONFIG, seed=0, **how)


def learn(**how):
    """Metrics of every step; weights; the learner's state."""
    tokenizer = make_model()  # the transformer's tokens stay: a code that is nearly another would be a coin's toss
    learner, found = make_learner(**how), []
    for step in range(STEPS):
        batch = make_clips(seed=step)
        frames, actions, rewards = (field[parallel.local_slice(len(field))] for field in batch[:3])
        found.append(learner.update(TokenClips(tokenizer.tokens(frames)[0], actions, rewards), frames))
    whole = learner.in_one_piece()
    return {"metrics": found, "weights": dict(whole.model.state_dict()), "state": learner.state()}


def validated(learner):
    """Metrics of dreams of four episodes."""
    clips = make_clips()
    frames = (255 * clips.frames).byte().numpy()
    given = (clips.actions[:, :-1].numpy(), clips.rewards[:, :-1].numpy())
    episodes = [Episode(f, a, r, terminated=False) for f, a, r in zip(frames, *given, strict=True)]
    return validate(learner.in_one_piece(), episodes, horizon=3, seed=0)[0]


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name, how in WAYS.items():
        torch.save(learn(**how), folder / f"{name}-{rank}.pt")
    # A sharded learner takes up what a whole one left.
    torch.manual_seed(1)
    learner, left = make_learner(**WAYS["split shares"]), torch.load(folder / "copies-0.pt")
    parallel.load_weights(learner.model, left["weights"])
    learner.load_state(left["state"])
    weights = dict(learner.in_one_piece().model.state_dict())
    found = {"weights": weights, "state": learner.state(), "validated": validated(learner)}
    torch.save(found, folder / f"taken-up-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    together(process, folder)
    return folder


def close(metrics, expected):
    """Losses within 1e-5; gradient norms, of which rounding leaves less, within 1e-3.

    Between them the adversarial term, which a quotient of gradient norms weighs, and the sum that it is part of: 1e-4.
    """
    for step, (a, b) in enumerate(zip(metrics, expected, strict=True)):
        assert a.keys() == b.keys()
        judged = {"tokenizer_adversarial", "tokenizer_loss"} if "tokenizer_adversarial" in a else set()
        for name, value in a.items():
            limit = 1e-3 if name.endswith("grad_norm") else 1e-4 if name in judged else 1e-5
            torch.testing.assert_close(value, b[name], rtol=limit, atol=limit, msg=f"{name} of step {step}")


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one(two, way):
    how = {name: value for name, value in WAYS[way].items() if name == "discriminator"}
    alone = learn(**how)
    assert ("discriminator_loss" in alone["metrics"][-1]) == bool(how)
    for rank in (0, 1):
        other = torch.load(two / f"{way}-{rank}.pt")
        close(other["metrics"], alone["metrics"])
        assert other["weights"].keys() == alone["weights"].keys()


def test_processes_keep_equal_weights(two):
    for way in WAYS:
        first, second = (torch.load(two / f"{way}-{rank}.pt")["weights"] for rank in (0, 1))
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_shares_are_put_together_and_cut_up_without_loss(two):
    left, taken = torch.load(two / "copies-0.pt"), torch.load(two / "taken-up-1.pt")
    assert all(torch.equal(value, taken["weights"][name]) for name, value in left["weights"].items())
    for name, optimizer in left["state"]["optimizers"].items():
        other = taken["state"]["optimizers"][name]["state"]
        for index, values in optimizer["state"].items():
            assert all(torch.equal(value, other[index][key]) for key, value in values.items())


def test_a_sharded_learner_validates_as_a_copied_one(two):
    left, taken = torch.load(two / "copies-0.pt"), torch.load(two / "taken-up-1.pt")
    learner = make_learner()
    parallel.load_weights(learner.model, left["weights"])
    assert taken["validated"] == validated(learner)


def test_a_split_batch_equals_the_whole():
    close(learn(accumulate=2)["metrics"], learn()["metrics"])


def test_without_a_group_nothing_is_divided():
    assert (parallel.processes(), parallel.rank(), parallel.local_slice(6)) == (1, 0, slice(0, 6))
    module = torch.nn.Linear(2, 2)
    assert parallel.wrap(module) is module
    assert parallel.everyone("x") == ["x"]
