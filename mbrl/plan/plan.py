"""Planning evaluated: `make plan TASK=reach GOAL=expert MODEL=<folder>`, `python -m mbrl.plan key=value ...`.

    runs/plans/<task>-<name>[-<control>]/
        config.yaml git.json    every key, commit and versions
        episodes.csv            a row an episode: episode,seed,success,decisions,return,promised,earned,plan_s
        summary.md              success with its interval, promised against earned, p against the controls beside it
        <episode>.gif           goal | executed | imagined, of the first episodes

Episodes depend on their seed alone. The same command again makes only those that are missing.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from agents import Uniform
from mbrl.collector import EpisodeRecorder
from mbrl.compare.stats import fisher_exact, wilson
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.capacity import needs_of_planning, refuse_too_large
from mbrl.experiment.planned import dry_run
from mbrl.experiment.provenance import provenance
from mbrl.experiment.run import PROVENANCE, check_same_config, lock_folder, stream_seed
from mbrl.experiment.settings import (
    UserError,
    flatten,
    load_plain,
    pick_device,
    to_dict,
)
from mbrl.experiment.stored_config import write_config, write_text
from mbrl.experiment.video import comparison, write_gif
from mbrl.plan.agent import PlanningAgent
from mbrl.plan.costs import Cost, load_classifier, parse_cost
from mbrl.plan.episode import Played, play
from mbrl.plan.goals import NONE, check_goal, goal_frame, starts_for
from mbrl.plan.offset import NO_DATA, OffsetGoals, parse_offset
from mbrl.plan.settings import PlanSettings
from mbrl.plan.worlds import World, load_world
from mbrl.rollout import to_float
from world_model.files import read_text, reading

EPISODES, SUMMARY = "episodes.csv", "summary.md"
SCORES = ("promised", "earned")
COLUMNS = ("episode", "seed", "success", "decisions", "return", "promised", "earned", "plan_s")
CONTROLS = ("shuffled", "random")
FREE_KEYS = frozenset({"episodes", "shown", "device", "threads", "max_rows", "name"})
FPS = 10.0
Row = dict[str, str]


class Planning:
    def __init__(self, settings: PlanSettings) -> None:
        s = self.settings = settings
        self.task, self.device = envs.canonical(s.task), pick_device(s.device)
        refuse_too_large(needs_of_planning(s.planning), s.device)
        self.folder = folder_of(s, self.task, s.control)
        environment: dict[str, Any] = dict(
            action_repeat=s.action_repeat,
            episode_frames=s.episode_frames,
            success_bonus=s.success_bonus,
            camera=s.camera,
            render_quality=s.render_quality,
            scoring=s.scoring,
            starts=starts_for(s.goal, self.task),
        )
        self.world = load_world(s, self.task, environment, self.device)
        self.cost = make_cost(s, self.world, self.device)
        check_goal(s.goal, self.task, self.world.resolution)
        # A frame stack is what an agent sees, and a dream begins with it.
        stacked: dict[str, Any] = dict(image_size=self.world.resolution, frame_stack=max(3, self.world.context_length))
        self.env = envs.make(self.task, **environment, **stacked)
        self.recorder = EpisodeRecorder(self.env)
        self.offset_goals = make_offset_goals(s, self.env, self.task)

    def run(self, rows: list[Row]) -> None:
        """Play what is missing of the episodes, each of which enters `rows` and the file when it is over."""
        s = self.settings
        for episode in progress_bar(range(len(rows), s.episodes), initial=len(rows), total=s.episodes, unit="episode"):
            seed = s.seed + episode
            aim = self.offset_goals.draw(seed) if self.offset_goals else None
            goal = aim.frame if aim else goal_frame(s.goal, self.env, seed)
            with self.world.autocast():
                played = play(self.agent(seed, goal), self.recorder, seed, aim)
            rows.append(row(episode, seed, played))
            write_text(self.folder / EPISODES, written(rows))
            if episode < s.shown:
                write_gif(self.folder / f"{episode:03d}.gif", show(goal, played), FPS)

    def plan(self, rows: Sequence[Row]) -> str:
        """What will be played, in one line."""
        s, p = self.settings, self.settings.planning
        how = f"{s.planner}: {p.samples} x {p.iterations} candidates of {p.horizon} decisions, cost {s.cost}"
        left = max(0, s.episodes - len(rows))
        return f"{self.task}, goal {s.goal}, in {s.model} by {how}; {left} of {s.episodes} episodes, into {self.folder}"

    def agent(self, seed: int, goal: np.ndarray | None) -> PlanningAgent | Uniform:
        """Whoever acts in the episode of this seed."""
        s, (action_dim,) = self.settings, self.env.action_space.shape
        own = stream_seed(seed, "planner")
        if s.control == "random":
            return Uniform(action_dim, self.device, own)
        agent = PlanningAgent(s.planning, action_dim, own, self.device, control=s.control, max_rows=s.max_rows)
        agent.start = lambda frames: self.world.start(frames, self.recorder.origin, own)
        agent.measure = self.cost.measure(None if goal is None else to_float(torch.from_numpy(goal)))
        return agent

    def close(self) -> None:
        self.env.close()
        self.world.close()


def folder_of(settings: PlanSettings, task: str, control: str) -> Path:
    """The folder of this evaluation under a control."""
    s, name = settings, settings.name
    if name == "auto":
        name = f"{s.planner}-{s.cost.replace('*', '')}-{Path(s.model).resolve().name}"
        name += "" if (ahead := parse_offset(s.goal)) is None else f"-offset{ahead}"
    parts = [task.replace("/", "-"), name, *([] if control == "none" else [control])]
    return Path("runs/plans") / "-".join(parts)


def make_offset_goals(settings: PlanSettings, env: envs.PixelEnv, task: str) -> OffsetGoals | None:
    """Of `goal=offset:N`, None for other goals. Raises UserError: none can be had, or a key is set that needs them."""
    s, ahead = settings, parse_offset(settings.goal)
    if ahead is not None:
        goals = OffsetGoals(env, task, ahead, s.budget, s.data)
        goals.draw(s.seed)  # what is wrong with a folder of episodes shows here
        return goals
    for key, value, advice in (("data", s.data, ""), ("budget", s.budget, "; episode_frames=<frames> ends others")):
        if value not in (None, NO_DATA):
            raise UserError(f"{key}={value} is for goal=offset:<decisions>, not for goal={s.goal}{advice}")
    return None


def make_cost(settings: PlanSettings, world: World, device: torch.device) -> Cost:
    """Raises UserError: a term that the model has no answer to, or a missing goal."""
    s, weights = settings, parse_cost(settings.cost)
    for name in ("reward", "success"):
        if name in weights and name not in world.heads:
            raise UserError(f"cost={s.cost}: {s.model} has no {name} head (it has: {', '.join(world.heads) or 'none'})")
    if "codes" in weights and world.longest is None:
        raise UserError(f"cost={s.cost}: {s.model} has no tokens, so there are no codes to compare; take image")
    if "codes" in weights and s.planning.horizon > (world.longest or 0):
        raise UserError(f"planning.horizon={s.planning.horizon}: {s.model} has room for {world.longest} frames")
    judge = load_classifier(s.classifier, device) if "classifier" in weights else None
    cost = Cost(weights, s.discount, s.cost_frames, judge)
    if cost.needs_goal and s.goal == NONE:
        raise UserError(f"cost={s.cost} needs a goal frame: set goal=expert, offset:<decisions> or <file>.png")
    return cost


def row(episode: int, seed: int, played: Played) -> Row:
    """The line of an episode; what plans alone have is the mean over them."""
    values: dict[str, Any] = dict(
        episode=episode,
        seed=seed,
        success=int(played.success),
        decisions=len(played.episode.actions),
    )
    values["return"] = f"{played.episode.rewards.sum():.6g}"
    for name in ("promised", "earned", "plan_s"):
        of_plans = [getattr(plan, name) for plan in played.plans]
        values[name] = f"{np.mean(of_plans):.6g}" if of_plans else ""
    return {name: str(value) for name, value in values.items()}


def written(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read(folder: Path) -> list[Row]:
    """The rows of the episodes that are there."""
    path = folder / EPISODES
    if not path.exists():
        return []
    with reading(path, advice=f"remove {folder} to start over"):
        rows = list(csv.DictReader(read_text(path).splitlines()))
        for i, line in enumerate(rows):
            if set(line) != set(COLUMNS) or line["episode"] != str(i) or line["success"] not in ("0", "1"):
                raise ValueError(f"line {i + 2} is not that of episode {i}")
            numbers = {name: float(line[name]) for name in COLUMNS[3:] if line[name]}
            # A plan of a model that went wrong promises nan or -inf, and the episode counts all the same.
            sound = all(np.isfinite(x) or (name in SCORES and not x > 0) for name, x in numbers.items())
            if None in line.values() or not line["seed"].isdigit() or not sound:
                raise ValueError(f"line {i + 2} is no row of numbers")
        return rows


def show(goal: np.ndarray | None, played: Played) -> np.ndarray:
    """uint8 (T, 3, height, width): goal, executed and imagined frames side by side."""
    executed = played.episode.frames[1:]
    columns = {"executed": executed}
    if goal is not None:
        columns = {"goal": np.broadcast_to(goal, executed.shape)} | columns
    if played.plans:
        columns["imagined"] = np.concatenate([plan.imagined for plan in played.plans])
    return comparison({name: frames[None] for name, frames in columns.items()})


def summary(settings: PlanSettings, task: str, rows: Sequence[Row]) -> str:
    """A table of what is there, and what the controls beside it say."""
    s, successes = settings, [int(line["success"]) for line in rows]
    low, high = wilson(sum(successes), len(rows))
    lines = [
        f"{task}, goal {s.goal}, {s.model}, {s.planner}, cost {s.cost}, control {s.control}",
        "",
        f"success {sum(successes)} of {len(rows)}: {np.mean(successes):.3f} ({low:.3f} to {high:.3f}, 95 %)",
    ]
    numbers = {name: [float(line[name]) for line in rows if line[name]] for name in COLUMNS[3:]}
    lines += [f"{name} {np.mean(values):.4g} an episode" for name, values in numbers.items() if values]
    for control in CONTROLS if s.control == "none" else ():
        theirs = read(folder_of(s, task, control))[: len(rows)]
        if theirs:
            reached = sum(int(line["success"]) for line in theirs)
            p = fisher_exact(sum(successes), len(rows), reached, len(theirs))
            lines.append(f"control {control}: {reached} of {len(theirs)}, Fisher's exact test one-sided p = {p:.2g}")
    return "\n".join(lines) + "\n"


def main(overrides: list[str]) -> None:
    overrides, dry = dry_run(overrides)
    settings = load_plain(PlanSettings, "plan", overrides)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    planning = Planning(settings)
    folder = planning.folder
    if dry:
        print(planning.plan(read(folder)))
        planning.close()
        return
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        if rows := read(folder):
            keys = flatten(to_dict(settings)).keys() - FREE_KEYS
            check_same_config(folder, settings, keys, added={"data": NO_DATA, "budget": None})
        write_config(folder, to_dict(settings))
        write_text(folder / PROVENANCE, json.dumps(provenance(), indent=1) + "\n")
        try:
            planning.run(rows)
        finally:
            planning.close()
        text = summary(settings, planning.task, rows[: settings.episodes])
        write_text(folder / SUMMARY, text)
    print(f"{text}{folder}: {EPISODES}, {SUMMARY}, images")
