"""The official side: python -m benchmarks.workers.peer <checkout of thuml/iVideoGPT>, requests on standard input.

Runs in an environment of its own (docs/performance.md has its versions) and calls the official classes as its training
script does: `VideoPredictor.rollout` and `VideoPredictor.train`, `DrQV2Agent.update`, the replay loaders. What is
changed, and why:

- packages that these classes import and never call (torchvision, cv2, hydra, omegaconf, ...) are stood in for by empty
  modules where they are missing;
- LPIPS is a constant zero: its weights cannot be had (ours trains without it as well);
- dropout is 0, so that losses can be compared;
- `torch.cuda.amp.autocast` means the device and the precision that are measured;
- the random weights and data are ours, the same numbers that our side loads.
"""

import functools
import importlib
import importlib.machinery
import importlib.util
import json
import random
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.workers.pipe import serve

UNUSED = ("torchvision", "cv2", "hydra", "omegaconf", "tqdm", "requests")
END_TOKEN = 50256  # of the official configs/llama: outside the vocabulary, so that nothing ends a rollout


class StandIn(types.ModuleType):
    """A module in which every name is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def official(checkout: Path, module: str) -> Any:
    """A module of the official mbrl/ folder, which its scripts import as top-level modules."""
    for name in ("transformers", "diffusers", "accelerate"):
        importlib.import_module(name)  # before the stand-ins, which they would ask for their versions
    for name in UNUSED:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = StandIn(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.path[:0] = [str(checkout / "mbrl"), str(checkout)]
    return importlib.import_module(module)


class NoLPIPS(nn.Module):
    def forward(self, images: Tensor, others: Tensor, weight: Any = None) -> Tensor:
        return images.new_zeros(len(images))


def predictor_of(checkout: Path, spec: dict[str, Any]) -> Any:
    """The official world model with its optimizers, settings as in its mbrl/cfgs/mbpo_config.yaml."""
    module = official(checkout, "video_predictor")
    module.LPIPS = NoLPIPS
    autocast = functools.partial(torch.autocast, spec["device"], enabled=spec["precision"] == "bf16")
    torch.cuda.amp.autocast = autocast  # type: ignore[assignment, misc]
    torch.backends.cudnn.benchmark = True
    weights = Path(spec["folder"]) / "weights"
    llama = weights / "llama" / "config.json"  # the folder's name tells the official code the kind of model
    llama.parent.mkdir(exist_ok=True)
    config = json.loads((weights / "transformer" / "config.json").read_text())
    llama.write_text(json.dumps(config | {"bos_token_id": END_TOKEN, "eos_token_id": END_TOKEN}))
    predictor = module.VideoPredictor(
        spec["device"],
        types.SimpleNamespace(
            vqgan_type="ctx_vqgan",
            load_pretrained_model=True,
            load_internal_llm=False,
            pretrained_model_name_or_path=str(weights / "tokenizer"),
            pretrained_transformer_path=str(weights / "transformer"),
            config_name=str(llama),
            llama_attn_drop=0.0,
            context_length=spec["context_length"],
            segment_length=spec["segment_length"],
            action_dim=spec["action_dim"],
            selected_params=False,
            symlog=True,
            embed_no_wd=True,
            max_target_frames=spec["sampled_future_frames"],
            max_grad_norm=1.0,
            reward_weight=1.0,
            tok_lr=1e-4,
            tok_wd=0.0,
            tok_beta1=0.9,
            tok_beta2=0.999,
            model_lr=1e-4,
            model_wd=0.0,
        ),
    )
    for part in predictor.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    return predictor


def read(spec: dict[str, Any], name: str) -> dict[str, Tensor]:
    return load_file(Path(spec["folder"]) / f"{name}.safetensors")


class Dreams:
    def __init__(self, checkout: Path, spec: dict[str, Any]) -> None:
        self.predictor, self.given = predictor_of(checkout, spec), spec["given"]
        tokenizer = self.predictor.tokenizer
        self.codes = slice(tokenizer.num_vq_embeddings, tokenizer.num_vq_embeddings + tokenizer.num_dyn_embeddings)
        data = {name: value.to(spec["device"]) for name, value in read(spec, "dream").items()}
        self.stack, self.actions, self.forced = data["stack"].flatten(1, 2), data["actions"], data["forced"]
        llm = self.predictor.model.llm
        self.generate, llm.generate = llm.generate, self._generate
        self.greedy, self.tokens, self.logits = False, [], []  # type: ignore[var-annotated]

    def _generate(self, **keywords: Any) -> Any:
        """The official call; greedy and with an eye on it while outputs are compared."""
        if not self.greedy:
            return self.generate(**keywords)
        made = self.generate(**keywords | {"do_sample": False, "logits_processor": [self._choose]})
        self.tokens.append(made.sequences[:, :-1])
        return made

    def _choose(self, drawn: Tensor, scores: Tensor) -> Tensor:
        """Dynamics tokens only, as ours, or the given ones."""
        allowed = torch.full_like(scores, -torch.inf)
        place = drawn.shape[1]
        if self.given and place < self.forced.shape[2]:
            self.logits.append(scores[:, self.codes].float())
            allowed.scatter_(1, self.forced[:, len(self.tokens), place, None], 0.0)
        else:
            allowed[:, self.codes] = scores[:, self.codes]
        return allowed

    def run(self) -> Any:
        return self.predictor.rollout(self.stack, lambda obs, step: self.actions[:, step], self.actions.shape[1])

    def outputs(self) -> dict[str, Tensor]:
        self.greedy = True
        observations, _, rewards = self.run()
        self.greedy = False
        outputs = {"frames": observations[:, 1:, -3:], "rewards": rewards[:, 1:, 0]}
        if self.given:
            return outputs | {"logits": torch.stack(self.logits, dim=1)[:, :, :64]}
        return outputs | {"tokens": torch.stack(self.tokens, dim=1)}


class Update:
    part = ""
    names: dict[str, str] = {}

    def __init__(self, checkout: Path, spec: dict[str, Any]) -> None:
        self.predictor, data = predictor_of(checkout, spec), read(spec, "clips")
        self.batch = (data["frames"], data["actions"], data["rewards"][..., None])

    def run(self) -> Any:
        torch.manual_seed(0)  # then it samples the future frames that `chosen` names to our side
        return self.predictor.train(
            self.batch, update_tokenizer=self.part == "tokenizer", update_model=self.part == "transformer"
        )

    def outputs(self) -> dict[str, Tensor]:
        updates = [self.run() for _ in range(2)]
        return {name: torch.tensor([u[theirs] for u in updates]) for name, theirs in self.names.items()}


class TokenizerUpdate(Update):
    part = "tokenizer"
    names = {
        "l1": "recon_loss",
        "context_l1": "ref_recon_loss",
        "commit": "commit_loss",
        "dynamics_commit": "dyna_commit_loss",
    }


class TransformerUpdate(Update):
    part = "transformer"
    names = {"cross_entropy": "ce_loss", "reward": "reward_loss", "grad_norm": "model_train/grad_norm"}


class AgentUpdate:
    # Ours -> theirs, inside one network.
    NAMES = {"trunk.linear": "trunk.0", "trunk.norm": "trunk.1", "hidden.0": "0", "hidden.2": "2", "output": "4"}

    def __init__(self, checkout: Path, spec: dict[str, Any]) -> None:
        module, data = official(checkout, "drqv2"), read(spec, "agent")
        torch.backends.cudnn.benchmark = True
        self.batch = [data[f"batch.{name}"] for name in ("obs", "action", "reward", "discount", "next_obs")]
        self.shifts, device = data["shifts"], spec["device"]
        self.agent = module.DrQV2Agent(
            tuple(self.batch[0].shape[1:]),
            tuple(self.batch[1].shape[1:]),
            device,
            lr=1e-4,
            feature_dim=50,
            hidden_dim=1024,
            critic_target_tau=0.01,
            num_expl_steps=2000,
            update_every_steps=1,
            stddev_schedule="linear(1.0,0.1,100000)",
            stddev_clip=0.3,
            use_tb=True,
            beta=0.0,
            delay_steps=1,
        )
        for network in ("encoder", "actor", "critic", "critic_target"):
            state = {}
            for name, value in data.items():
                if name.startswith(f"agent.{network}."):
                    name = name.removeprefix(f"agent.{network}.")
                    for ours, theirs in self.NAMES.items():
                        name = name.replace(ours, theirs)
                    state[name] = value
            getattr(self.agent, network).load_state_dict(state)

    def run(self) -> Any:
        return self.agent.update(iter([self.batch]), 0)

    def outputs(self) -> dict[str, Tensor]:
        agent, shifts, randint = self.agent, iter(self.shifts), torch.randint

        def given(*_: Any, size: Any, device: Any, dtype: Any) -> Tensor:
            return next(shifts).flip(1).view(size).to(device, dtype)  # (x, y) where ours has (row, column)

        agent.stddev_schedule, schedule = "0", agent.stddev_schedule
        torch.randint = given  # type: ignore[assignment]
        metrics = self.run()
        torch.randint = randint
        agent.stddev_schedule = schedule
        names = ("critic_loss", "actor_loss", "critic_target_q", "batch_reward")
        return {name: torch.tensor(metrics[name]) for name in names}


class Replay:
    """The official loader in this process, on its own files, warmed: every episode is read once before."""

    def __init__(self, checkout: Path, spec: dict[str, Any]) -> None:
        module = official(checkout, "replay_buffer")
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002, the official loader draws from it
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        self.batches = self.loader(module, spec)
        for _ in range(10):
            next(self.batches)

    def loader(self, module: Any, spec: dict[str, Any]) -> Iterator[Any]:
        raise NotImplementedError

    def run(self) -> Any:
        return next(self.batches)


class Transitions(Replay):
    def loader(self, module: Any, spec: dict[str, Any]) -> Iterator[Any]:
        episodes = Path(spec["folder"]) / "episodes"
        return iter(
            module.make_replay_loader(episodes, 1_000_000, spec["batch"], 0, True, spec["nstep"], spec["discount"])
        )

    def outputs(self) -> dict[str, Tensor]:
        return dict(zip(("obs", "action", "reward", "discount", "next_obs"), self.run(), strict=True))


class Segments(Replay):
    def loader(self, module: Any, spec: dict[str, Any]) -> Iterator[Any]:
        episodes = Path(spec["folder"]) / "episodes"
        return iter(
            module.make_segment_replay_loader(
                episodes, 1_000_000, spec["batch"], 0, True, spec["nstep"], spec["discount"], spec["segment_length"]
            )
        )

    def outputs(self) -> dict[str, Tensor]:
        frames, actions, rewards = self.run()
        return {"frames": frames, "actions": actions, "rewards": rewards[..., 0]}


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve()
    workloads: dict[str, Any] = {
        "dream": Dreams,
        "tokenizer": TokenizerUpdate,
        "transformer": TransformerUpdate,
        "agent": AgentUpdate,
        "transitions": Transitions,
        "clips": Segments,
    }
    serve({name: functools.partial(workload, root) for name, workload in workloads.items()})
