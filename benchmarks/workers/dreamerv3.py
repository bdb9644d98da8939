"""The official DreamerV3: python -m benchmarks.workers.dreamerv3 <checkout of danijar/dreamerv3>, requests on stdin.

Runs in an environment of its own (docs/dreamerv3.md has its versions). Agent, replay, driver and streams are the
official classes, put together as its `embodied/run/train.py` does. Ours are the environment, the evaluation at given
frames with the actor's mean, and that the train ratio counts decisions only, not the first steps of episodes.

    {"do": "make", "spec": {...}}          ->  {"threads": n}   an agent and a random batch
    {"do": "time", "calls": 3}             ->  {"seconds": s}   of one update
    {"do": "learn", "spec": {...}}         ->  {"updates": n}   a whole run; rows are written as they come
"""

import csv
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, sys.argv[1])

import dreamerv3.agent as official  # noqa: E402
import elements  # noqa: E402
import embodied  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import ruamel.yaml  # noqa: E402
from dreamerv3 import main as program  # noqa: E402

import envs  # noqa: E402
from benchmarks.workers.lines import answer, use_cores  # noqa: E402

FLAGS = ("is_first", "is_last", "is_terminal")


class Agent(official.Agent):
    """In evaluation it acts with the actor's mean; the official code samples there, too."""

    def policy(self, carry: Any, obs: Any, mode: str = "train") -> Any:
        if mode != "eval":
            return super().policy(carry, obs, mode)
        with mock.patch.object(official, "sample", lambda actor: {name: each.pred() for name, each in actor.items()}):
            return super().policy(carry, obs, mode)


class Environment(embodied.Env):
    """One of our environments as the official code wants it. Every episode begins from a seed of its own."""

    def __init__(self, spec: dict[str, Any], seeds: Sequence[int]) -> None:
        self._env = envs.make(spec["task"], **spec["environment"])
        self._seeds, self._over = iter(seeds), True

    @property
    def obs_space(self) -> dict[str, Any]:
        _, height, width = self._env.observation_space.shape
        return {
            "image": elements.Space(np.uint8, (height, width, 3)),
            "reward": elements.Space(np.float32),
            "log/success": elements.Space(np.float32),
            **{name: elements.Space(bool) for name in FLAGS},
        }

    @property
    def act_space(self) -> dict[str, Any]:
        return {
            "action": elements.Space(np.float32, self._env.action_space.shape, -1, 1),
            "reset": elements.Space(bool),
        }

    def step(self, action: dict[str, Any]) -> dict[str, Any]:
        first, reward, terminated = bool(action["reset"]) or self._over, 0.0, False
        if first:
            obs, info = self._env.reset(seed=next(self._seeds))
            self._over = False
        else:
            obs, reward, terminated, truncated, info = self._env.step(action["action"])
            self._over = terminated or truncated
        return {
            "image": np.ascontiguousarray(obs[-3:].transpose(1, 2, 0)),
            "reward": np.float32(reward),
            "log/success": np.float32(info["success"]),
            "is_first": first,
            "is_last": self._over,
            "is_terminal": terminated,
        }


class Scores:
    """Return and success of each episode that a driver has played."""

    def __init__(self) -> None:
        self.episodes: list[tuple[float, float]] = []
        self._now = (0.0, 0.0)

    def __call__(self, step: dict[str, Any], worker: int) -> None:
        earned, success = (0.0, 0.0) if step["is_first"] else self._now
        self._now = (earned + float(step["reward"]), max(success, float(step["log/success"])))
        if step["is_last"]:
            self.episodes.append(self._now)


def configure(spec: dict[str, Any], folder: str) -> Any:
    """The official defaults with the keys of `spec`, on the CPU in float32."""
    text = (Path(official.__file__).parent / "configs.yaml").read_text()
    config = elements.Config(ruamel.yaml.YAML(typ="safe").load(text)["defaults"])
    machine = {"jax.platform": "cpu", "jax.compute_dtype": "float32", "jax.prealloc": False}
    return config.update({**machine, "agent.report": False, "logdir": folder, **spec["config"]})


def make_agent(config: Any, env: Any) -> Any:
    """As `make_agent` of the official main.py does, for `Agent`. The profiler would trace some of the updates."""
    return Agent(
        {name: space for name, space in env.obs_space.items() if not name.startswith("log/")},
        {name: space for name, space in env.act_space.items() if name != "reset"},
        elements.Config(
            **config.agent,
            jax=elements.Config(**config.jax, profiler=False),
            **{name: config[name] for name in ("logdir", "seed", "batch_size", "batch_length", "report_length")},
            **{name: config[name] for name in ("replay_context", "replica", "replicas")},
        ),
    )


