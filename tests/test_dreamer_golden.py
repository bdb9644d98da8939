"""DreamerV3 against the official code: every part, every loss and three whole updates, on stored numbers.

tests/data/dreamerv3/README.md says how the numbers were made. Weights, batch and noise are theirs, in float32.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import DreamerV3, DreamerV3Config, StreamBatch
from agents.dreamerv3 import SIZES
from agents.dreamerv3.behaviour import ReturnScale, lambda_returns
from agents.dreamerv3.config import Size
from agents.dreamerv3.heads import TwoHotHead, normal_entropy
from agents.dreamerv3.nets import BlockLinear
from agents.dreamerv3.optimizer import LaProp
from agents.dreamerv3.rssm import State
from mbrl.experiment.settings import load

GOLDEN = Path(__file__).parent / "data" / "dreamerv3" / "golden.npz"
SIZE = Size(deter=16, hidden=8, stoch=4, classes=4, depth=2, units=8, blocks=8)
HORIZON = 3
TOLERANCE = 1e-4

# Our name of each layer -> the official one.
LAYERS = {
    **{f"model.encoder.convs.{i}": f"enc/cnn{i}" for i in range(4)},
    **{f"model.encoder.norms.{i}": f"enc/cnn{i}norm" for i in range(4)},
    "model.rssm.from_deter": "dyn/dynin0",
    "model.rssm.from_stoch": "dyn/dynin1",
    "model.rssm.from_action": "dyn/dynin2",
    "model.rssm.hidden": "dyn/dynhid0",
    "model.rssm.hidden_norm": "dyn/dynhid0norm",
    "model.rssm.gates": "dyn/dyngru",
    "model.rssm.observed": "dyn/obs0",
    "model.rssm.observed_norm": "dyn/obs0norm",
    "model.rssm.posterior_logits": "dyn/obslogit",
    "model.rssm.prior_hidden.0": "dyn/prior0",
    "model.rssm.prior_hidden.1": "dyn/prior1",
    "model.rssm.prior_logits": "dyn/priorlogit",
    "model.decoder.from_deter": "dec/sp0",
    "model.decoder.hidden": "dec/sp1",
    "model.decoder.from_latents": "dec/sp2",
    "model.decoder.norm": "dec/spnorm",
    **{f"model.decoder.convs.{i}.conv": f"dec/{name}" for i, name in enumerate(("conv2", "conv1", "conv0", "imgout"))},
    **{f"model.decoder.norms.{i}": f"dec/conv{2 - i}norm" for i in range(3)},
    "model.reward.logits": "rew/head/logits",
    "model.continue_head.logit": "con/head/logit",
    "behaviour.actor.mean": "pol/head/action/mean",
    "behaviour.actor.std": "pol/head/action/stddev",
    "behaviour.critic.logits": "val/head/logits",
    "behaviour.slow_critic.logits": "slowval/head/logits",
}
HEADS = {
    "model.reward": ("rew", 1),
    "model.continue_head": ("con", 1),
    "behaviour.actor": ("pol", 3),
    "behaviour.critic": ("val", 3),
    "behaviour.slow_critic": ("slowval", 3),
}


class StoredNoise:
    """What the official code drew, in its order."""

    def __init__(self, golden: dict[str, Tensor], prefix: str) -> None:
        kinds = {kind: [name for name in golden if name.startswith(f"{prefix}/noise/{kind}")] for kind in ("g", "n")}
        self.gumbel, self.gaussian = ([golden[name] for name in kinds[kind]] for kind in ("g", "n"))
        assert self.gumbel

    def exponential(self, *shape: int) -> Tensor:
        drawn = self.gumbel.pop(0)
        assert drawn.shape == shape
        return (-drawn).exp()  # argmax(log p + gumbel) = argmax(p / exponential)

    def normal(self, *shape: int) -> Tensor:
        drawn = self.gaussian.pop(0)
        assert drawn.shape == shape
        return drawn


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> DreamerV3Config:
    """The official values, but for the sizes and for a learning rate that shows in three updates."""
    monkeypatch.setitem(SIZES, "golden", SIZE)
    paper = load(["agent=dreamerv3", "preset=paper", "device=cpu"]).dreamerv3
    changes = dict(imagination_length=HORIZON, free_nats=5.0, lr=1e-3, warmup_updates=2, precision="fp32")
    return dataclasses.replace(paper, size="golden", **changes)


@pytest.fixture
def agent(golden: dict[str, Tensor], config: DreamerV3Config) -> DreamerV3:
    made = DreamerV3((9, 64, 64), 2, config, "cpu", seed=0)
    made.load_weights(ours(golden, "weights", made))
    return made


def official_name(agent: DreamerV3, name: str) -> str:
    """`behaviour.actor.mlp.0.linear.weight` -> `pol/mlp/linear0/kernel`."""
    layer, part = name.rsplit(".", 1)
    part = {"weight": "kernel"}.get(part, part)
    for head, (theirs, _) in HEADS.items():
        if layer.startswith(f"{head}.mlp."):
            index, kind = layer.removeprefix(f"{head}.mlp.").split(".")
            return f"{theirs}/mlp/{kind}{index}/{part}"
    if layer in LAYERS:
        return f"{LAYERS[layer]}/{part}"
    dense, kind = layer.rsplit(".", 1)
    return f"{LAYERS[dense]}{'norm' if kind == 'norm' else ''}/{part}"


def ours(golden: dict[str, Tensor], prefix: str, agent: DreamerV3) -> dict[str, Tensor]:
    """Official weights (or gradients) under our names and in torch's layout."""
    modules = {f"{n}.{m}": module for n in ("model", "behaviour") for m, module in getattr(agent, n).named_modules()}
    found = {}
    for name in agent.weights():
        if name == "behaviour.return_scale.percentiles":
            if f"{prefix}/retnorm/lo/value" in golden:
                found[name] = torch.stack([golden[f"{prefix}/retnorm/{end}/value"] for end in ("lo", "hi")])
            continue
        value = golden.get(f"{prefix}/{official_name(agent, name)}")
        if value is None:
            assert prefix.endswith("gradient"), name
            assert "slow" in name
            continue
        if name.endswith("weight") and not isinstance(modules[name.rsplit(".", 1)[0]], BlockLinear):
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        found[name] = value
    return found


