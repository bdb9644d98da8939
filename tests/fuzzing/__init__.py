"""Bad inputs and damaged files by the hundred, drawn from a seed: what `tests/test_fuzz.py` tries.

    scene = make_scene(folder, run)
    for case in cases(scene, random.Random(0), each=1): complaint = judge(case)

A case is handled if it ends soon in a result or in one line that says what is wrong; no stored file is ever a program.
A scene is one of each kind of stored thing, as small as they get.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tiny import tiny

import envs
from fuzzing import stored, typed
from fuzzing.case import Case, Scene, judge, pretraining
from mbrl.build import make_onestep
from mbrl.experiment.settings import load
from mbrl.pretrain import pretrain
from world_model import IVideoGPT
from world_model.api import Episode
from world_model.data import write_shard

__all__ = ["Case", "Scene", "cases", "judge", "make_scene", "noise"]


def make_scene(root: Path, run: Path) -> Scene:
    """In a new folder; `run` is copied."""
    folders = (root / name for name in ("model", "onestep", "data", "pretraining", "empty"))
    scene = Scene(root / "runs" / run.relative_to(run.parents[3]), *folders)
    stored.copy(run, scene.run)
    (scene.run / "sweep.log").write_text("error: x\n")
    of_recordings = ("image_size=64", "world_model.tokenizer.resolution=64")  # the size of their frames
    world = load(tiny(root, *of_recordings)).world_model
    torch.manual_seed(0)
    IVideoGPT(world.tokenizer, world.transformer, 2).save_pretrained(scene.model)
    (scene.model / "pretraining.json").write_text('{"data": "x", "held_out_every": 20}\n')
    settings = load(tiny(root, "world_model.kind=onestep", *of_recordings))
    make_onestep(settings, envs.make("toy/reach"), torch.device("cpu")).save_pretrained(scene.onestep)
    noise(scene.data)
    scene.empty.mkdir()
    pretrain.main(pretraining(scene, out=scene.pretraining))
    return scene


def noise(folder: Path) -> None:
    """Twenty recordings of it, in a new folder."""
    folder.mkdir()
    generator, still = np.random.default_rng(0), (np.zeros((8, 2), np.float32), np.zeros(8, np.float32))
    clips = [Episode(generator.integers(0, 256, (9, 3, 64, 64), np.uint8), *still) for _ in range(20)]
    write_shard(folder, "noise", clips, "noise")


def cases(scene: Scene, generator: random.Random, each: int) -> Iterator[Case]:
    """About 750 with each=1 and 3,000 with each=8; from there on every key has had all its values."""
    yield from typed.numbers(generator, 2 * each)
    yield from typed.lines(generator, 15 * each)
    yield from typed.large()
    anywhere = list(typed.paths(scene))
    yield from generator.sample(anywhere, min(80 * each, len(anywhere)))
    yield from stored.of_a_run(scene, generator, 3 * each)
    yield from stored.restarts(scene, generator, 12 * each)
    yield from stored.of_models(scene, generator, 4 * each)
    yield from stored.of_recordings(scene, generator, 4 * each)
    yield from stored.of_others(generator, 6 * each)
    yield from stored.names(generator, 2 * each)
