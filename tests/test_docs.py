"""The documents tell the truth: commands, keys, files, numbers and logged values that they name are there."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from mbrl import train
from mbrl.compare.compare import CompareSettings
from mbrl.data.data import DataSettings
from mbrl.experiment import planned
from mbrl.experiment.logger import EVAL_COLUMNS, TRAIN_COLUMNS
from mbrl.experiment.settings import flatten, load, load_plain, to_dict
from mbrl.export.export import ExportSettings
from mbrl.plan.settings import PlanSettings
from mbrl.play.play import PlayOptions, parts_of
from mbrl.predict.predict import PredictSettings
from mbrl.pretrain.pretrain import PretrainSettings
from mbrl.publish.publish import PublishOptions
from mbrl.study.study import Study, StudySettings
from mbrl.sweep import runs, search
from mbrl.verify import VerifyOptions
from world_model import IVideoGPT

ROOT = Path(__file__).resolve().parent.parent
PLAIN = {
    "compare": CompareSettings,
    "data": DataSettings,
    "export": ExportSettings,
    "play": PlayOptions,
    "plan": PlanSettings,
    "predict": PredictSettings,
    "pretrain": PretrainSettings,
    "study": StudySettings,
    "sweep": runs.SweepSettings,
    "publish": PublishOptions,
    "verify": VerifyOptions,
}
PRESETS = ("smoke", "small", "paper")
DOCUMENTS = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Every key of the agent and of the world model once, in seconds: episodes of 20 decisions, one evaluation, cloning.
TINY_RUN = """task=toy/reach agent=mbpo preset=smoke device=cpu demonstrations=1 episode_frames=40
    num_train_frames=160 num_seed_frames=80 eval_every_frames=160 log_every_frames=20 rollout_every_frames=40
    initial_model_updates=1 rollout_horizon=2 rollout_batch=4 initial_rollouts=4""".split()


# The documents that are about using the program; the others tell what was measured, of older versions too.
GUIDES = ("README.md", "docs/tutorial.md")


def read(*documents: str) -> str:
    return "\n".join(COMMENT.sub("", (ROOT / document).read_text(encoding="utf-8")) for document in documents)


def blocks(*languages: str, documents: Sequence[str] = GUIDES) -> list[str]:
    """The fenced blocks of these languages."""
    return [text for language, text in FENCE.findall(read(*documents)) if language in languages]


def spans(documents: Sequence[str] = GUIDES) -> list[str]:
    """Inline code."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", read(*documents)))


def commands() -> list[str]:
    """Every `make ...` of all documents that can be typed as it stands."""
    lines = [line for block in blocks("bash", documents=DOCUMENTS) for line in block.replace("\\\n", " ").splitlines()]
    found = [text.split(" #")[0].strip() for text in [*lines, *spans(DOCUMENTS)] if text.startswith("make ")]
    return [text for text in dict.fromkeys(found) if not re.search(r"<|\.\.\.|--help", text)]


def would_run(command: str) -> list[str]:
    """The overrides that `make` would hand to python."""
    # A make that runs these tests passes its own variables and flags down.
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k not in ("MFLAGS", *variables())}
    make, *overrides = shlex.split(command)
    done = subprocess.run([make, "-n", *overrides], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    python = [line for line in done.stdout.splitlines() if line.startswith(".venv/bin/python -m ")]
    return shlex.split(python[-1]) if python else []


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text()
    return {target for line in re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE) for target in line.split()}


def variables() -> set[str]:
    """What a user may set on make's command line."""
    return set(re.findall(r"\$\(([A-Z_]+)\)", (ROOT / "Makefile").read_text()))


def config_keys() -> set[str]:
    return set(flatten(to_dict(load(["device=cpu"]))))


def plain_keys() -> set[str]:
    """Keys of the commands whose settings are a file of their own."""
    return {key for name, cls in PLAIN.items() for key in flatten(to_dict(load_plain(cls, name)))}