def batch(golden: dict[str, Tensor]) -> StreamBatch:
    """The stored windows. Our rewards and actions follow a step where the official rewards lead to it."""
    d = {name.removeprefix("data/"): value for name, value in golden.items() if name.startswith("data/")}
    continues = ~d["is_last"]
    rewards = torch.cat([d["reward"][:, 1:], torch.zeros(2, 1)], 1)
    return StreamBatch(
        frames=d["image"].permute(0, 1, 4, 2, 3),
        actions=d["action"] * continues.unsqueeze(-1),
        rewards=rewards * continues,
        is_first=d["is_first"],
        is_last=d["is_last"],
        is_terminal=d["is_terminal"],
        slots=torch.arange(10).view(2, 5),
    )


def context(golden: dict[str, Tensor]) -> State:
    return State(golden["data/dyn/deter"][:, 0], golden["data/dyn/stoch"][:, 0].flatten(1))


def close(value: Tensor, golden: Tensor) -> None:
    """Within 1e-4, of the number itself where it is larger than 1."""
    golden = golden.float().reshape(value.shape)
    torch.testing.assert_close(value.detach().float(), golden, rtol=TOLERANCE, atol=TOLERANCE)


def test_every_weight_has_its_official_one(golden, agent):
    taken = {official_name(agent, name) for name in agent.weights() if "return_scale" not in name}
    official = {name.removeprefix("weights/") for name in golden if name.startswith("weights/")}
    assert official - taken == {"retnorm/lo/value", "retnorm/hi/value", "slowval_count/value"}
    assert taken <= official


def test_start_weights_are_as_wide(golden, config):
    """The kernels that make_golden.py left as the official code had drawn them, against a fresh draw of ours."""
    agent = DreamerV3((9, 64, 64), 2, config, "cpu", seed=3)
    official, drawn = ours(golden, "weights", agent), agent.weights()
    left = [name for name, value in drawn.items() if name.endswith("weight") and value.numel() >= 100]
    left = [name for name in left if "logits" not in name]
    assert len(left) > 15
    for name in left:
        ratio = float(drawn[name].std() / official[name].std())
        assert ratio == pytest.approx(1, abs=4 / drawn[name].numel() ** 0.5), name
    for name, value in drawn.items():
        if name.endswith(("bias", "scale")):
            assert torch.equal(value, torch.full_like(value, float(name.endswith("scale")))), name
    for head in ("model.reward", "behaviour.critic", "behaviour.slow_critic"):
        assert drawn[f"{head}.logits.weight"].abs().max() == 0
    for head in ("mean", "std"):
        assert 0.001 < drawn[f"behaviour.actor.{head}.weight"].std() * 8**0.5 < 0.02


def test_observing(golden, agent):
    noise, data = StoredNoise(golden, "loss"), batch(golden)
    features = agent.model.encoder(data.frames[:, 1:])
    close(features, golden["observe/tokens"])
    states, posterior = agent.model.rssm.observe(
        context(golden), features, data.actions[:, :-1], data.is_first[:, 1:], noise
    )
    close(states.deter, golden["observe/deter"])
    close(states.stoch, golden["observe/stoch"])
    close(posterior, 0.99 * golden["observe/logit"].softmax(-1) + 0.01 / 4)


def test_imagining(golden, agent):
    model, behaviour, start = agent.model, agent.behaviour, context(golden)
    features, actions = model.imagine(start, behaviour.actor, StoredNoise(golden, "imagine"))
    assert features.shape == (2, HORIZON + 1, 16 + 16)
    close(features[:, 0], start.features)
    deter, stoch = features[:, 1:].split(16, -1)
    close(deter, golden["imagine/deter"])
    close(stoch, golden["imagine/stoch"])
    close(actions, golden["imagine/action"])
    mean, std = behaviour.actor(features[:, 1:])
    close(mean, golden["imagine/mean"])
    close(std, golden["imagine/std"])
    close(normal_entropy(std), golden["imagine/entropy"])
    close(model.reward.mean(model.reward(features[:, 1:])), golden["imagine/reward"])
    close(model.continue_head(features[:, 1:]).sigmoid(), golden["imagine/continue"])
    close(behaviour.critic.mean(behaviour.critic(features[:, 1:])), golden["imagine/value"])


