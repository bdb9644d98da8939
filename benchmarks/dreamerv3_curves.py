"""Our DreamerV3 and the official one as curves: python -m benchmarks.dreamerv3_curves <runs of a toy task> <image>

Reads <runs>/dreamerv3/<seed> and <runs>/dreamerv3-official/<seed> (`benchmarks/dreamerv3.py`), draws the image and
prints the table of docs/dreamerv3.md. Scores are 0 for a dot that stays where it is, 1 for the best return.
"""

import csv
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view
from omegaconf import OmegaConf

from envs.toy import best_return
from mbrl.build import make_env
from mbrl.compare.stats import Array
from mbrl.experiment.command import command
from mbrl.experiment.logger import EVAL, TRAIN
from mbrl.experiment.run import CONFIG, stream_seed
from mbrl.experiment.settings import Settings, UserError, build

METHODS = {"official": "dreamerv3-official", "ours": "dreamerv3"}
COLOURS = {"official": "#d4570a", "ours": "#0b62d6"}
SMOOTHED = 10  # training episodes in a point


class Curves(NamedTuple):
    """One seed: evaluations, with the actor's mean, and training episodes, with its samples.

    Each has rows of return, return of a dot that stays where it is, and best return.
    """

    frames: Array  # (P,) of the evaluations
    evaluated: Array  # (P, 3)
    trained_frames: Array  # (E,) ends of the training episodes
    trained: Array  # (E, 3)


def score(rows: Array) -> Array:
    """0 for a dot that stays where it is, 1 for the best return."""
    earned, still, best = rows.T
    return (earned - still) / (best - still)


def read(folder: Path) -> Curves:
    """The curves of one run folder."""
    if not (folder / EVAL).exists():
        raise UserError(f"{folder} holds no evaluations")
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    s = build(Settings, config)
    env = make_env(s)
    stay = np.zeros(env.action_space.shape, np.float32)

    def limits(*stream: str | int) -> tuple[float, float]:
        env.reset(seed=stream_seed(s.seed, *stream))
        best = best_return(env)
        return sum(env.step(stay)[1] for _ in range(env.decisions_left)), best

    evaluated, frames, trained, ends = [], [], [], []
    with open(folder / EVAL) as file:
        for row in csv.DictReader(file):
            frames.append(int(row["frame"]))
            many = [limits("evaluation", frames[-1], i) for i in range(s.num_eval_episodes)]
            evaluated.append((float(row["episode_return"]), *np.mean(many, axis=0)))
    with open(folder / TRAIN) as file:
        for row in csv.DictReader(file):
            ends.append(int(row["frame"]))
            trained.append((float(row["episode_return"]), *limits("episode", int(row["episode"]))))
    return Curves(np.array(frames), np.array(evaluated), np.array(ends), np.array(trained))


def table(curves: dict[str, list[Curves]]) -> str:
    """The score of every evaluation of every seed; the last column: is our mean within the official range?"""
    official, ours = (np.stack([score(c.evaluated) for c in curves[side]]) for side in ("official", "ours"))  # (S, P)
    lines = ["| frames | official | mean | ours | mean | our mean is |", "|---|---|---|---|---|---|"]
    for i, frame in enumerate(curves["official"][0].frames):
        low, high, mean = official[:, i].min(), official[:, i].max(), ours[:, i].mean()
        place = "within" if low <= mean <= high else "above" if mean > high else "below"
        cells = [
            cell
            for side in (official, ours)
            for cell in (" ".join(f"{share:.2f}" for share in side[:, i]), f"{side[:, i].mean():.2f}")
        ]
        lines.append(f"| {int(frame):,} | {' | '.join(cells)} | {place} |")
    lines.append("")
    for side, seeds in curves.items():
        shares = " ".join(f"{c.evaluated[-1, 0] / c.evaluated[-1, 2]:.2f}" for c in seeds)
        lines.append(f"return / best return at the last evaluation, {side}: {shares}")
    if len(official) == len(ours) > 3:
        for side, scores in (("ours", ours), ("official", official)):
            held = held_by_threes(official, scores)
            lines.append(
                f"three official seeds hold the mean of three of {side} at {np.mean(held):.1f} of {len(official[0])} "
                f"evaluations on average, at all in {sum(n == len(official[0]) for n in held)} of {len(held)} choices"
            )
        lines.append(f"permutation test of all evaluations at once: p = {permutation_p(official, ours):.2f}")
    return "\n".join(lines)


