"""Runs the official DreamerV3 on tiny sizes and writes what it computes to golden.npz; README.md says how and why.

PYTHONPATH=<checkout of danijar/dreamerv3> python make_golden.py <folder>
"""

import itertools
import pathlib
import sys

import dreamerv3.agent as official
import elements
import embodied.jax
import embodied.jax.nets
import jax
import jax.numpy as jnp
import ninjax as nj
import numpy as np
import ruamel.yaml

embodied.jax.nets.COMPUTE_DTYPE = jnp.float32
BATCH, STEPS, HORIZON, ACTIONS, SIDE = 2, 4, 3, 2, 64
DETER, STOCH, CLASSES = 16, 4, 4
UPDATES = 3
WIDTHS = {
    r".*\.rssm\.deter": DETER,
    r".*\.rssm\.hidden": 8,
    r".*\.rssm\.stoch": STOCH,
    r".*\.rssm\.classes": CLASSES,
    r".*\.rssm\.blocks": 8,
    r".*\.depth": 2,
    r".*\.units": 8,
    r".*\.imag_length": HORIZON,
    r".*\.free_nats": 5.0,  # so that they hold back some steps and not others
    r".*\.opt\.warmup": 2,
    r".*\.opt\.lr": 1e-3,
}


class Agent(official.Agent):
    """The agent itself, without the wrapper that puts it on devices."""

    def __new__(cls, *arguments):
        return object.__new__(cls)


class Noise:
    """Keeps what is drawn, in order, under eager execution."""

    def __init__(self):
        self.gumbel, self.normal = [], []
        self.draw_gumbel, self.draw_normal = jax.random.gumbel, jax.random.normal
        jax.random.categorical, jax.random.normal = self.categorical, self.keep_normal

    def categorical(self, key, logits, axis, shape):
        gumbel = self.draw_gumbel(key, logits.shape)
        if not isinstance(gumbel, jax.core.Tracer):
            self.gumbel.append(np.asarray(gumbel))
        return jnp.argmax(gumbel + logits, axis)

    def keep_normal(self, key, shape=(), dtype=float):
        normal = self.draw_normal(key, shape, jnp.float32)
        if not isinstance(normal, jax.core.Tracer):
            self.normal.append(np.asarray(normal))
        return normal

    def take(self, steps):
        """What the last pass drew that counts. Before each scan its body is run once more, to no effect."""
        gumbel = iter(self.gumbel[-sum(steps) - len(steps) :])
        normal = self.normal[-HORIZON - 1 - (len(steps) == 2) :]  # a loss draws one action more, and never uses it
        drawn = [x for count in steps for x in list(itertools.islice(gumbel, 1 + count))[1:]]
        kept = {f"gumbel{i}": x for i, x in enumerate(drawn)}
        kept |= {f"normal{i}": x for i, x in enumerate(normal[1 : 1 + HORIZON])}
        self.gumbel, self.normal = [], []
        return kept


def make_agent():
    text = (pathlib.Path(official.__file__).parent / "configs.yaml").read_text()
    config = elements.Config(ruamel.yaml.YAML(typ="safe").load(text)["defaults"]).update(WIDTHS)
    config = elements.Config(
        **config.agent, logdir="", seed=0, jax=config.jax, batch_size=BATCH, batch_length=STEPS,
        replay_context=1, report_length=STEPS, replica=0, replicas=1,
    )  # fmt: skip
    obs = {
        "image": elements.Space(np.uint8, (SIDE, SIDE, 3)),
        "reward": elements.Space(np.float32),
        **{name: elements.Space(bool) for name in ("is_first", "is_last", "is_terminal")},
    }
    return Agent(obs, {"action": elements.Space(np.float32, (ACTIONS,), -1, 1)}, config)