def test_losses_and_gradients(golden, agent):
    total, states, metrics = agent.loss(batch(golden), context(golden), StoredNoise(golden, "loss"))
    close(states.deter, golden["observe/deter"])
    names = {
        "reconstruction": "image",
        "reward": "rew",
        "continue": "con",
        "dynamics": "dyn",
        "representation": "rep",
        "policy": "policy",
        "value": "value",
        "replay_value": "repval",
    }
    for name, theirs in names.items():
        close(metrics[f"{name}_loss"], golden[f"loss/{theirs}"].mean())
    close(metrics["loss"], golden["loss/total"])
    close(metrics["prior_entropy"], golden["loss/metrics/dyn_ent"])
    close(metrics["posterior_entropy"], golden["loss/metrics/rep_ent"])
    close(metrics["value"], golden["loss/metrics/val"])
    close(metrics["advantage_magnitude"], golden["loss/metrics/adv_mag"])

    total.backward()
    gradients = ours(golden, "loss/gradient", agent)
    assert gradients.keys() == set(agent.optimizer.state_dict()["momentum"])
    for network in ("model", "behaviour"):
        for name, parameter in getattr(agent, network).named_parameters():
            if (expected := gradients.get(f"{network}.{name}")) is not None:
                size = expected.abs().max()
                close(parameter.grad / size, expected / size)


def test_world_model_losses_step_by_step(golden, agent):
    losses, _, _ = agent.model.loss(batch(golden), context(golden), StoredNoise(golden, "loss"))
    for name, theirs in (("reconstruction", "image"), ("reward", "rew"), ("continue", "con")):
        close(losses[name], golden[f"loss/{theirs}"])
    for name, theirs in (("dynamics", "dyn"), ("representation", "rep")):
        close(losses[name], golden[f"loss/{theirs}"])
    assert 0 < (golden["loss/dyn"] == 5).float().mean() < 1, "free nats hold back some steps, not all"


def test_whole_updates(golden, agent, monkeypatch):
    """World model, actor, critic, slow critic, return scale and stored states, through three updates."""
    agent.make_memory(10)
    data = batch(golden)
    for i in range(3):
        agent._states.write(data.slots[:, :1], State(*(part.unsqueeze(1) for part in context(golden))))
        monkeypatch.setattr(agent._states, "read", lambda slots: context(golden))  # not rounded to float16
        agent.noise = StoredNoise(golden, f"update{i}")
        metrics = agent.update(data, decision=0)
        close(metrics["grad_norm"], golden[f"update{i}/grad_norm"])
    trained, before = ours(golden, "trained", agent), ours(golden, "weights", agent)
    moved = {name: (trained[name] - before[name]).abs().max() for name in trained}
    assert all(step > 1e-5 for step in moved.values()), "there is something to compare"
    gradients = ours(golden, "loss/gradient", agent)
    for name, value in agent.weights().items():
        # Where a gradient is so small that its square is no float32 number any more, a step is a matter of chance.
        counts = gradients.get(name, torch.ones(())).abs() > 1e-12
        close(torch.where(counts, value, 0.0), torch.where(counts, trained[name], 0.0))


def test_lambda_returns(golden):
    g = {name: golden[f"lambda/{name}"] for name in ("last", "term", "rew", "boot", "returns")}
    returns = lambda_returns(g["rew"], (1 - g["term"]) * 0.9, g["boot"], (1 - g["last"].float()) * 0.8)
    close(returns, g["returns"])


def test_two_hot(golden):
    head = TwoHotHead(4, 4, 1, bins=255)
    logits = golden["twohot/logits"]
    torch.testing.assert_close(head.bins, golden["twohot/bins"], rtol=1e-5, atol=0)
    close(head.mean(logits), golden["twohot/mean"])
    close(head.loss(logits, golden["twohot/target"]), golden["twohot/loss"])
    assert head.mean(torch.zeros(3, 255)).tolist() == [0.0, 0.0, 0.0]


def test_return_scale(golden):
    scale = ReturnScale(rate=0.01, limit=1.0)
    for returns, expected in zip(golden["scale/returns"], golden["scale/scale"], strict=True):
        close(scale.update(returns), expected)
    assert golden["scale/scale"][-1] > 1, "the range has left its lower limit"


def test_optimizer(golden):
    names = ("a", "b", "c")
    parameters = {name: golden[f"optimizer/start/{name}"].clone() for name in names}
    optimizer = LaProp(parameters, lr=0.1, warmup_updates=2, agc=0.3, beta1=0.9, beta2=0.999, eps=1e-20)
    for i in range(5):
        for name in names:
            parameters[name].grad = golden[f"optimizer/gradient{i}/{name}"].clone()
        optimizer.step()
        for name in names:
            close(parameters[name], golden[f"optimizer/after{i}/{name}"])
