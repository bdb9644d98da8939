"""Draw the evaluation curves of runs into one picture: python -m mbrl.curves out.png runs/<task>/<agent>/<seed> ...

Success rate over frames on the left, over minutes on the right, one line a run, named after its folder. The numbers are
those of each run's eval.csv; nothing is smoothed.
"""

import csv
from pathlib import Path

from mbrl.command import command
from mbrl.logger import EVAL
from mbrl.settings import UserError


def read(folder: Path) -> dict[str, list[float]]:
    """Columns of a run's eval.csv. Raises UserError if there are none or a line is not whole."""
    path = folder / EVAL
    if not path.exists():
        raise UserError(f"{folder} is no run folder: it has no {EVAL}")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        columns = {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has a damaged line: {error}") from error
    if not columns:
        raise UserError(f"{path} holds no evaluation yet")
    return columns


def draw(folders: list[Path], out: Path) -> None:
    """Write the picture; its format follows from the name."""
    from matplotlib.figure import Figure  # slow to import, and no other command needs it

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    over_frames, over_time = figure.subplots(1, 2, sharey=True)
    for folder in folders:
        columns = read(folder)
        name = "/".join(folder.parts[-2:])
        minutes = [seconds / 60 for seconds in columns["wall_time_s"]]
        over_frames.plot(columns["frame"], columns["success_rate"], marker=".", label=name)
        over_time.plot(minutes, columns["success_rate"], marker=".", label=name)
    over_frames.set(xlabel="frames", ylabel="success rate", ylim=(-0.03, 1.03))
    over_time.set(xlabel="minutes")
    over_time.legend(frameon=False, fontsize="small", loc="lower right")
    for axes in (over_frames, over_time):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=150)


def main(words: list[str]) -> None:
    if len(words) < 2:
        raise UserError("usage: python -m mbrl.curves out.png <run folder> ...")
    draw([Path(word) for word in words[1:]], Path(words[0]))
    print(words[0])


if __name__ == "__main__":
    command(main)
