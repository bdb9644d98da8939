"""Our own speed: the cost of each part of the MBPO loop at the sizes of a preset, and its share of a whole run.

The parts are timed one by one on random images (their cost does not depend on what they show), then multiplied by
how often the preset's schedule calls for them. Logging, videos and checkpoints are left out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from agents import BehaviourCloner
from benchmarks import measure
from benchmarks.measure import Limits, Spread
from benchmarks.table import duration, number, table
from mbrl.build import make_agent, make_buffer, make_env, make_ivideogpt
from mbrl.experiment.settings import Settings
from mbrl.rollout import dream, to_clips, to_float
from world_model import Episode

EPISODES = 10  # in the replay that is sampled
BATCH, CLIPS, FRAMES = 256, 16, 12  # of the two rows about sampling
TRANSITIONS, SEGMENTS = f"sampling {BATCH} transitions", f"sampling {CLIPS} clips of {FRAMES}"


class Row(NamedTuple):
    """One part: what it costs, and how often it is done."""

    name: str
    unit: str  # what a call makes `units` of
    units: float
    seconds: Spread
    floor_s: float | None  # see measure.floor; None where nothing is counted

    @property
    def rate(self) -> float:
        return self.units / self.seconds.median

    def as_dict(self) -> dict[str, Any]:
        seconds = self.seconds._asdict()
        return {"unit": self.unit, "units_a_call": self.units, "seconds": seconds, "floor_s": self.floor_s}


def random_episode(rng: np.random.Generator, decisions: int, size: int, action_dim: int) -> Episode:
    return Episode(
        rng.integers(0, 256, (decisions + 1, 3, size, size), np.uint8),
        rng.uniform(-1, 1, (decisions, action_dim)).astype(np.float32),
        rng.uniform(0, 1, decisions).astype(np.float32),
        terminated=False,
    )


class Parts:
    """Environment, agent, world model and replay of a preset, with one callable for each part of the loop."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        s = settings
        self.env = make_env(s)
        action_dim = self.env.action_space.shape[0]
        self.agent = make_agent(s, self.env, device)
        self.world = make_ivideogpt(s, self.env, device)
        rng = np.random.default_rng(0)
        length = max(self.env.episode_decisions, s.world_model.learner.tokenizer_span, FRAMES)
        self.replay = make_buffer(s, "replay", action_dim, EPISODES * length, length)
        for _ in range(EPISODES):
            self.replay.add(random_episode(rng, length, s.image_size, action_dim))
        learner = s.world_model.learner
        self.obs, _ = self.env.reset(seed=0)
        self.action = rng.uniform(-1, 1, action_dim).astype(np.float32)
        self.batch = self.replay.sample(s.batch_size)
        demonstrated = self.replay.sample(s.drqv2.bc_batch_size)
        if isinstance(self.agent, BehaviourCloner):
            self.agent.demonstrations = lambda _: demonstrated
        self.clips = to_clips(self.replay.sample_segments(learner.batch_size, learner.segment_length), device)
        segments = self.replay.sample_segments(learner.tokenizer_batch_size, learner.tokenizer_span)
        self.frames = to_float(segments.frames.to(device))
        self.starts = self.replay.sample_starts(s.rollout_batch)
        self.generator = torch.Generator(device).manual_seed(0)
        # As in the middle of a run: the tokenizer uses its codes.
        self.world.updates["tokenizer"] = max(self.world.updates["tokenizer"], learner.quantize_after)

    def decide(self) -> None:
        """One decision of the environment, its image included; a new episode where one ended."""
        *_, terminated, truncated, _ = self.env.step(self.action)
        if terminated or truncated:
            self.env.reset()

    def choose(self) -> None:
        self.agent.act(torch.from_numpy(self.obs)[None], 0, eval_mode=False).cpu()

    def learn_to_act(self) -> None:
        self.agent.update(self.batch, 0)

    def learn_tokens(self) -> None:
        self.world.update(None, self.frames)

    def learn_dynamics(self) -> None:
        self.world.update(self.clips, None)

    def dream(self) -> None:
        s = self.settings
        dream(
            self.world,
            self.agent,
            self.starts,
            s.rollout_horizon,
            0,
            temperature=s.rollout_temperature,
            top_k=s.rollout_top_k,
            generator=self.generator,
        )


