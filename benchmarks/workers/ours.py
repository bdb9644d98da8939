"""Our side: python -m benchmarks.workers.ours, requests on standard input (`pipe.py`)."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import envs
from agents import DreamerV3, DrQv2, StreamBatch, TransitionBatch
from agents.networks import random_shift
from benchmarks.workers.lines import use_cores
from benchmarks.workers.pipe import serve
from mbrl.build import environment_keywords, make_buffer
from mbrl.experiment.command import keep_memory
from mbrl.experiment.settings import Settings, load
from mbrl.rollout import to_clips, to_float
from world_model import Clips, Episode, IVideoGPT, imagine
from world_model.ivideogpt.learner import WorldModelLearner


def read(spec: dict[str, Any], name: str) -> dict[str, Tensor]:
    return load_file(Path(spec["folder"]) / f"{name}.safetensors")


def world_of(spec: dict[str, Any], settings: Settings) -> WorldModelLearner:
    """The world model of the inputs, without dropout, which no two programs could draw alike."""
    world = settings.world_model
    model = IVideoGPT.from_pretrained(
        Path(spec["folder"]) / "weights", spec["action_dim"], world.tokenizer.context_length
    )
    for module in model.modules():
        if hasattr(module, "dropout"):
            vars(module)["dropout"] = 0.0
    learner = dataclasses.replace(world.learner, precision=spec["precision"], perceptual_weights="none")
    return WorldModelLearner(model.to(spec["device"]), learner, seed=0)


class Dreams:
    """A rollout under given actions."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.settings, self.given = load(spec["overrides"]), spec["given"]
        self.world = world_of(spec, self.settings)
        data = {name: value.to(spec["device"]) for name, value in read(spec, "dream").items()}
        self.stack, self.actions, self.forced = data["stack"], data["actions"], data["forced"]
        self.generator = torch.Generator(spec["device"]).manual_seed(0)

    def dream(self, temperature: float) -> Any:
        s = self.settings
        return imagine(
            self.world,
            to_float(self.stack),
            self.actions,
            self.actions.shape[1],
            temperature=temperature,
            top_k=s.rollout_top_k,
            generator=self.generator,
        )

    def outputs(self) -> dict[str, Tensor]:
        """A greedy dream. In bf16 near ties fall otherwise; for that the tokens are given."""
        if not self.given:
            dream = self.dream(temperature=0)
            return {"tokens": dream.tokens, "frames": dream.frames.float(), "rewards": dream.rewards.float()}
        scores, first = [], self.world.model.layout.first_dynamics_id
        given = iter((self.forced - first).flatten(1).T)  # one (B,) a token

        def sample(logits: Tensor, *_: object) -> Tensor:
            scores.append(logits.float())
            return next(given)[:, None]

        module: Any = importlib.import_module("world_model.ivideogpt.rollout")
        original, module.sample = module.sample, sample
        dream = self.dream(temperature=0)
        module.sample = original
        logits = torch.stack(scores, dim=1)  # (B, H n, codes)
        return {"logits": logits[:, :, :64], "frames": dream.frames.float(), "rewards": dream.rewards.float()}

    def run(self) -> object:
        return self.dream(self.settings.rollout_temperature)


class Update:
    """An update of one part of the world model."""

    part = ""
    names: dict[str, str] = {}  # as compared -> as in our metrics

    def __init__(self, spec: dict[str, Any]) -> None:
        settings = load(spec["overrides"])
        self.world = world_of(spec, settings)
        data = read(spec, "clips")
        self.segments = Clips(data["frames"], data["actions"], data["rewards"])
        self.device = torch.device(spec["device"])
        chosen = data["chosen"].to(self.device)
        self.world._choose = lambda clips, *_: chosen.expand(clips, -1)  # type: ignore[method-assign]

    def outputs(self) -> dict[str, Tensor]:
        """Of two updates in a row, so that the step between them is compared as well."""
        updates = [self.run() for _ in range(2)]
        return {name: torch.stack([u[ours].float() for u in updates]) for name, ours in self.names.items()}

    def run(self) -> dict[str, Tensor]:
        clips = to_clips(self.segments, self.device)
        if self.part == "tokenizer":
            return self.world.update(None, clips.frames)
        return self.world.update(clips, None)


class TokenizerUpdate(Update):
    part = "tokenizer"
    names = {
        "l1": "tokenizer_pixel",
        "context_l1": "tokenizer_context_pixel",
        "commit": "tokenizer_commit",
        "dynamics_commit": "tokenizer_dynamics_commit",
    }


class TransformerUpdate(Update):
    part = "transformer"
    names = {"cross_entropy": "transformer_ce_loss", "reward": "reward_loss", "grad_norm": "transformer_grad_norm"}


