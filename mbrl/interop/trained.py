"""A run that has weights, with all that acting and dreaming as it does needs (`mbrl/interop` has the bare policy).

A published run needs no more of its checkpoint than `agent.safetensors`. The world model is the checkpoint's, or else
the one in `world_model/` (the official layout).
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch

import envs
from mbrl.build import find_pretrained, make_ivideogpt, make_world
from mbrl.experiment.checkpoints import Checkpoint
from mbrl.experiment.identity import with_defaults
from mbrl.experiment.run import CHECKPOINTS
from mbrl.experiment.settings import Settings, UserError, build
from mbrl.interop import Policy, load
from world_model import WorldModel
from world_model.hub import fetch, local
from world_model.ivideogpt.weights import read_heads
from world_model.onestep import OneStep, OneStepWorld, holds_onestep

AGENT, WORLD = "agent.safetensors", "world_model.safetensors"  # parts of a checkpoint
LEFT = "world_model"  # the folder that a finished run leaves its world model in


class Trained(NamedTuple):
    policy: Policy
    settings: Settings


def open_run(name: str, **changed: Any) -> Trained:
    """The run in a folder, with other values of keys such as `device`.

    Raises UserError: there is none, it has no weights, or this version cannot read it.
    """
    folder = local(name) or fetch(name)
    if folder is None:
        raise UserError(f"run={name}: there is no such folder; a run's is runs/<task>/<agent>/<seed>")
    policy = load(folder, changed.get("device", "cpu"))
    return Trained(policy, build(Settings, with_defaults(policy.config) | changed))


def runs_with_weights(task: str, root: Path) -> list[Path]:
    """Run folders of a task below `root` (runs, runs/published), those of MBPO first."""
    found = {path.parents[2] for path in root.glob(f"{task}/*/*/{CHECKPOINTS}/*/{AGENT}")}
    return sorted(found, key=lambda path: (not path.parent.name.startswith("mbpo"), path))


def world_of(
    settings: Settings, env: envs.PixelEnv, device: torch.device, model: str, run: Trained | None
) -> tuple[WorldModel, str]:
    """A world model to dream in, and what it is called: `model`, or else the run's, or else that of the settings.

    Raises UserError, WeightsError: there is none, or it does not fit the task.
    """
    if model != "none":
        return load_world(find_pretrained(model, "model"), settings, env, device), model
    if run is not None and (own := world_of_run(run.policy.folder, run.policy.checkpoint, settings, env, device)):
        return own
    kind, pretrained = settings.world_model.kind, settings.world_model.pretrained
    if kind == "ivideogpt" and pretrained != "none":
        return load_world(find_pretrained(pretrained), settings, env, device), pretrained
    return make_world(settings, env, device), "the simulator" if kind == "simulator" else "random weights"


def world_of_run(
    folder: Path, saved: Checkpoint, settings: Settings, env: envs.PixelEnv, device: torch.device
) -> tuple[WorldModel, str] | None:
    """The world model of a run's checkpoint, or else the one that the run has left, and which; None without one."""
    if (saved.path / WORLD).exists():
        world = make_world(settings, env, device)
        with saved.restoring():
            world.load_weights(saved.load(WORLD, device))
        return world, str(saved.path)
    if (left := folder / LEFT).is_dir():
        return load_world(left, settings, env, device), str(left)
    return None


def load_world(folder: Path, settings: Settings, env: envs.PixelEnv, device: torch.device) -> WorldModel:
    """The world model that was saved in `folder`, of whichever kind. Raises UserError, WeightsError."""
    (action_dim,) = env.action_space.shape
    if holds_onestep(folder):
        network = OneStep.from_pretrained(folder)
        known, resolution = network.action_dim, network.resolution
        world: WorldModel = OneStepWorld(network, resolution, device)
    else:
        stored = read_heads(folder)
        known, resolution = stored.action_dim, settings.image_size
        part = dataclasses.replace(
            settings.world_model,
            kind="ivideogpt",
            pretrained=str(folder),
            heads=stored.heads,  # type: ignore[arg-type]
        )
        world = make_ivideogpt(dataclasses.replace(settings, world_model=part), env, device)
    if known != action_dim:
        raise UserError(f"{folder} knows actions of {known} numbers, {settings.task} has {action_dim}: train one there")
    if resolution != settings.image_size:
        raise UserError(f"{folder} is for {resolution} pixels; image_size={settings.image_size}")
    return world