def held_by_threes(official: Array, others: Array) -> list[int]:
    """For every choice of three seeds a side, at how many evaluations the official range holds the mean of the others.

    Args:
        official, others: scores (S, P), (T, P) of seeds at P evaluations. The same array twice tells what
            to expect of a method beside itself; no seed is on both sides then.
    """
    counts = []
    for band in map(list, itertools.combinations(range(len(official)), 3)):
        low, high = official[band].min(0), official[band].max(0)
        rest = [i for i in range(len(others)) if others is not official or i not in band]
        for mean in (others[list(three)].mean(0) for three in itertools.combinations(rest, 3)):
            counts.append(int(((low <= mean) & (mean <= high)).sum()))
    return counts


def permutation_p(official: Array, ours: Array) -> float:
    """Share of all ways to deal the seeds, scores (S, P) and (S, P), to two sides that differ as much as these or more.

    What differs is the largest |t| of the P evaluations; the share is small when the methods differ at any of them.
    """
    both, size = np.concatenate([official, ours]), len(official)

    def largest_t(side: tuple[int, ...]) -> float:
        chosen = np.isin(np.arange(len(both)), side)
        a, b = both[chosen], both[~chosen]
        error = np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / size)
        return float((np.abs(a.mean(0) - b.mean(0)) / error).max())

    dealt = [largest_t(side) for side in itertools.combinations(range(len(both)), size)]
    return float(np.mean(np.array(dealt) >= dealt[0] - 1e-9))


def draw(curves: dict[str, list[Curves]]) -> Figure:
    """Evaluations and training episodes: a line for each seed, a band from the lowest to the highest."""
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    evaluated, trained = figure.subplots(1, 2, sharey=True)
    for side, seeds in curves.items():
        colour, shares = COLOURS[side], np.stack([score(c.evaluated) for c in seeds])
        evaluated.fill_between(seeds[0].frames, shares.min(0), shares.max(0), color=colour, alpha=0.15, lw=0)
        evaluated.plot(seeds[0].frames, shares.mean(0), color=colour, lw=2, label=f"{side}, {len(seeds)} seeds")
        for c in seeds:
            evaluated.plot(c.frames, score(c.evaluated), color=colour, lw=0.7, alpha=0.6)
            count = min(SMOOTHED, len(c.trained))
            means = sliding_window_view(c.trained, count, axis=0).mean(-1)
            trained.plot(c.trained_frames[count - 1 :], score(means), color=colour, lw=0.7, alpha=0.8)
    evaluated.axhline(0.8, color="#888888", lw=0.8, ls=":")
    evaluated.set(title="evaluation, the actor's mean", xlabel="frames", ylabel="score: 0 stays, 1 is best")
    trained.set(title=f"training, sampled actions, mean of {SMOOTHED} episodes", xlabel="frames")
    evaluated.legend(frameon=False, loc="lower right")
    for axes in (evaluated, trained):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(overrides: list[str]) -> None:
    if len(overrides) != 2:
        raise UserError("name the folder of the runs and the image: runs/toy/reach docs/dreamerv3.png")
    curves = {}
    for side, method in METHODS.items():
        folders = sorted(path for path in (Path(overrides[0]) / method).glob("*") if path.is_dir())
        if not folders:
            raise UserError(f"{Path(overrides[0]) / method} holds no runs")
        curves[side] = [read(folder) for folder in folders]
    if len({tuple(c.frames) for seeds in curves.values() for c in seeds}) > 1:
        raise UserError("the runs were not evaluated at the same frames: has one of them not ended?")
    draw(curves).savefig(overrides[1], dpi=110)
    print(table(curves))


if __name__ == "__main__":
    command(main)