def make_data(rng):
    """Windows of 1 + STEPS steps in which episodes end and begin, and states for their first steps."""
    lead = (BATCH, 1 + STEPS)
    blocks = rng.integers(108, 148, (*lead, 8, 8, 3))  # about what the decoder begins with, so that other losses count
    flags = {name: np.zeros(lead, bool) for name in ("is_first", "is_last", "is_terminal")}
    flags["is_last"][0, 1] = flags["is_terminal"][0, 1] = flags["is_first"][0, 2] = True
    flags["is_last"][1, 2] = flags["is_first"][1, 3] = True
    stoch = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, (*lead, STOCH))]
    reward = rng.normal(0, 3, lead).astype(np.float32)
    return {
        "image": np.kron(blocks, np.ones((1, 1, 8, 8, 1))).astype(np.uint8),
        "reward": np.where(flags["is_first"], 0, reward).astype(np.float32),
        **flags,
        "action": rng.uniform(-1.5, 1.5, (*lead, ACTIONS)).astype(np.float32),
        "dyn/deter": rng.uniform(-1, 1, (*lead, DETER)).astype(np.float32),
        "dyn/stoch": stoch,
        "stepid": np.zeros((*lead, 20), np.uint8),
        "consec": np.zeros(lead, np.int32),
    }