def test_readme_shows_the_commands_of_its_first_screen():
    assert {"make train TASK=coffee-push", "make test", "make play TASK=push"} <= set(commands())
    assert len(read("README.md").split()) <= 900


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_documents_are_understood(command):
    """The target exists, and what arrives behind two layers of quotes are settings."""
    assert command.split()[1] in targets()
    overrides = would_run(command)
    if overrides[2:3] == ["mbrl.sweep"]:
        asked, planned = runs.plan([*overrides[3:], "device=cpu"])
        assert search.parse(asked.search) if asked.search else len(planned) > 1
    elif overrides[2:3] == ["mbrl.play"]:
        own, of_run = parts_of(overrides[3:])
        load_plain(PlayOptions, "play", own)
        load([*of_run, "device=cpu"])
    elif overrides[2:3] == ["mbrl.study"]:
        Study(overrides[3:])
    elif overrides[2:3] and overrides[2].removeprefix("mbrl.") in PLAIN:
        name = overrides[2].removeprefix("mbrl.")
        load_plain(PLAIN[name], name, overrides[3:])
    elif overrides[2:3] and overrides[2].startswith("mbrl."):
        load([*overrides[3:], "device=cpu"])


def test_keys_and_variables_of_the_guides_exist():
    code = "\n".join([*blocks("bash"), *spans()])
    keys = set(re.findall(r"(?<![\w.(])([a-z][\w.]*)=", code))
    keys |= {span for span in spans() if re.fullmatch(r"(?:drqv2|world_model)\.[\w.]+|[a-z]\w*_frames", span)}
    assert keys - config_keys() - plain_keys() - {planned.KEY} == set()
    assert set(re.findall(r"\b([A-Z_]{3,})=", code)) <= variables()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = COMMENT.sub("", (ROOT / document).read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [link.split("#")[0] for link in links if "://" not in link]
    assert [link for link in local if link and not ((ROOT / document).parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document):
    text = FENCE.sub("", COMMENT.sub("", (ROOT / document).read_text(encoding="utf-8")))
    paths = re.findall(r"`((?:agents|benchmarks|configs|docs|envs|mbrl|tests|world_model)/[\w./-]+\.\w+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_a_measured_figure_stands_in_one_document() -> None:
    """Numbers of four digits or more with a point, and rows of tables: two copies would not stay equal."""
    places: dict[str, set[str]] = {}
    for document in sorted(set(DOCUMENTS) - {"docs/keys.md"}):
        text = re.sub(r"`[^`\n]*`|\]\([^)]*\)|https?://\S+|arXiv \S+", "", FENCE.sub("", read(document)))
        figures = [figure for figure in re.findall(r"(?<![\w.,-])\d[\d,]*\.\d+(?![\w.])", text) if len(figure) > 4]
        rows = [line for line in text.splitlines() if line.startswith("|") and len(re.findall(r"\d", line)) > 4]
        for said in {*figures, *rows}:
            places.setdefault(said, set()).add(document)
    assert {said: where for said, where in places.items() if len(where) > 1} == {}


def test_table_of_presets():
    rows = [line.strip("|\n").split("|") for line in read("docs/tutorial.md").splitlines() if line.startswith("|")]
    chosen = {preset: load([f"preset={preset}", "device=cpu"]) for preset in PRESETS}
    values = {preset: flatten(to_dict(settings)) for preset, settings in chosen.items()}
    for name, *cells in rows:
        key = re.match(r"\s*`([\w.]+)`", name)
        if key is None or len(cells) != len(PRESETS) or key[1] not in values["small"]:
            continue
        for preset, cell in zip(PRESETS, cells, strict=True):
            value, told = values[preset][key[1]], cell.strip()
            if told != "by task":
                written = f"{value:,}".removesuffix(".0") if isinstance(value, int | float) else str(value)
                assert told == written, f"{preset} {key[1]}"


def test_sizes_of_the_presets():
    row = next(line for line in read("docs/tutorial.md").splitlines() if line.startswith("| tokenizer + transformer"))
    told = re.findall(r"([\d.]+) \+ ([\d.]+) M", row)
    tokens = re.findall(
        r"(\d+) \+ (\d+)", next(line for line in read("docs/tutorial.md").splitlines() if line.startswith("| tokens"))
    )
    for preset, sizes, counts in zip(PRESETS, told, tokens, strict=True):
        world = load([f"preset={preset}", "device=cpu"]).world_model
        with torch.device("meta"):
            model = IVideoGPT(world.tokenizer, world.transformer, 4)
        for part, size in zip((model.tokenizer, model.transformer), sizes, strict=True):
            millions = sum(parameter.numel() for parameter in part.parameters()) / 1e6
            assert f"{millions:.{len(size.split('.')[1])}f}" == size, preset
        assert (model.layout.context_tokens, model.layout.dynamics_tokens) == tuple(map(int, counts)), preset


def test_snippets_of_the_guides_run():
    """On the toy world, so that no OpenGL is needed."""
    first, world_model, environment = (
        next(block for block in blocks("python", documents=[document]) if part in block)
        for document, part in (
            ("README.md", "IVideoGPT"),
            ("docs/tutorial.md", "IVideoGPT"),
            ("docs/tutorial.md", "envs.make"),
        )
    )
    names: dict = {}
    exec(first, names)
    assert names["dream"].frames.shape == (2, 6, 3, 64, 64)
    exec(environment.replace("coffee-push", "toy/reach"), names)
    assert names["obs"].shape == (9, 64, 64)
    exec(world_model, names)
    assert names["images"].shape == names["frames"].shape
    assert names["dream"].frames.shape == (2, 6, 3, 64, 64)
    assert names["dream"].rewards.shape == (2, 6)


def test_the_notebook_runs_and_shows_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    notebook = json.loads(read("docs/tour.ipynb"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert names["dream"].frames.shape == (1, 16, 3, 64, 64)
    assert (names["left"].frames - names["right"].frames).abs().max() > 0.1
    assert names["promised"].max() > names["promised"].min()
    images = [output for cell in cells for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert len(images) == 3


# -- the glossary -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> set[str]:
    """Every tag of a tiny run of the whole program, videos included."""
    root = tmp_path_factory.mktemp("runs")
    with contextlib.redirect_stderr(io.StringIO()):
        train.main([*TINY_RUN, f"run_root={root}"])
    folder = root / "toy/reach/mbpo/1"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    videos = {re.sub(r"-\d+$", "", path.stem).replace("-", "/", 1) for path in (folder / "videos").iterdir()}
    return {tag for line in lines for tag in line} - {"frame", "wall_time_s"} | videos


def glossary() -> dict[str, str]:
    """Tag -> its row."""
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+/[a-z0-9_]+)` (\|.*)$", text, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a tag is explained twice"
    return dict(rows)


def test_every_logged_value_is_in_the_glossary(logged):
    assert {"eval/success_rate", "agent/bc_loss", "world_model/dream_mse", "imagined/dream"} <= logged
    assert logged - glossary().keys() == set()


def test_the_glossary_holds_nothing_else(logged):
    """A row for a value that this run cannot log says what it comes with."""
    assert {tag for tag, row in glossary().items() if tag not in logged and "Only with" not in row} == set()


def test_columns_and_keys_of_the_glossary_exist():
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    for columns in (EVAL_COLUMNS, TRAIN_COLUMNS):
        assert ", ".join(f"`{column}`" for column in columns) in re.sub(r"\s+", " ", text)
    known = config_keys()
    named = set(re.findall(r"`((?:world_model|drqv2|dreamerv3)\.[\w.]+|\w+_frames|\w+_episodes)`", text))
    assert named
    assert named - known == set()
