"""A comparison as one HTML page that needs nothing but itself: images, videos, style and table are in the file."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mbrl.compare import figures, tables
from mbrl.compare.comparison import ALL, Comparison, Row
from mbrl.compare.figures import DARK, LIGHT, Style, svg
from mbrl.compare.stats import CONFIDENCE, MIN_RUNS, Estimate
from mbrl.experiment.provenance import SIMULATORS

VIDEOS = "videos/eval-episodes-*.gif"
SMALL = (3.1, 2.1)  # inches of a task's panel
PAGE = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGE.filters |= {"estimate": tables.estimate, "number": tables.number, "percent": lambda share: f"{100 * share:.1f}%"}
PAGE.tests["finite"] = math.isfinite

Plot = tuple[str, str]  # its title, and the SVG


def document(comparison: Comparison, notes: Sequence[str], score: str, made_by: str) -> str:
    """The whole page. `score` is what the scores are, `made_by` the command that repeats it."""
    rows, style = comparison.rows(), Style(comparison, svg=True)
    curves = [curve for cell in comparison.cells.values() for curve in cell.curves]
    versions = {f"{key} {value}" for curve in curves for key, value in curve.rules.items() if key in SIMULATORS}
    return PAGE.get_template("page.html").render(
        comparison=comparison,
        number={method: number for number, method in enumerate(comparison.methods)},
        verdict=verdict(comparison),
        cards=_summary(comparison, rows),
        notes=notes,
        together=_together(comparison, style, score),
        each_task=_each_task(comparison, style, score),
        videos=_videos(comparison),
        rows=rows,
        cells=tables.cells,
        headings=tables.headings(score),
        percents=tables.PERCENT,
        score=score,
        score_heading=tables.score_heading(score),
        curves=curves,
        sources={str(curve.source): curve.command for curve in curves},
        versions=sorted(versions),
        min_runs=MIN_RUNS,
        made_by=made_by,
        light=LIGHT,
        dark=DARK,
    )


def verdict(comparison: Comparison) -> list[str]:
    """Who wins and how sure we are, in one or two sentences."""
    if not comparison.ranked:
        return ["No task has runs of every method, so there is no overall winner."]
    pairs = comparison.improvements()
    pairs = [pair for pair in pairs if comparison.is_ours(pair.better)] or pairs
    if not pairs:
        alone = next(filter(comparison.is_ours, comparison.ranked), comparison.ranked[0])
        return [f"{alone} has nothing to be weighed against under its protocol."]
    better, worse, end, way, smallest_p = pairs[0]
    if np.isnan(end.low):
        runs = [
            sum(len(comparison.cells[task, method].curves) for task in comparison.shared) for method in pairs[0][:2]
        ]
        enough = smallest_p <= 1 - CONFIDENCE
        why = f"{MIN_RUNS} of every task are needed" if enough else f"the least p they can reach is {smallest_p:.2g}"
        return [f"No verdict: {runs[0]} of {better} and {runs[1]} of {worse} are too few runs to tell ({why})."]
    odds = f"a run of {better} ends above one of {worse} with probability {tables.estimate(end)}."
    last = f"{better} wins: {odds}" if end.low > 0.5 else f"No clear winner: {odds}"
    if way.high < 0.5:
        return [last, f"{worse} learns faster: {tables.estimate(_turned(way))}."]
    return [
        last,
        f"{f'{better} learns faster' if way.low > 0.5 else 'Who learns faster is open'}: {tables.estimate(way)}.",
    ]


def _turned(chance: Estimate) -> Estimate:
    """The same from the other method's side."""
    return Estimate(1 - chance.value, 1 - chance.high, 1 - chance.low)


def _summary(comparison: Comparison, rows: Sequence[Row]) -> list[Row]:
    """The rows of all tasks together, or of the only one, the best method first; none if nothing can be said of all."""
    summed = ALL if len(comparison.tasks) > 1 else comparison.tasks[0]
    found = [row for row in rows if row.task == summed and row.method in comparison.ranked]
    return sorted(found, key=lambda row: comparison.ranked.index(row.method))


def _together(comparison: Comparison, style: Style, score: str) -> list[Plot]:
    if not comparison.ranked:
        return []
    plots = []
    if len(comparison.tasks) > 1:
        over_frames, over_minutes = comparison.over_frames(None), comparison.over_minutes(None)
        label = figures.frames_label(comparison)
        plots.append(_plot("Learning, by frames", figures.curves(style, over_frames, label, score)))
        if over_minutes:
            plots.append(_plot("Learning, by time", figures.curves(style, over_minutes, "minutes of training", score)))
    plots.append(
        _plot(
            "Performance profile",
            figures.curves(style, comparison.profiles(), f"final {score}", "share of runs above it"),
        )
    )
    if pairs := comparison.improvements():
        plots.append(
            _plot("Probability of improvement: ● at the end, ○ on the way", figures.improvements(style, pairs))
        )
    return plots


def _each_task(comparison: Comparison, style: Style, score: str) -> list[Plot]:
    plots = []
    for task in comparison.tasks:
        runs = {
            method: (comparison.cells[task, method].frames, comparison.cells[task, method].scores)
            for method in comparison.methods
            if (task, method) in comparison.cells and comparison.is_ours(method)
        }
        lines = comparison.over_frames(task)
        plots.append(_plot(task, figures.curves(style, lines, "frames", score, runs, SMALL)))
        if len(comparison.tasks) == 1 and (by_time := comparison.over_minutes(task)):
            plots.append(_plot(f"{task}, by time", figures.curves(style, by_time, "minutes", score, size=SMALL)))
    return plots


def _plot(title: str, figure: figures.Figure) -> Plot:
    return title, svg(figure, title)


def _videos(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Method, caption and newest evaluation video (base64) of each method's best and worst run that has one."""
    shown = []
    for method in comparison.methods:
        curves = [curve for cell in comparison.by_task(method).values() for curve in cell.curves]
        filmed = [curve for curve in curves if curve.ours and any(curve.source.glob(VIDEOS))]
        filmed.sort(key=lambda curve: (-curve.scores[-1], curve.task, curve.seed))
        for kind, curve in zip(("best", "worst"), filmed[:1] + filmed[1:][-1:], strict=False):
            newest = max(curve.source.glob(VIDEOS), key=lambda path: path.name)
            caption = f"{kind} of {method}: {curve.task}, seed {curve.seed}, {curve.scores[-1]:.2f}"
            shown.append((method, caption, base64.b64encode(newest.read_bytes()).decode()))
    return shown