def disturb(state, rng):
    """Start weights as they are, but no bias zero, no scale one, and heads that predict something."""
    for name, value in state.items():
        value, part = np.asarray(value), name.rsplit("/", 1)[-1]
        if name.startswith("opt/"):
            state[name] = jnp.zeros_like(value)
        elif name.startswith("retnorm/"):
            state[name] = jnp.float32(-0.3 if "/lo/" in name else 2.9)
        elif part == "bias" and name.split("/")[-2] == "logits":
            far = np.abs(np.arange(len(value)) - len(value) // 2)
            state[name] = jnp.asarray(-0.25 * far + rng.normal(0, 1, value.shape), jnp.float32)
        elif part == "bias":
            state[name] = jnp.asarray(rng.normal(0, 0.1, value.shape), jnp.float32)
        elif part == "scale":
            state[name] = jnp.asarray(rng.normal(1, 0.1, value.shape), jnp.float32)
        elif part == "kernel" and name.split("/")[-2] in ("obslogit", "priorlogit"):
            state[name] = jnp.asarray(rng.normal(0, 0.8, value.shape), jnp.float32)
        elif part == "kernel" and name.split("/")[-2] in ("logits", "mean", "stddev"):
            state[name] = jnp.asarray(rng.normal(0, 0.3, value.shape), jnp.float32)
    return state


def numbers(state):
    return {name: np.asarray(value) for name, value in state.items() if not name.startswith("opt/")}


def main(folder):
    rng, noise, agent, out = np.random.default_rng(0), Noise(), make_agent(), {}

    def keep(prefix, values):
        out.update({f"{prefix}/{name}": np.asarray(value) for name, value in values.items()})

    data = make_data(rng)
    keep("data", {name: value for name, value in data.items() if name not in ("stepid", "consec")})
    data = jax.tree.map(jnp.asarray, data)

    def start():
        return agent.init_train(BATCH)

    def gradients(data):
        carry, obs, prevact, _ = agent._apply_replay_context(start(), data)
        loss, _, grads, aux = nj.grad(agent.loss, agent.modules, has_aux=True)(carry, obs, prevact, training=True)
        return loss, grads, aux

    def train(data):
        return agent.train(start(), data)[2]

    def imagine(deter, stoch):
        def policy(feat):
            return official.sample(agent.pol(agent.feat2tensor(feat), 1))

        _, feat, action = agent.dyn.imagine({"deter": deter, "stoch": stoch}, policy, HORIZON, training=False)
        inp = agent.feat2tensor(feat)
        actor = agent.pol(inp, 2)["action"].output
        return {
            "deter": feat["deter"], "stoch": feat["stoch"], "action": action["action"], "mean": actor.mean,
            "std": actor.stddev, "entropy": agent.pol(inp, 2)["action"].entropy(), "reward": agent.rew(inp, 2).pred(),
            "continue": agent.con(inp, 2).prob(1), "value": agent.val(inp, 2).pred(),
        }  # fmt: skip

    with jax.disable_jit():
        state, _ = nj.pure(train)({}, data, seed=jax.random.PRNGKey(0), create=True)
        state = disturb(dict(state), rng)
        for name in [name for name in state if name.startswith("slowval/")]:  # not the critic itself
            if state[name].ndim:
                state[name] = state["val/" + name.removeprefix("slowval/")] * 1.1 + 0.01
        keep("weights", numbers(state))

        seed = jax.random.PRNGKey(1)
        _, (loss, grads, aux) = nj.pure(gradients)(dict(state), data, seed=seed, create=False)
        keep("loss/noise", noise.take([STEPS, HORIZON]))
        keep("loss/gradient", grads)
        keep("loss", aux[2]["losses"] | {"total": loss})
        keep("loss/metrics", aux[3])
        keep("observe", aux[2]["repfeat"] | {"tokens": aux[2]["tokens"]})

        first = {name: data[f"dyn/{name}"][:, 0] for name in ("deter", "stoch")}
        _, imagined = nj.pure(imagine)(dict(state), **first, seed=seed, create=False)
        keep("imagine/noise", noise.take([HORIZON]))
        keep("imagine", imagined)

        trained = dict(state)
        for i in range(UPDATES):
            trained, metrics = nj.pure(train)(trained, data, seed=jax.random.PRNGKey(2 + i), create=False)
            keep(f"update{i}/noise", noise.take([STEPS, HORIZON]))
            keep(f"update{i}", {"grad_norm": metrics["opt/grad_norm"]})
        keep("trained", numbers(trained))

    # Parts by themselves.
    shape = (3, 6)
    terms = {name: rng.normal(0, 2, shape).astype(np.float32) for name in ("rew", "val", "boot")}
    ends = {"last": rng.uniform(size=shape) < 0.3, "term": rng.uniform(size=shape).astype(np.float32)}
    returns = official.lambda_return(ends["last"], ends["term"], terms["rew"], terms["val"], terms["boot"], 0.9, 0.8)
    keep("lambda", terms | ends | {"returns": returns})

    head = embodied.jax.MLPHead(elements.Space(np.float32), "symexp_twohot", layers=1, units=4, bins=255, name="h")
    _, bins = nj.pure(lambda: head(jnp.zeros((1, 4)), 1).bins)({}, seed=seed, create=True)
    logits = (rng.normal(0, 1, (9, 255)) - 0.1 * np.abs(np.arange(255) - 127)).astype(np.float32)
    target = np.array([0, 0.05, -0.3, 1, -7.7, 123.4, -1e6, 1e9, -1e9], np.float32)
    target[3] = bins[140]  # a bin itself
    two_hot = embodied.jax.outs.TwoHot(jnp.asarray(logits), bins)
    keep("twohot", {"bins": bins, "logits": logits, "target": target, "mean": two_hot.pred()})
    keep("twohot", {"loss": two_hot.loss(jnp.asarray(target))})

    returns = rng.normal(0, 20, (4, 50)).astype(np.float32)
    norm = embodied.jax.Normalize("perc", rate=0.01, limit=1.0, perclo=5.0, perchi=95.0, debias=False, name="n")
    state, scales = {}, []
    for row in returns:
        state, (_, scale) = nj.pure(lambda x: norm(x, True))(state, jnp.asarray(row), seed=seed, create=True)
        scales.append(scale)
    keep("scale", {"returns": returns, "scale": np.array(scales)})

    optimizer = agent._make_opt(lr=0.1, warmup=2)
    params = {"a": rng.normal(0, 1, (5, 4)), "b": np.zeros(6), "c": rng.normal(0, 3, (2, 3, 4))}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    keep("optimizer/start", params)
    memory = optimizer.init(params)
    for i in range(5):
        size = {"a": 0.01, "b": 1.0, "c": 100.0}
        grads = {k: jnp.asarray(rng.normal(0, size[k], v.shape), jnp.float32) for k, v in params.items()}
        keep(f"optimizer/gradient{i}", grads)
        updates, memory = optimizer.update(grads, memory, params)
        params = {name: params[name] + updates[name] for name in params}
        keep(f"optimizer/after{i}", params)

    path = pathlib.Path(folder) / "golden.npz"
    np.savez_compressed(path, **out)
    print(f"{path}: {len(out)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1])
