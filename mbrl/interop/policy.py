"""The policy and the world model of a run, with torch and the run folder alone.

    policy = load("runs/coffee-push/mbpo/1")
    action = policy.act(obs)                                  # uint8 (9, 64, 64) -> float32 (4,)
    dream = policy.world_model.imagine(context, actions, 10)  # see world_model/api.py

No simulator is imported, and neither Hydra nor a logger.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import AGENTS, Agent
from mbrl.experiment import checkpoints
from mbrl.predict.models import Predictor, load_predictor
from world_model.hub import fetch, local
from world_model.precision import decided
from world_model.schema import UserError, build

# The last layers of the actors, whose sizes say how many numbers an action has.
ACTION_BIAS = {"drqv2": "actor.policy.output.bias", "dreamerv3": "behaviour.actor.mean.bias"}


class Policy:
    """The policy of a run's newest checkpoint, and its world model. Nothing of the folder is changed.

    Args:
        folder: `runs/<task>/<agent>/<seed>`; or where `make publish` pushed one to, `<owner>/<name>@<revision>`.
        device: where the networks live.
    Raises:
        UserError: there is no such run, it has no checkpoint yet, or its agent has nothing to load.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        self.folder = local(folder) or fetch(str(folder)) or Path(folder)
        self.device = torch.device(device)
        saved = checkpoints.latest(self.folder / "checkpoints")
        if saved is None:
            raise UserError(f"{self.folder} has no checkpoints: it is no run folder, or has not trained long enough")
        self.checkpoint, self.frame = saved, saved.frame  # simulator frames that it had learned from
        with saved.restoring():
            self.config = _config(self.folder, saved)
            self.agent = _agent(self.config, saved.load("agent.safetensors", self.device), self.device)
        self._begun = 0  # episodes under way side by side

    def begin_episode(self) -> None:
        """Call it before the first `act` of an episode: an agent with a memory forgets the one before."""
        self._begun = 0

    def act(self, obs: np.ndarray | Tensor) -> np.ndarray:
        """What the policy does, without exploring.

        Args:
            obs: uint8 (C, H, W), the newest stacked frames, oldest first; or (B, C, H, W) of episodes side by side.
        Returns:
            float32 (A,) or (B, A), in [-1, 1].
        """
        images = torch.as_tensor(obs)
        rows = images if images.ndim == 4 else images[None]
        if self._begun != len(rows):
            self.agent.begin_episode(eval_mode=True)
            self._begun = len(rows)
        decision = self.frame // int(self.config["action_repeat"])
        actions = self.agent.act(rows.to(self.device), decision, eval_mode=True).float().cpu().numpy()
        return actions if images.ndim == 4 else actions[0]

    @property
    def world_model(self) -> Any:
        """The world model, of whichever kind (`world_model.api`)."""
        return self.predictor.world

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The same with what it needs to know. Raises UserError if the run has left none."""
        folder = self.folder / "world_model"
        if not folder.is_dir():
            raise UserError(f"{folder} is not there: runs with a world model leave it when they end")
        return load_predictor(folder, None, "auto", self.device)


def load(folder: str | Path, device: torch.device | str = "cpu") -> Policy:
    """The policy of the run in `folder`; see `Policy`."""
    return Policy(folder, device)


def _config(folder: Path, saved: checkpoints.Checkpoint) -> dict[str, Any]:
    """Every key of the run, nested; of a published one from config.yaml, which takes what training takes."""
    if (saved.path / "run.json").exists():
        return dict(saved.load("run.json")["config"])
    from mbrl.experiment.stored_config import read_config

    return read_config(folder / "config.yaml")


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run of another version with the keys of this one. Raises UserError where Hydra is not there."""
    try:
        from mbrl.experiment.identity import with_defaults
    except ModuleNotFoundError as error:
        raise UserError(
            "this run was made by another version: what its config lacks stands in configs/, and to read them takes "
            "pip install 'ivideogpt-mbrl[train]'"
        ) from error
    return with_defaults(config)


def _agent(config: Mapping[str, Any], weights: dict[str, Tensor], device: torch.device) -> Agent:
    """The agent of a run's config with its weights. Raises UserError, `agents.StateMismatch`."""
    name = config["agent"]
    if name not in AGENTS:
        raise UserError(f"agent={name} has learned nothing that could be loaded")
    kind = AGENTS[name]
    values = config[kind.section]
    if {field.name for field in dataclasses.fields(kind.config)} != values.keys():
        values = _completed(config)[kind.section]
    shape = (3 * config["frame_stack"], config["image_size"], config["image_size"])
    action_dim = len(weights[ACTION_BIAS[kind.section]])
    settings = build(kind.config, values, f"{kind.section}.")
    agent: Agent = kind.agent(shape, action_dim, decided(settings, device), device, 0)
    agent.load_weights(weights)
    return agent
