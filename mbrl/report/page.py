"""A comparison as one HTML page that needs nothing but itself: pictures, videos, style and table are in the file."""

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mbrl.report import figures, tables
from mbrl.report.comparison import ALL, Comparison, Row
from mbrl.report.figures import DARK, LIGHT, Style, svg
from mbrl.report.results import Curve
from mbrl.report.stats import Estimate
from mbrl.run import SIMULATORS

STYLE = Path(__file__).with_suffix(".css")
VIDEOS = "videos/eval-episodes-*.gif"
SMALL = (3.1, 2.1)  # inches of a task's panel


def document(comparison: Comparison, notes: Sequence[str], score: str, made_by: str) -> str:
    """The whole page. `score` is what the scores are, `made_by` the command that repeats it."""
    rows = comparison.rows()
    style = Style(comparison, svg=True)
    sections = [
        _header(comparison, rows, made_by),
        _legend(comparison),
        _cards(comparison, rows, score),
        _warnings(notes),
        _together(comparison, style, score),
        _each_task(comparison, style, score),
        _videos(comparison),
        _table(rows, score),
        _small_print(comparison, score, made_by),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Comparison: {_text(', '.join(comparison.methods))}</title>\n"
        f"<style>{_css()}</style></head>\n<body>\n{body}\n<script>{SCRIPT}</script>\n</body></html>\n"
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
    better, worse, end, way = pairs[0]
    if np.isnan(end.low):
        return [f"{better} ends above {worse}, with one run on each task: no verdict."]
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


def _header(comparison: Comparison, rows: Sequence[Row], made_by: str) -> str:
    tasks = len(comparison.tasks)
    runs = sum(len(cell.curves) for cell in comparison.cells.values())
    count = f"{runs} runs, {len(comparison.methods)} methods, {tasks} task{'s' if tasks > 1 else ''}"
    first, *rest = verdict(comparison)
    more = f"<p class=more>{_text(' '.join(rest))}</p>" if rest else ""
    return f"<header><p class=count>{count}</p><h1>{_text(first)}</h1>{more}</header>"


def _legend(comparison: Comparison) -> str:
    chips = [
        f'<button data-method="{number}" style="--c: var(--method-{number % len(LIGHT)})">'
        f'<i class="{"" if comparison.is_ours(method) else "other"}"></i>{_text(method)}</button>'
        for number, method in enumerate(comparison.methods)
    ]
    return f'<nav aria-label="methods">{"".join(chips)}</nav>'


def _cards(comparison: Comparison, rows: Sequence[Row], score: str) -> str:
    first = rows[0].task
    if len(comparison.tasks) > 1 and first != ALL:
        return ""  # nothing can be said of all tasks together
    cards = []
    order = {method: place for place, method in enumerate(comparison.ranked)}
    summary = [row for row in rows if row.task == first and row.method in order]
    for row in sorted(summary, key=lambda row: order[row.method]):
        number = comparison.methods.index(row.method)
        reach = [f"<dt>to {percent} %</dt><dd>{_reached(row, i)}</dd>" for i, percent in enumerate(tables.PERCENT)]
        cards.append(
            f'<article class="method method-{number}" style="--c: var(--method-{number % len(LIGHT)})">'
            f"<h3>{_text(row.method)}</h3><p class=big>{row.score.value:.2f}</p>{_bar(row.score)}"
            f"<p class=small>{_text(score)}, IQM of {_evidence(row)}</p>"
            f"<dl><dt>area</dt><dd>{tables.estimate(row.area)}</dd>{''.join(reach)}</dl></article>"
        )
    return f"<section class=cards>{''.join(cards)}</section>" if cards else ""


def _evidence(row: Row) -> str:
    episodes = f", {row.episodes:,} episodes" if row.episodes else ", episodes not stated"
    return f"{row.seeds} seed{'' if row.seeds == '1' else 's'}{' a task' if row.task == ALL else ''}{episodes}"


def _reached(row: Row, i: int) -> str:
    minutes = f", {tables.number(row.minutes_to[i])} min" if math.isfinite(row.minutes_to[i]) else ""
    frames = f"{tables.number(row.frames_to[i])}{' frames' if math.isfinite(row.frames_to[i]) else ''}"
    return f"{frames}{minutes} <span>({row.reached[i]} runs)</span>"


def _bar(estimate: Estimate) -> str:
    """The score on a track from 0 to 1, its interval as a band."""
    place = f"left: {100 * float(estimate.value):.1f}%"
    band = ""
    if not np.isnan(estimate.low):
        low, high = float(estimate.low), float(estimate.high)
        band = f'<b style="left: {100 * low:.1f}%; width: {100 * (high - low):.1f}%"></b>'
    return f'<div class=track role="img" aria-label="{tables.estimate(estimate)}">{band}<i style="{place}"></i></div>'


def _warnings(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return (
        f"<details class=notes open><summary>Before you trust this ({len(notes)})</summary><ul>{items}</ul></details>"
    )


def _together(comparison: Comparison, style: Style, score: str) -> str:
    if not comparison.ranked:
        return ""
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
    count = len(comparison.shared)
    title = f"All {count} tasks together" if count > 1 else comparison.shared[0]
    return f"<section><h2>{_text(title)}</h2><div class=wide>{''.join(plots)}</div></section>"


def _each_task(comparison: Comparison, style: Style, score: str) -> str:
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
    return f"<section><h2>Task by task</h2><div class=grid>{''.join(plots)}</div></section>"


def _plot(title: str, figure: figures.Figure) -> str:
    return f"<figure><figcaption>{_text(title)}</figcaption>{svg(figure, _text(title))}</figure>"


def _videos(comparison: Comparison) -> str:
    """Newest evaluation video of each method's best and worst run that has one."""
    shown = []
    for number, method in enumerate(comparison.methods):
        curves = [curve for cell in comparison.by_task(method).values() for curve in cell.curves]
        filmed = [curve for curve in curves if curve.ours and any(curve.source.glob(VIDEOS))]
        filmed.sort(key=lambda curve: (-curve.scores[-1], curve.task, curve.seed))
        picks: list[tuple[str, Curve]] = list(zip(("best", "worst"), filmed[:1] + filmed[1:][-1:], strict=False))
        for kind, curve in picks:
            gif = base64.b64encode(_newest(curve.source).read_bytes()).decode()
            told = f"{kind} of {method}: {curve.task}, seed {curve.seed}, {curve.scores[-1]:.2f}"
            shown.append(
                f'<figure class="method method-{number}" style="--c: var(--method-{number % len(LIGHT)})">'
                f'<img src="data:image/gif;base64,{gif}" alt="{_text(told)}" loading="lazy">'
                f"<figcaption>{_text(told)}</figcaption></figure>"
            )
    return f'<section><h2>Best and worst</h2><div class="wide videos">{"".join(shown)}</div></section>' if shown else ""


def _newest(run: Path) -> Path:
    return max(run.glob(VIDEOS), key=lambda path: path.name)


def _table(rows: Sequence[Row], score: str) -> str:
    best = {row.task: max(float(r.score.value) for r in rows if r.task == row.task) for row in rows}
    lines = []
    for i, row in enumerate(rows):
        begins = i == 0 or rows[i - 1].task != row.task
        task, method, *rest = (_text(cell) for cell in tables.cells(row))
        wins = ' class="win"' if float(row.score.value) == best[row.task] else ""
        cells = "".join(f"<td{wins if place == 3 else ''}>{cell}</td>" for place, cell in enumerate(rest))
        lines.append(
            f"<tr{' class=begins' if begins else ''}><th>{task if begins else ''}</th><td>{method}</td>{cells}</tr>"
        )
    head = "".join(f"<th>{_text(name)}</th>" for name in tables.headings(score)).replace(" %", "&nbsp;%")
    return (
        f"<section><h2>Numbers</h2><div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _small_print(comparison: Comparison, score: str, made_by: str) -> str:
    protocols = "".join(
        f"<li><b>{_text(method)}</b>: {_text(comparison.protocol(method))}</li>" for method in comparison.methods
    )
    curves = [curve for cell in comparison.cells.values() for curve in cell.curves]
    versions = {f"{key} {value}" for curve in curves for key, value in curve.rules.items() if key in SIMULATORS}
    sources = "".join(f"<li>{_text(path)}</li>" for path in dict.fromkeys(str(curve.source) for curve in curves))
    return f"""<footer><h2>How to read this</h2>
<p>Scores are {_text(score)} at the frame in the table. IQM is the mean of the middle half of all runs; shaded bands and
brackets are 95 % intervals of a bootstrap that draws {comparison.reps:,} times among the runs of each task; faint
lines are single runs. <i>Area</i> is the mean height of a run's curve. Frames and minutes to 50 and 80 % are those of
the first evaluation there, as medians over runs. The probability of improvement is that of a run drawn from one
method doing better than one drawn from the other, averaged over tasks: in its last score (at the end) and in its area
(on the way). All after Agarwal et al. 2021
(arXiv 2108.13264).</p>
<ul>{protocols}</ul><p>{_text(", ".join(sorted(versions)))}</p>
<details><summary>{len(curves)} runs</summary><ul>{sources}</ul></details>
<p><code>{_text(made_by)}</code></p></footer>"""


def _text(text: object) -> str:
    return html.escape(str(text))


def _css() -> str:
    def colours(palette: Sequence[str]) -> str:
        return " ".join(f"--method-{number}: {colour};" for number, colour in enumerate(palette))

    style = STYLE.read_text(encoding="utf-8")
    return style.replace("LIGHT_METHODS", colours(LIGHT)).replace("DARK_METHODS", colours(DARK))


# A click on a method's name leaves the others faint; a second click brings them back.
SCRIPT = """
document.querySelectorAll('nav button').forEach(button => button.addEventListener('click', () => {
  const body = document.body, chosen = body.dataset.method === button.dataset.method ? '' : button.dataset.method;
  if (chosen) body.dataset.method = chosen; else delete body.dataset.method;
  document.querySelectorAll('nav button').forEach(b => b.setAttribute('aria-pressed', b.dataset.method === chosen));
  document.querySelectorAll('.method').forEach(e => e.classList.toggle('chosen', e.matches('.method-' + chosen)));
}));
"""
