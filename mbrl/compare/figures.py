"""The plots of a comparison: as SVG that takes its colours from the page around it, and as one PNG for a document."""

import html
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mbrl.compare.comparison import Comparison, Improvement, Line
from mbrl.compare.stats import Array

# Told apart by people who see colours differently, on white and on a dark ground (after Okabe and Ito).
LIGHT = ("#0b62d6", "#d4570a", "#118a66", "#b0309a", "#8a6a10", "#007f8c", "#7552e0", "#666a73")
DARK = ("#6fabff", "#ff9b54", "#4fd0a6", "#f08ade", "#dcb75e", "#56cfdd", "#b6a3ff", "#b0b4bd")
INK, GRID = "#33373d", "#d9dce1"
# In an SVG these stand for colours that only the page knows, light or dark.
STAND_INS = tuple(f"#0000{0xA0 + number:02x}" for number in range(len(LIGHT)))
INK_STAND_IN, GRID_STAND_IN = "#0000b0", "#0000b1"
FONT_SIZE = 9
rcParams["text.parse_math"] = False  # a dollar in a name begins no formula


class Style:
    """Colours and strokes of the methods: other people's results are dashed."""

    def __init__(self, comparison: Comparison, svg: bool) -> None:
        colours = STAND_INS if svg else LIGHT
        self.ink, self.grid = (INK_STAND_IN, GRID_STAND_IN) if svg else (INK, GRID)
        self.colour = {method: colours[i % len(colours)] for i, method in enumerate(comparison.methods)}
        self.stroke = {method: "-" if comparison.is_ours(method) else "--" for method in comparison.methods}
        self.number = {method: i for i, method in enumerate(comparison.methods)}


def curves(
    style: Style,
    lines: Mapping[str, Line],
    x_label: str,
    y_label: str,
    runs: Mapping[str, tuple[Array, Array]] | None = None,
    size: tuple[float, float] = (6.0, 3.4),
) -> Figure:
    """Lines with their intervals as bands, single runs as faint lines."""
    figure = Figure(figsize=size, layout="constrained")
    draw_curves(figure.subplots(), style, lines, x_label, y_label, runs or {})
    return figure


def draw_curves(
    axes: Axes,
    style: Style,
    lines: Mapping[str, Line],
    x_label: str,
    y_label: str,
    runs: Mapping[str, tuple[Array, Array]],
) -> None:
    for method, (x, scores) in runs.items():
        for run in scores:
            axes.plot(x, run, color=style.colour[method], lw=0.6, alpha=0.3, gid=f"method-{style.number[method]}")
    for method, (x, estimate) in lines.items():
        colour, gid, marker = style.colour[method], f"method-{style.number[method]}", "." if len(x) == 1 else ""
        axes.plot(x, estimate.value, color=colour, lw=1.8, ls=style.stroke[method], marker=marker, gid=gid)
        if np.isfinite(estimate.low).all():
            axes.fill_between(x, estimate.low, estimate.high, color=colour, alpha=0.18, lw=0, gid=gid)
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(-0.03, 1.03))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    _plain(axes, style)


def thousands(value: float) -> str:
    """1500 as 1.5k, 2000000 as 2M, 0.25 as 0.25."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def improvements(style: Style, pairs: Sequence[Improvement]) -> Figure:
    """Probability of improvement of the first of each pair, with intervals: filled at the end, hollow on the way."""
    figure = Figure(figsize=(6.0, max(3.4, 1.0 + 0.45 * len(pairs))), layout="constrained")
    axes = figure.subplots()
    for row, pair in enumerate(pairs):
        colour, gid = style.colour[pair.better], f"method-{style.number[pair.better]}"
        for y, estimate, fill in ((row - 0.15, pair.at_the_end, "full"), (row + 0.15, pair.on_the_way, "none")):
            if np.isfinite(estimate.low):
                axes.plot([estimate.low, estimate.high], [y, y], color=colour, lw=2, alpha=0.5, gid=gid)
            axes.plot([estimate.value], [y], color=colour, marker="o", ms=7, fillstyle=fill, gid=gid)
    axes.axvline(0.5, color=style.ink, lw=0.8, ls=":")
    names = [f"{pair.better}\nover {pair.worse}" for pair in pairs]
    axes.set(xlim=(-0.02, 1.02), ylim=(len(pairs) - 0.4, -0.6), yticks=range(len(pairs)), yticklabels=names)
    axes.set_xlabel("probability that a run of the first does better; 0.5 is a tie")
    _plain(axes, style)
    return figure


def overview(comparison: Comparison, y_label: str) -> bytes:
    """PNG of all tasks over frames and minutes, then of each task over frames; made to stand on white."""
    style = Style(comparison, svg=False)
    panels: list[tuple[str, Mapping[str, Line], str]] = []
    if len(comparison.tasks) > 1 and comparison.ranked:
        panels.append(("all tasks", comparison.over_frames(None), frames_label(comparison)))
        panels.append(("all tasks", comparison.over_minutes(None), "minutes"))
    for task in comparison.tasks:
        panels.append((task, comparison.over_frames(task), "frames"))
        if len(comparison.tasks) == 1:
            panels.append((task, comparison.over_minutes(task), "minutes"))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.0 * columns, 2.3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, lines, x_label) in zip(grid, panels, strict=False):
        draw_curves(axes, style, lines, x_label, y_label if axes.get_subplotspec().is_first_col() else "", {})
        axes.set_title(title, fontsize=FONT_SIZE, color=style.ink)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles = [
        grid[0].plot([], [], color=style.colour[name], ls=style.stroke[name], label=name)[0]
        for name in comparison.methods
    ]
    legend_below(figure, handles)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def legend_below(figure: Figure, handles: Sequence[Line2D]) -> Legend:
    """A legend under the panels, in as many columns, four at most, as the figure is wide enough for."""
    for columns in (4, 3, 2, 1):
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=FONT_SIZE
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    return legend


def frames_label(comparison: Comparison) -> str:
    return "frames" if comparison.same_budget else "share of each task's frames"


def svg(figure: Figure, description: str) -> str:
    """The figure as an inline SVG element: the page's font and colours, as wide as its place allows."""
    file = io.StringIO()
    # A salt of its own keeps ids of several figures on one page apart, and the same from one report to the next.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    label = html.escape(description)
    text = re.sub(
        r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>',
        lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{label}">',
        text,
    )
    text = re.sub(r"font: (?:\S+ )?([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", text)
    text = re.sub(r'id="method-(\d+)"', r'class="method method-\1"', text)
    for number, colour in enumerate(STAND_INS):
        text = text.replace(colour, f"var(--method-{number})")
    return text.replace(INK_STAND_IN, "var(--ink)").replace(GRID_STAND_IN, "var(--grid)")


def _plain(axes: Axes, style: Style) -> None:
    axes.grid(color=style.grid, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=FONT_SIZE, labelcolor=style.ink)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=style.ink, fontsize=FONT_SIZE)
