"""Run folders with made-up evaluations, as a comparison finds them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mbrl.compare.compare import CompareSettings, read
from mbrl.compare.comparison import Comparison, compare

HEAD = "frame,episode_return,success_rate,episodes,wall_time_s"
CONFIG = {"protocol": "bonus_demos", "action_repeat": 2, "success_bonus": 10.0, "demonstrations": 5, "preset": "small"}


def run(
    root: Path, task: str, agent: str, seed: int, scores: Sequence[float], every: int = 1000, **changed: Any
) -> Path:
    """A run folder with one evaluation of 20 episodes every `every` frames, ten minutes each."""
    folder = root / task / agent / str(seed)
    folder.mkdir(parents=True)
    version, cpus = changed.pop("metaworld", "3.1.1"), changed.pop("cpus", 2)
    config = {"task": task, "agent": agent, "seed": seed, "variant": "", "threads": 0, **CONFIG, **changed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    start: dict[str, Any] = {"versions": {"metaworld": version, "mujoco": "3.3.0"}}
    start |= {"machine": {"cpus": cpus, "gpu": None}, "commit": "0123456789abcdef", "dirty": seed == 2}
    start["command"] = [f"task={task}", f"agent={agent}", f"seed={seed}", "drqv2.bc_schedule=linear(1,0,9)"]
    (folder / "git.json").write_text(json.dumps({"id": "0", "starts": [start]}))
    rows = [f"{every * i},{100 * score},{score},20,{600 * i}" for i, score in enumerate(scores, start=1)]
    (folder / "eval.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    return folder


def two_tasks(run_root: Path) -> Path:
    """Two tasks, two methods, five seeds: MBPO ends at .6 to 1 on hammer, DrQ-v2 at 0 to .4, both .2 less elsewhere."""
    for task, less in (("hammer", 0.0), ("coffee-push", 0.2)):
        for agent, worse in (("mbpo", 0.0), ("drqv2", 0.6)):
            for seed in range(1, 6):
                last = max(0.0, round(0.5 + 0.1 * seed - less - worse, 2))
                run(run_root, task, agent, seed, [0.0, last / 2, last])
    return run_root


def settings(root: Path, **changed: Any) -> CompareSettings:
    values: dict[str, Any] = dict(
        task_names=(), runs=(str(root),), score="auto", frames=None, export="none", reps=200, name="x"
    )
    return CompareSettings(**values | {"out": str(root / "reports")} | changed)


def compared(root: Path, **changed: Any) -> tuple[Comparison, list[str]]:
    notes: list[str] = []
    asked = settings(root, **changed)
    return compare(read(asked, notes.append), notes.append, asked.frames, asked.reps), notes


def overrides(root: Path, *more: str) -> list[str]:
    return [f"runs=[{root}]", f"out={root / 'reports'}", "reps=200", *more]