def measure_parts(parts: Parts, repeats: int, at_least_s: float, limits: Limits) -> dict[str, Row]:
    """Every row of the table, by the part's name."""
    s, device = parts.settings, parts.device
    learned = {name: measure.update_bytes(weights) for name, weights in parts.world.parameters.items()}
    agent = measure.update_bytes([v for k, v in parts.agent.weights().items() if not k.startswith("critic_target.")])
    precision = "fp32" if parts.world.dtype is None else "bf16"
    imagined_frames = s.rollout_batch * s.rollout_horizon
    dream_bytes = measure.dream_bytes(parts.world.model, s.rollout_batch, s.rollout_horizon, precision)
    # name -> call, unit, how many, unavoidable bytes (None: no floor)
    todo: dict[str, tuple[Callable[[], Any], str, float, int | None]] = {
        "environment": (parts.decide, "frames", s.action_repeat, None),
        "choosing an action": (parts.choose, "decisions", 1, None),
        "agent update": (parts.learn_to_act, "updates", 1, agent),
        "tokenizer update": (parts.learn_tokens, "updates", 1, learned["tokenizer"]),
        "transformer update": (parts.learn_dynamics, "updates", 1, learned["transformer"]),
        "dream": (parts.dream, "imagined frames", imagined_frames, dream_bytes),
        TRANSITIONS: (lambda: parts.replay.sample(BATCH), "transitions", BATCH, None),
        SEGMENTS: (lambda: parts.replay.sample_segments(CLIPS, FRAMES), "clips", CLIPS, None),
    }
    rows = {}
    for name, (call, unit, count, traffic) in todo.items():
        seconds = measure.repeated(call, device, repeats, at_least_s)
        lower = None
        if traffic is not None:
            lower = measure.floor(measure.operations(call), traffic, limits, precision)
        rows[name] = Row(name, unit, count, seconds, lower)
        print(f"{name}: {duration(seconds.median)}", flush=True)
    return rows


def loop(settings: Settings, rows: dict[str, Row], episode_decisions: int) -> dict[str, float]:
    """Seconds of each part of a whole MBPO run: the medians times how often the settings' schedule asks for them."""
    s, learner = settings, settings.world_model.learner
    cost = {name: row.seconds.median for name, row in rows.items()}
    decision = cost["environment"] + cost["choosing an action"]
    transition = cost[TRANSITIONS] / BATCH
    frame = cost[SEGMENTS] / (CLIPS * FRAMES)
    update = cost["agent update"] + s.batch_size * transition
    tokenizer = cost["tokenizer update"] + learner.tokenizer_batch_size * learner.tokenizer_span * frame
    transformer = cost["transformer update"] + learner.batch_size * learner.segment_length * frame

    learning = s.num_train_frames - s.num_seed_frames
    evaluated = learning / s.eval_every_frames * s.num_eval_episodes * episode_decisions
    return {
        "act": s.num_train_frames / s.action_repeat * decision,
        "learn to act": learning / s.action_repeat * s.agent_updates_per_decision * update,
        "tokenizer": (learning / s.update_tokenizer_every_frames + s.initial_model_updates) * tokenizer,
        "transformer": (learning / s.update_transformer_every_frames + s.initial_model_updates) * transformer,
        "dream": (learning / s.rollout_every_frames + s.initial_rollouts / s.rollout_batch) * cost["dream"],
        "evaluate": evaluated * decision,
    }


def report(settings: Settings, rows: dict[str, Row], shares: dict[str, float]) -> str:
    """The two tables."""
    cells = []
    for row in rows.values():
        s = row.seconds
        lower = "" if row.floor_s is None else f"{s.median / row.floor_s:.1f}"
        spread = f"{duration(s.low)} - {duration(s.high)}"
        cells.append([row.name, duration(s.median), spread, str(s.repeats), f"{number(row.rate)} {row.unit}/s", lower])
    first = table(("part", "one call", "range", "n", "rate", "times its floor"), cells)
    total = sum(shares.values())
    parts = [[name, duration(seconds), f"{seconds / total:.0%}"] for name, seconds in shares.items()]
    second = table(("a whole run", "time", "share"), [*parts, ["together", duration(total), "100%"]])
    frames = f"{settings.num_train_frames:,} frames of {settings.task}, preset={settings.preset}"
    return f"{first}\n\nMBPO, {frames}, added up from the medians:\n\n{second}"
