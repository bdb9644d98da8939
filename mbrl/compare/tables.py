"""The table of a comparison as CSV (every digit), Markdown and LaTeX (what a person reads)."""

import csv
import io
import math
import re
from collections.abc import Sequence

import numpy as np

from mbrl.compare.comparison import THRESHOLDS, Row
from mbrl.compare.stats import Estimate

LATEX = {letter: f"\\{letter}" for letter in "%_&#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
}
PERCENT = [f"{100 * threshold:.0f}" for threshold in THRESHOLDS]


def headings(score: str) -> list[str]:
    """Of the columns of `cells`."""
    times = [f"{clock} to {percent} %" for clock in ("frames", "minutes") for percent in PERCENT]
    return ["task", "method", "seeds", "episodes", "at frame", score_heading(score), "area [95 %]", *times]


def score_heading(score: str) -> str:
    return f"{score}, IQM [95 %]"


def cells(row: Row) -> list[str]:
    """A row in words; times are medians, with how many of the runs got there."""
    frames_to = [f"{number(when)} ({reached})" for when, reached in zip(row.frames_to, row.reached, strict=True)]
    return [
        row.task,
        row.method,
        row.seeds,
        str(row.episodes or "?"),
        "by task" if math.isnan(row.frames) else number(row.frames),
        estimate(row.score),
        estimate(row.area),
        *frames_to,
        *(number(minutes) for minutes in row.minutes_to),
    ]


def estimate(value: Estimate) -> str:
    """0.83 [0.78, 0.88], or 0.83 where there is no interval."""
    if np.isnan(value.low):
        return f"{value.value:.2f}"
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def number(value: float) -> str:
    """A count or a time; a dash where nobody knows, a word where it never came."""
    if math.isnan(value):
        return "–"
    return "not reached" if math.isinf(value) else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def as_csv(rows: Sequence[Row]) -> str:
    """One line a row, numbers unrounded; `inf` is never reached, `nan` is unknown."""
    times = [f"{clock}_to_{percent}" for clock in ("frames", "minutes") for percent in PERCENT]
    reached = [f"reached_{percent}" for percent in PERCENT]
    bounds = [name + end for name in ("score", "area") for end in ("", "_low", "_high")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["task", "method", "seeds", "episodes", "frame", *bounds, *times, *reached, "protocol"])
    for row in rows:
        scores = [f"{float(value):.6g}" for part in (row.score, row.area) for value in part]
        waits = [f"{value:.6g}" for value in (*row.frames_to, *row.minutes_to)]
        frame = f"{row.frames:.10g}"
        writer.writerow([*row[:4], frame, *scores, *waits, *row.reached, row.protocol])
    return file.getvalue()


def as_markdown(rows: Sequence[Row], score: str) -> str:
    lines = [headings(score), ["---"] * len(headings(score)), *([_plain(cell) for cell in cells(row)] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_latex(rows: Sequence[Row], score: str) -> str:
    """A `tabular` for the booktabs package."""
    head = headings(score)
    body = []
    for i, row in enumerate(rows):
        if i and row.task != rows[i - 1].task:
            body.append(r"\midrule")
        body.append(" & ".join(map(_latex, cells(row))) + r" \\")
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
        r"\toprule",
        " & ".join(map(_latex, head)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """For Markdown: what would mean something there stands for itself."""
    return re.sub(r"([\\`*_{}<>#|$~!]|\[(?![\d-]))", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    text = "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))
    return f"{{{text}}}" if text.startswith("[") else text
