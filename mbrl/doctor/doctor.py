"""What this machine has, and what it lacks: `python -m mbrl.doctor [key=value ...]`.

Says which torch and which device a run would use, how fast an image is drawn, which versions are installed
and which optional weights were found. It changes nothing.
"""

import contextlib
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import envs
from envs.rendering import choose_backend
from mbrl.build import environment_keywords
from mbrl.experiment.provenance import provenance
from mbrl.experiment.settings import Settings, load, pick_device
from world_model.hub import local
from world_model.precision import computes_in_bf16

FRAMES = 10  # drawn to time one
TOKENIZER = "tokenizer/diffusion_pytorch_model.safetensors"
TRANSFORMER = "transformer/model.safetensors"
LPIPS_FILES = ("vgg16.pth", "lpips.pth")


def main(overrides: list[str]) -> None:
    """Print the report of what a run with these `key=value` overrides would find."""
    settings = load(overrides)
    for topic, lines in report(settings):
        for number, line in enumerate(lines):
            print(f"{topic if number == 0 else '':<10}{line}", flush=True)


def report(settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """(topic, lines) one after the other, the quick ones first."""
    yield "python", [f"{platform.python_version()} on {platform.platform()}"]
    yield "torch", _torch_lines()
    automatic = load(["preset=auto", f"device={settings.device}"]).preset
    yield "device", [f"{pick_device(settings.device)}, where preset=auto means {automatic}"]
    versions = provenance()["versions"]
    yield "versions", [f"{name} {version or 'is not installed'}" for name, version in versions.items()]
    yield "drawing", _drawing_lines(settings)
    yield "weights", _weight_lines(settings)


def _torch_lines() -> list[str]:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    lines = [f"{torch.__version__}, a {build} build, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            lines.append(f"GPU {index}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    elif torch.version.cuda:
        lines.append("sees no GPU: is there one, and does `nvidia-smi` list it?")
    if computes_in_bf16(torch.device("cpu")):
        lines.append("this CPU computes in bf16")
    return lines


def _drawing_lines(settings: Settings) -> list[str]:
    """The GL backend and the time of one image in both qualities."""
    try:
        lines = [f"MUJOCO_GL={choose_backend()}"]
        for quality in ("fast", "paper"):
            milliseconds = 1000 * _seconds_a_frame(settings, quality)
            size = settings.image_size
            lines.append(f"{milliseconds:.1f} ms for one {size}x{size} image of {settings.task}, {quality}")
    except envs.MissingGL as error:
        return [str(error)]
    return lines


def _seconds_a_frame(settings: Settings, quality: str) -> float:
    env = envs.make(settings.task, **environment_keywords(settings) | {"render_quality": quality})
    with contextlib.closing(env):
        env.reset(seed=0)
        start = time.perf_counter()
        for _ in range(FRAMES):
            env.simulator.render()
        return (time.perf_counter() - start) / FRAMES


def _weight_lines(settings: Settings) -> list[str]:
    """Which optional weights are there, and where they are looked for."""
    wanted = (
        ("world model", "world_model.pretrained", settings.world_model.pretrained, (TOKENIZER, TRANSFORMER)),
        (
            "LPIPS-VGG",
            "world_model.learner.perceptual_weights",
            settings.world_model.learner.perceptual_weights,
            LPIPS_FILES,
        ),
    )
    lines = []
    for name, key, value, files in wanted:
        folder = local(value) or Path(value)
        missing = [file for file in files if not (folder / file).exists()]
        if value == "none":
            lines.append(f"{name}: not asked for; {key}=<folder> names one with {' and '.join(files)}")
        elif missing:
            lines.append(f"{name}: {' and '.join(missing)} not found in {folder.resolve()} ({key})")
        else:
            lines.append(f"{name}: found in {value} ({key})")
    return lines
