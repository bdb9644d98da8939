"""The report: right or not written. How runs are aligned; the page and the tables themselves."""

import csv
import html.parser
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic import compared, overrides, run, two_tasks
from tiny import Command, copy_of

from mbrl.compare import compare as compare_module
from mbrl.compare import figures
from mbrl.compare.compare import main
from mbrl.compare.stats import iqm
from mbrl.experiment.video import encode_gif

SCHEDULE = "drqv2.bc_schedule=linear(1,0,9)"


@pytest.fixture
def runs(run_root: Path) -> Path:
    return two_tasks(run_root)


# -- the report --------------------------------------------------------------------------------------------------------


def test_a_report(typed: Command, runs: Path) -> None:
    video = runs / "hammer" / "mbpo" / "5" / "videos"
    video.mkdir()
    (video / "eval-episodes-000003000.gif").write_bytes(encode_gif(np.zeros((2, 3, 8, 8), np.uint8)))
    code, out, error = typed(main, *overrides(runs, "name=first"))
    assert (code, error) == (0, "")
    folder = runs / "reports" / "first"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["first"]
    assert {path.name for path in folder.iterdir()} == {
        "index.html",
        "table.csv",
        "table.md",
        "table.tex",
        "curves.png",
        "commands.sh",
    }
    assert out.splitlines()[-1] == str(folder / "index.html")
    assert "mbpo wins: a run of mbpo ends above one of drqv2 with probability 1.00" in out

    with open(folder / "table.csv", newline="") as file:
        table = {(row["task"], row["method"]): row for row in csv.DictReader(file)}
    assert set(table) == {
        (task, method) for task in ("all tasks", "hammer", "coffee-push") for method in ("mbpo", "drqv2")
    }
    hammer = table["hammer", "mbpo"]
    assert float(hammer["score"]) == pytest.approx(0.8)  # of .6 .7 .8 .9 1 the middle three
    assert float(hammer["score_low"]) < 0.8 < float(hammer["score_high"])
    assert float(hammer["area"]) == pytest.approx(0.4)  # of 0, half, all: a straight line
    assert (hammer["seeds"], hammer["episodes"], hammer["frame"]) == ("5", "100", "3000")
    # At 50 % with the second evaluation: 1.0 alone; with the third the others.
    assert (hammer["frames_to_50"], hammer["reached_50"], hammer["minutes_to_50"]) == ("3000", "5/5", "30")
    assert (hammer["frames_to_80"], hammer["reached_80"]) == ("3000", "3/5")
    assert (table["hammer", "drqv2"]["frames_to_50"], table["hammer", "drqv2"]["reached_50"]) == ("inf", "0/5")
    whole = table["all tasks", "mbpo"]
    both = np.array([0.6, 0.7, 0.8, 0.9, 1.0, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert float(whole["score"]) == pytest.approx(float(iqm(both)))
    assert whole["protocol"] == "protocol bonus_demos, action repeat 2"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "table.md").read_text().count("\n") == 2 + len(table)
    latex = (folder / "table.tex").read_text()
    assert latex.count(r" \\") == 1 + len(table)
    assert not re.search(r"(?<!\\)%(?! needs)", latex)

    # What makes the runs again, with the commit of each.
    commands = (folder / "commands.sh").read_text().splitlines()
    made = [shlex.split(line, comments=True) for line in commands[1:]]
    assert len(made) == 20
    assert ["python", "-m", "mbrl.train", "task=hammer", "agent=mbpo", "seed=5", SCHEDULE] in made
    assert commands[1].endswith("# commit 0123456789")
    assert sum(line.endswith("# commit 0123456789, with changes") for line in commands) == 4
    page = (folder / "index.html").read_text()
    assert "python -m mbrl.train task=hammer agent=mbpo seed=5" in page


def test_scored_by_return(typed: Command, run_root: Path) -> None:
    run(run_root, "hammer", "mbpo", 1, [0.25, 0.5])  # returns 25 and 50
    run(run_root, "hammer", "drqv2", 1, [0.1, 0.2])
    run(run_root, "dm_control/walker-walk", "mbpo", 1, [0.5, 1.0], success_bonus=0.0, demonstrations=0)
    by_return = compared(run_root, score="return")[0]
    assert by_return.cells["hammer", "mbpo"].scores.tolist() == [[0.5, 1.0]]
    assert by_return.cells["hammer", "drqv2"].scores.tolist() == [[0.2, 0.4]]
    assert by_return.cells["dm_control/walker-walk", "mbpo"].scores.tolist() == [[0.05, 0.1]]
    assert compared(run_root)[0].cells["hammer", "mbpo"].scores.tolist() == [[0.25, 0.5]]
    code, _, _ = typed(main, *overrides(run_root, "score=return", "task_names=[hammer]", "name=y"))
    assert code == 0
    table = (run_root / "reports" / "y" / "table.md").read_text()
    assert "return ÷ highest return" in table
    assert "success rate" not in table


class Page(html.parser.HTMLParser):
    """Collects what a page would load, and whether its tags fit together."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "img", "br"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(typed: Command, runs: Path) -> None:
    for seed in (1, 3, 5):
        videos = runs / "hammer" / "mbpo" / str(seed) / "videos"
        videos.mkdir()
        (videos / "eval-episodes-000003000.gif").write_bytes(encode_gif(np.zeros((2, 3, 8, 8), np.uint8)))
    typed(main, *overrides(runs))
    text = (runs / "reports" / "latest" / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    # Inside the file, or a mark in the same file.
    assert [load for load in page.loads if not load.startswith(("data:", "#"))] == []
    assert "url(http" not in text
    assert page.tags.count("svg") == 4 + 2  # two learning curves, profile, improvement; each task
    assert page.tags.count("img") == 2
    assert "best of mbpo: hammer, seed 5, 1.00" in text
    assert "worst of mbpo: hammer, seed 1, 0.60" in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    # Every colour of a method comes from the page, so that it can be light or dark.
    assert not [colour for colour in figures.STAND_INS if colour in text]
    assert "var(--method-0)" in text


def test_what_a_page_shows_is_escaped(typed: Command, run_root: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    run(run_root / "a & b", "hammer", "mbpo", 1, [0.5, 0.6], variant=evil)
    assert typed(main, *overrides(run_root))[0] == 0
    text = (run_root / "reports" / "latest" / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert "img" not in page.tags
    assert "&lt;img src=x" in text
    assert "a &amp; b/hammer" in text
    assert "{{" not in text
    assert "{%" not in text


@pytest.mark.parametrize("name", ["mbpo", "mbpo-with-one-thread", "mbpo-with-a-very-long-name-of-its-variant"])
def test_the_legend_is_as_wide_as_the_image_at_most(name: str) -> None:
    figure = Figure(figsize=(6, 3), layout="constrained")
    handles = [figure.subplots().plot([], [], label=f"{name}-{i}")[0] for i in range(6)]
    legend = figures.legend_below(figure, handles)
    assert figure.legends == [legend]
    figure.draw_without_rendering()
    extent = legend.get_window_extent()
    assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width


def test_a_report_is_replaced_whole_or_not_at_all(typed: Command, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(main, *overrides(runs, "task_names=[hammer]"))
    before = {path: path.read_bytes() for path in (runs / "reports" / "latest").iterdir()}

    def broken(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(figures, "overview", broken)
        code, _, error = typed(main, *overrides(runs, "task_names=[coffee-push]"))
    assert code == 2
    assert "disk is full" in error
    assert {path: path.read_bytes() for path in (runs / "reports" / "latest").iterdir()} == before
    assert [path.name for path in (runs / "reports").iterdir()] == ["latest"]
    typed(main, *overrides(runs, "task_names=[coffee-push]"))
    assert "hammer" not in (runs / "reports" / "latest" / "table.csv").read_text()
    assert [path.name for path in (runs / "reports").iterdir()] == ["latest"]


def test_a_folder_that_is_no_report_is_not_replaced(typed: Command, runs: Path) -> None:
    (runs / "reports" / "mine").mkdir(parents=True)
    code, _, error = typed(main, *overrides(runs, "name=mine"))
    assert code == 2
    assert "is no report: set another NAME" in error


def test_a_real_run(typed: Command, finished: Path, run_root: Path) -> None:
    folder, _ = copy_of(finished, run_root)
    code, out, error = typed(main, *overrides(run_root, "export=dreamerv3"))
    assert (code, error) == (0, "")
    assert "one seed only is an anecdote and has no interval: mbpo on every task" in out
    assert "mbpo has nothing to be weighed against" in out
    report = run_root / "reports" / "latest"
    assert len(list((report / "dreamerv3").glob("run-toy_reach-mbpo-1/scores.jsonl"))) == 1
    assert "data:image/gif" in (report / "index.html").read_text()
    last = (folder / "eval.csv").read_text().splitlines()[-1].split(",")
    with open(report / "table.csv", newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["frame"], float(row["score"]), row["score_low"]) == (last[0], float(last[2]), "nan")


# -- alignment ---------------------------------------------------------------------------------------------------------


def test_runs_that_ended_early_shorten_the_comparison_or_stay_out(run_root: Path) -> None:
    for seed in (1, 2):
        run(run_root, "hammer", "mbpo", seed, [0.2, 0.4, 0.6])
        run(run_root, "hammer", "drqv2", seed, [0.1, 0.3, 0.5][: 4 - seed])
    comparison, notes = compared(run_root)
    assert comparison.ends == {"hammer": 2000}
    assert any("ARGS=frames=3000 leaves out the runs that do not" in note for note in notes)
    comparison, notes = compared(run_root, frames=3000)
    assert len(comparison.cells["hammer", "drqv2"].curves) == 1
    assert any("2 ends at 2,000 frames and was left out" in note for note in notes)


def test_smoke_runs_are_left_out_beside_others(run_root: Path) -> None:
    smoke = run(run_root, "hammer", "mbpo", 1, [0.0, 0.0], every=500, preset="smoke", episode_frames=200)
    assert compared(run_root)[0].ends == {"hammer": 1000}
    run(run_root, "hammer", "drqv2", 1, [0.5, 0.6], episode_frames=None)
    comparison, notes = compared(run_root)
    assert (comparison.methods, comparison.ends) == (("drqv2",), {"hammer": 2000})
    assert f"runs of preset=smoke were left out: {smoke}" in notes
    comparison, _ = compared(run_root, runs=(str(smoke), str(run_root)))  # null is the suite's own 200 frames
    assert comparison.methods == ("drqv2", "mbpo")


def test_different_grids_are_interpolated_and_told(run_root: Path) -> None:
    run(run_root, "hammer", "mbpo", 1, [0.0, 0.2, 0.4, 0.6], every=1000)
    run(run_root, "hammer", "mbpo", 2, [0.1, 0.9], every=2000, eval_every_frames=2000)
    comparison, notes = compared(run_root)
    cell = comparison.cells["hammer", "mbpo"]
    assert cell.frames.tolist() == [2000, 4000]
    assert cell.scores.tolist() == [[0.2, 0.6], [0.1, 0.9]]
    assert any("were evaluated at different frames" in note for note in notes)
    run(run_root, "hammer", "mbpo", 3, [0.3], every=1500)
    with pytest.raises(ValueError, match="first evaluated at 2,000 frames, after the end of the comparison at 1,500"):
        compared(run_root)


@pytest.mark.parametrize(("ours", "theirs"), [(2, 2), (1, 3), (3, 3), (3, 4), (2, 8)])
def test_too_few_seeds_carry_no_verdict(typed: Command, run_root: Path, ours: int, theirs: int) -> None:
    for agent, seeds, height in (("mbpo", ours, 1.0), ("drqv2", theirs, 0.0)):
        for seed in range(1, seeds + 1):
            run(run_root, "hammer", agent, seed, [height / 2, height])
    code, out, error = typed(main, *overrides(run_root))
    assert (code, error) == (0, "")
    assert f"No verdict: {ours} of mbpo and {theirs} of drqv2 are too few runs to tell" in out
    assert "wins" not in out
    assert "faster" not in out
    text = (run_root / "reports" / "latest" / "index.html").read_text()
    assert "[1.00, 1.00]" not in text.split("<h1>")[1].split("</h1>")[0]


def test_few_seeds_and_other_machines_are_told(run_root: Path) -> None:
    for seed in (1, 2, 3):
        run(run_root, "hammer", "mbpo", seed, [0.5, 0.6], cpus=2 * seed)
    run(run_root, "hammer", "drqv2", 1, [0.5, 0.6])
    for seed in (1, 2):
        run(run_root, "hammer", "uniform", seed, [0.5, 0.6])
    _, notes = compared(run_root)
    assert any(
        note.startswith("fewer than 5 seeds, so intervals come out too narrow: mbpo on every task") for note in notes
    )
    assert any("one seed only is an anecdote" in note and note.endswith("drqv2 on every task") for note in notes)
    assert any(note == "two seeds only have no interval: uniform on every task" for note in notes)
    assert any("minutes come from different machines" in note for note in notes)


GUIDED = {"drqv2": {"guide_schedule": "linear(1.0,0.5,8000)"}}
GIVEN: dict[str, dict[str, Any]] = {
    "mbpo": {"world_model": {"pretrained": "world_model/pretrained/small"}, "drqv2": {"guide_schedule": "0"}},
    "mbpo-scratch": {"world_model": {"pretrained": "none"}} | GUIDED,
    "mbpo-hub": {"world_model": {"pretrained": "some/weights"}, "drqv2": {"guide_schedule": "0"}},
    "mbpo-true": {"world_model": {"pretrained": "none", "kind": "simulator"}, "drqv2": {"guide_schedule": "0"}},
    "drqv2": GUIDED,
    "dreamerv3": {"world_model": {"pretrained": "some/weights"}} | GUIDED,
}
SAID = """methods had unequal information: dreamerv3: 5 demonstrations in the replay buffer;
    drqv2, mbpo-scratch: behaviour cloning, 5 demonstrations in the replay buffer;
    mbpo: in-domain pre-training of the world model (world_model/pretrained/small), 5 demonstrations in the replay
    buffer; mbpo-hub: pre-training of the world model (some/weights), 5 demonstrations in the replay buffer;
    mbpo-true: the simulator itself as world model, 5 demonstrations in the replay buffer"""


def test_unequal_information_is_told(run_root: Path) -> None:
    for method, config in GIVEN.items():
        agent, _, variant = method.partition("-")
        run(run_root / method, "hammer", agent, 1, [0.5, 0.6], variant=variant, **config)
    _, notes = compared(run_root)
    assert " ".join(SAID.split()) in notes
    _, notes = compared(run_root / "drqv2")
    assert not any("information" in note for note in notes)
    run(run_root / "drqv2", "hammer", "uniform", 1, [0.5, 0.6], demonstrations=5)
    _, notes = compared(run_root / "drqv2")
    assert any("; uniform: 5 demonstrations" in note for note in notes)


def test_no_information_at_all_is_told_as_that(run_root: Path) -> None:
    run(run_root, "door-lock", "mbpo", 1, [0.5, 0.6], demonstrations=0)
    run(run_root, "door-lock", "dreamerv3", 1, [0.5, 0.6], demonstrations=0)
    _, notes = compared(run_root)
    assert (
        "methods had unequal information: dreamerv3: own experience only; "
        "mbpo: in-domain pre-training of the world model (world_model/pretrained/small)"
    ) in notes


def test_tasks_of_other_lengths_are_joined_by_share(run_root: Path) -> None:
    for seed, height in ((1, 0.2), (2, 0.6)):
        run(run_root, "hammer", "mbpo", seed, [0.0, height])
        run(run_root, "coffee-push", "mbpo", seed, [0.0, 0.0, 0.0, height])
    comparison, _ = compared(run_root)
    assert not comparison.same_budget
    line = comparison.over_frames(None)["mbpo"]
    assert line.x[[0, -1]].tolist() == [0.5, 1.0]
    assert line.estimate.value[-1] == pytest.approx(0.4)
    by_time = comparison.over_minutes("hammer")["mbpo"]
    assert by_time.x[[0, -1]].tolist() == [10, 20]
    assert by_time.estimate.value[[0, -1]].tolist() == pytest.approx([0, 0.4])


def test_only_shared_tasks_count_together(runs: Path) -> None:
    run(runs, "door-lock", "mbpo", 1, [0.0, 0.0, 0.0])
    comparison, notes = compared(runs)
    assert comparison.shared == ("coffee-push", "hammer")
    assert any("not every method has runs of door-lock" in note for note in notes)
    assert len(comparison.rows()) == 2 + 5


def test_nothing_shared_still_makes_a_report(typed: Command, run_root: Path) -> None:
    run(run_root, "hammer", "mbpo", 1, [0.5])
    run(run_root, "door-lock", "drqv2", 1, [0.5], demonstrations=0)
    code, out, error = typed(main, *overrides(run_root))
    assert (code, error) == (0, "")
    assert "No task has runs of every method" in out


def test_dm_control_is_scored_by_its_return(run_root: Path) -> None:
    run(run_root, "dm_control/walker-walk", "drqv2", 1, [0.5, 1.0], success_bonus=0.0, demonstrations=0)
    comparison, _ = compared(run_root)
    assert comparison.cells["dm_control/walker-walk", "drqv2"].scores.tolist() == [[0.05, 0.1]]  # of 50 and 100
    assert compare_module.score_name(comparison) == "return ÷ highest return"
