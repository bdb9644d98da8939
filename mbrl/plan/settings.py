"""The keys of `make plan`; their values stand in configs/plan.yaml."""

import dataclasses
from typing import Annotated, Literal

from agents import PlannerConfig
from mbrl.experiment.settings import Count, Device, Folder, Name, Positive, Range, Seed, Threads


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    task: str
    goal: Folder
    data: Folder
    budget: Positive | None
    model: Folder
    name: Name
    control: Literal["none", "shuffled", "random"]
    episodes: Annotated[int, Range(1, 100_000)]
    seed: Seed
    cost: str
    cost_frames: Positive | None
    classifier: Folder
    discount: Annotated[float, Range(0.0, 1.0)]
    temperature: Annotated[float, Range(0.0)]
    top_k: Positive
    max_rows: Positive
    planner: Name
    planning: PlannerConfig
    action_repeat: Positive
    episode_frames: Positive | None
    camera: str
    render_quality: Literal["fast", "paper"]
    success_bonus: Annotated[float, Range(0.0)]
    scoring: Literal["strict", "vp2"] | None
    shown: Count
    device: Device
    threads: Threads
    precision: Literal["auto", "fp32", "bf16"]