class Update:
    """One update on a random batch, again and again."""

    def __init__(self, spec: dict[str, Any], folder: str) -> None:
        config = configure(spec, folder)
        self.agent = make_agent(config, Environment(spec, []))
        lead, rng = (config.batch_size, config.batch_length + config.replay_context), np.random.default_rng(0)
        batch = self.agent._zeros(self.agent.spaces, lead)
        batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
        batch["action"] = rng.uniform(-1, 1, batch["action"].shape).astype(np.float32)
        batch["reward"] = rng.uniform(0, 1, lead).astype(np.float32)
        stream = iter(self.agent.stream(itertools.repeat(batch)))
        self.batch, self.carry = next(stream), self.agent.init_train(config.batch_size)
        self.seconds(1)

    def seconds(self, calls: int) -> float:
        """Of one of `calls` updates in a row."""
        start = time.perf_counter()
        for _ in range(calls):
            self.carry, *_ = self.agent.train(self.carry, dict(self.batch))
        jax.block_until_ready(self.agent.params)
        return (time.perf_counter() - start) / calls


def learn(spec: dict[str, Any], folder: str) -> int:
    """A run to the last of the wanted evaluations; tables go to `spec["folder"]`. The number of updates."""
    start, updates, done = time.perf_counter(), 0, 0
    config = configure(spec, folder)
    env = program.wrap_env(Environment(spec, spec["episode_seeds"]), config)
    agent, replay = make_agent(config, env), program.make_replay(config, "replay")
    batch_steps = config.batch_size * config.batch_length
    should_train = elements.when.Ratio(config.run.train_ratio / batch_steps)
    stream, carry = (
        iter(agent.stream(program.make_stream(config, replay, "train"))),
        agent.init_train(config.batch_size),
    )
    scores, decisions = Scores(), elements.Counter()

    def train(step: dict[str, Any], worker: int) -> None:
        nonlocal carry, updates
        decisions.increment(0 if step["is_first"] else 1)
        if len(replay) < batch_steps:
            return
        for _ in range(should_train(decisions)):
            carry, outs, _ = agent.train(carry, next(stream))
            updates += 1
            if "replay" in outs:
                replay.update(outs["replay"])

    driver = embodied.Driver([lambda: env], parallel=False)
    for callback in (replay.add, scores, train):
        driver.on_step(callback)
    driver.reset(agent.init_policy)
    repeat, wanted = spec["environment"]["action_repeat"], dict(spec["evaluation_seeds"])
    played, evaluated = (table(Path(spec["folder"]) / name, columns) for name, columns in spec["tables"].items())
    while wanted:
        driver(lambda *arguments: agent.policy(*arguments, mode="train"), steps=1)
        frame, seconds = int(decisions) * repeat, f"{time.perf_counter() - start:.1f}"
        for episode in range(done, len(scores.episodes)):
            played.writerow((frame, *scores.episodes[episode], episode, seconds))
        done = len(scores.episodes)
        if seeds := wanted.pop(str(frame), None):
            returns, successes = evaluate(agent, config, spec, seeds)
            evaluated.writerow((frame, np.mean(returns), np.mean(successes), len(seeds), seconds))
    return updates


def table(path: Path, columns: Sequence[str]) -> Any:
    """A writer of rows that are on disk at once."""
    writer = csv.writer(open(path, "w", buffering=1, newline=""))  # noqa: SIM115, open as long as the process lives
    writer.writerow(columns)
    return writer


def evaluate(agent: Any, config: Any, spec: dict[str, Any], seeds: Sequence[int]) -> Any:
    """Returns and successes of one episode for each seed."""
    scores, env = Scores(), program.wrap_env(Environment(spec, seeds), config)
    driver = embodied.Driver([lambda: env], parallel=False)
    driver.on_step(scores)
    driver.reset(agent.init_policy)
    driver(lambda *arguments: agent.policy(*arguments, mode="eval"), episodes=len(seeds))
    return zip(*scores.episodes, strict=True)


def main() -> None:
    made: Update | None = None
    with tempfile.TemporaryDirectory() as folder:

        def handle(request: dict[str, Any]) -> dict[str, Any]:
            nonlocal made
            if request["do"] == "learn":
                use_cores(request["spec"]["threads"])
                return {"updates": learn(request["spec"], folder)}
            if request["do"] == "make":
                threads = use_cores(request["spec"]["threads"])
                made = Update(request["spec"], folder)
                return {"threads": threads}
            assert made is not None, "nothing was made yet"
            return {"seconds": made.seconds(request["calls"])}

        answer(handle)


if __name__ == "__main__":
    main()
