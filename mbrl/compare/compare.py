"""Compare runs: `make compare [TASKS=...] [RUNS=...] [NAME=...]`, python -m mbrl.compare key=value ...

Who wins, and how sure are we? Writes a folder, runs/reports/<name>: index.html to look at, the table as table.csv,
table.md and table.tex, curves.png, and commands.sh, which makes each run again. Every key stands in
configs/compare.yaml. A report is written whole or not at all; what does not belong together is refused (see
`mbrl/compare/results.py`), what weakens a number is said beside it.
"""

import dataclasses
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import envs
from mbrl.compare import figures, foreign, page, results, tables
from mbrl.compare.comparison import Comparison, Note, compare
from mbrl.compare.results import Curve, NothingThere
from mbrl.experiment.run import SMOKE
from mbrl.experiment.settings import Folder, Name, Positive, Range, UserError, load_plain


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    task_names: tuple[str, ...]
    runs: tuple[Folder, ...]
    name: Name
    out: Folder
    score: Literal["auto", "return"]
    frames: Positive | None
    export: Literal["none", "dreamerv3"]
    reps: Annotated[int, Range(100, 1e6)]


def read(settings: CompareSettings, note: Note) -> list[Curve]:
    """All curves of the wanted tasks. Raises UserError, one line, for anything that cannot be read or compared."""
    try:
        wanted = frozenset(envs.canonical(task) for task in settings.task_names)
    except envs.UnknownTask as error:
        raise UserError(str(error)) from error
    named, found, files = results.find(settings.runs, Path(settings.out))
    curves = [results.read_run(folder, note) for folder in named]
    for folder in found:
        try:
            curves.append(results.read_run(folder, note))
        except NothingThere as error:
            note(f"{error}: left out")
    curves = [curve for curve in curves if not wanted or curve.task in wanted]
    # Those learn nothing, and are so short that all others would be compared where they end.
    smoke = [curve for curve in curves if curve.config.get("preset") == SMOKE and curve.source not in named]
    if smoke and len(smoke) < len(curves):
        note(f"runs of preset=smoke were left out: {', '.join(str(curve.source) for curve in smoke)}")
        curves = [curve for curve in curves if curve not in smoke]
    # Of other people's many tasks, those that ours were run on.
    of_interest = wanted or frozenset(curve.task for curve in curves)
    for path in files:
        published = foreign.read_file(path, of_interest, note)
        if published is None and str(path) in settings.runs:
            raise UserError(f"{path} is no file of results known here; mbrl/compare/foreign.py says which are")
        if not published and str(path) in settings.runs:
            raise UserError(f"{path} has no run of {', '.join(sorted(of_interest)) or 'a task that is known here'}")
        curves += published or []
    missing = wanted - {curve.task for curve in curves}
    if missing:
        raise UserError(f"no run of {', '.join(sorted(missing))} in {', '.join(settings.runs)}")
    if not curves:
        raise UserError(f"no run with an evaluation in {', '.join(settings.runs)}")
    results.check(curves)
    return results.by_return(curves, note) if settings.score == "return" else curves


def write(comparison: Comparison, notes: Sequence[str], settings: CompareSettings, made_by: str) -> Path:
    """The report's folder, made under another name and renamed when it is whole."""
    target = Path(settings.out) / settings.name
    if target.exists() and not (target / "index.html").exists():
        raise UserError(f"{target} is no report: set another NAME, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    score, rows = score_name(comparison, settings.score), comparison.rows()
    with tempfile.TemporaryDirectory(prefix=f".{settings.name}-", dir=target.parent) as scratch:
        folder, before = Path(scratch) / "new", Path(scratch) / "old"
        folder.mkdir()
        (folder / "index.html").write_text(page.document(comparison, notes, score, made_by), encoding="utf-8")
        (folder / "table.csv").write_text(tables.as_csv(rows), encoding="utf-8")
        (folder / "table.md").write_text(tables.as_markdown(rows, score), encoding="utf-8")
        (folder / "table.tex").write_text(tables.as_latex(rows, score), encoding="utf-8")
        (folder / "curves.png").write_bytes(figures.overview(comparison, score))
        (folder / "commands.sh").write_text(commands(comparison), encoding="utf-8")
        if settings.export == "dreamerv3":
            curves = [curve for cell in comparison.cells.values() for curve in cell.curves if curve.ours]
            foreign.write_dreamerv3(curves, folder / "dreamerv3")
        if target.exists():
            os.replace(target, before)
        os.replace(folder, target)
        shutil.rmtree(before, ignore_errors=True)
    return target


def commands(comparison: Comparison) -> str:
    """What makes each run of ours again, a line each."""
    ours = [curve for cell in comparison.cells.values() for curve in cell.curves if curve.ours]
    lines = [curve.command or f"# {curve.source}: its command was not kept" for curve in ours]
    head = "# Each run of the report, and its commit; on another machine or number of threads figures can differ."
    return "".join(f"{line}\n" for line in [head, *lines])


def score_name(comparison: Comparison, score: str = "auto") -> str:
    by_success = {envs.suite_of(task).reports_success for task in comparison.tasks}
    if by_success == {False} or score == "return":
        return "return ÷ highest return"
    return "success rate" if by_success == {True} else "score"


def main(overrides: list[str]) -> None:
    settings = load_plain(CompareSettings, "compare", overrides)
    notes: list[str] = []
    curves = read(settings, notes.append)
    comparison = compare(curves, notes.append, settings.frames, settings.reps)
    made_by = shlex.join(["python", "-m", "mbrl.compare", *overrides])
    folder = write(comparison, notes, settings, made_by)
    for note in notes:
        print(f"note: {note}")
    print(*page.verdict(comparison))
    print(folder / "index.html")