class AgentUpdate:
    def __init__(self, spec: dict[str, Any]) -> None:
        config, data = load(spec["overrides"]).drqv2, read(spec, "agent")
        config = dataclasses.replace(config, precision=spec["precision"])
        self.batch = TransitionBatch(*(data[f"batch.{name}"] for name in TransitionBatch._fields))
        shape = self.batch.obs.shape
        self.agent = DrQv2((shape[1], shape[2], shape[3]), self.batch.action.shape[1], config, spec["device"], seed=0)
        weights = {name.removeprefix("agent."): v for name, v in data.items() if name.startswith("agent.")}
        self.agent.load_weights(weights)
        self.shifts = data["shifts"]

    def outputs(self) -> dict[str, Tensor]:
        """One update with given shifts and without exploration."""
        agent, shifts, pad = self.agent, iter(self.shifts), self.agent.config.random_shift
        agent._stddev, stddev = (lambda decision: 0.0), agent._stddev
        agent._augment = lambda obs: random_shift(obs, next(shifts).to(obs.device), pad)  # type: ignore[method-assign]
        metrics = agent.update(self.batch, decision=0)
        del agent._augment
        agent._stddev = stddev
        return {name: metrics[name] for name in ("critic_loss", "actor_loss", "critic_target_q", "batch_reward")}

    def run(self) -> object:
        return self.agent.update(self.batch, decision=0)


class DreamerUpdate:
    """One update of DreamerV3 on random windows; the official side is `dreamerv3.py`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        use_cores(spec["threads"])
        settings = load(spec["overrides"])
        c, side = settings.dreamerv3, settings.image_size
        env = envs.make(settings.task, **environment_keywords(settings))
        (action_dim,) = env.action_space.shape
        env.close()
        lead, generator = (c.batch_size, 1 + c.batch_length), torch.Generator().manual_seed(0)
        never, slots = torch.zeros(lead, dtype=torch.bool), torch.arange(lead[0] * lead[1]).view(lead)
        self.batch = StreamBatch(
            torch.randint(256, (*lead, 3, side, side), dtype=torch.uint8, generator=generator),
            torch.rand(*lead, action_dim, generator=generator) * 2 - 1,
            torch.rand(*lead, generator=generator),
            *(never, never, never, slots),
        )
        self.agent = DreamerV3((9, side, side), action_dim, c, spec["device"], seed=0)
        self.agent.make_memory(slots.numel())
        self.run()

    def outputs(self) -> dict[str, Tensor]:
        """Not compared here: tests/test_dreamer_golden.py holds whole updates against the official code."""
        return {}

    def run(self) -> object:
        return self.agent.update(self.batch, decision=0)


class Replay:
    """Sampling from the episodes of the inputs."""

    def __init__(self, spec: dict[str, Any]) -> None:
        s = load(spec["overrides"])
        files = sorted((Path(spec["folder"]) / "episodes").glob("*.npz"))
        episodes = []
        for file in files:
            with np.load(file) as saved:  # stacks and a first step without action, as the official code stores them
                frames = np.ascontiguousarray(saved["observation"][:, -3:])
                episodes.append(Episode(frames, saved["action"][1:], saved["reward"][1:, 0], terminated=False))
        length, action_dim = episodes[0].actions.shape
        self.buffer = make_buffer(s, "replay", action_dim, length * len(episodes), length)
        for episode in episodes:
            self.buffer.add(episode)
        self.batch, self.length = spec["batch"], s.world_model.learner.segment_length


class Transitions(Replay):
    def run(self) -> TransitionBatch:
        return self.buffer.sample(self.batch)

    def outputs(self) -> dict[str, Tensor]:
        return self.run()._asdict()


class Segments(Replay):
    def run(self) -> Clips:
        return self.buffer.sample_segments(self.batch, self.length)

    def outputs(self) -> dict[str, Tensor]:
        return self.run()._asdict()


class Decisions:
    """What is compared of an environment."""

    actions: np.ndarray
    quality: str

    def run(self) -> tuple[np.ndarray, float]:
        """One decision: the stack of images, and what was earned."""
        raise NotImplementedError

    def outputs(self) -> dict[str, Tensor]:
        """Rewards; and the last stack where the images are meant to be the same."""
        steps = [self.run() for _ in range(len(self.actions))]
        outputs = {"rewards": torch.tensor([reward for _, reward in steps])}
        if self.quality == "paper":
            outputs["images"] = torch.from_numpy(steps[-1][0])
        return outputs


class Environment(Decisions):
    """A decision of the environment with its image."""

    def __init__(self, spec: dict[str, Any]) -> None:
        settings = load([*spec["overrides"], f"render_quality={spec['quality']}"])
        self.env = envs.make(settings.task, **environment_keywords(settings))
        self.quality, self.actions, self.step = spec["quality"], read(spec, "actions")["actions"].numpy(), 0
        self.env.reset(seed=0)

    def run(self) -> tuple[np.ndarray, float]:
        if not self.env.decisions_left:
            self.env.reset()
        obs, reward, *_ = self.env.step(self.actions[self.step % len(self.actions)])
        self.step += 1
        return obs, reward


if __name__ == "__main__":
    keep_memory()  # as every run does
    serve(
        {
            "dream": Dreams,
            "tokenizer": TokenizerUpdate,
            "transformer": TransformerUpdate,
            "agent": AgentUpdate,
            "dreamerv3": DreamerUpdate,
            "transitions": Transitions,
            "clips": Segments,
            "environment": Environment,
        }
    )
