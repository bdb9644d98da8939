"""`--help` of every command, and the list of commands and tasks: read from code and configs, so never out of date."""

import inspect
import re
from pathlib import Path

import pytest
from tiny import Command, Shell

import envs
from benchmarks import bench
from mbrl import __main__ as listing
from mbrl import evaluate, resume, tasks, train, verify
from mbrl.compare import compare
from mbrl.data import data
from mbrl.doctor import doctor
from mbrl.experiment.settings import CONFIG_DIR, flatten, load, to_dict
from mbrl.experiment.usage import entries, verbs
from mbrl.plan import plan
from mbrl.play import play
from mbrl.predict import predict
from mbrl.pretrain import pretrain
from mbrl.publish import publish
from mbrl.study import study
from mbrl.sweep import sweep
from world_model.ivideogpt.config import LearnerConfig
from world_model.onestep import OneStepLearning

MODULES = (
    bench,
    compare,
    data,
    doctor,
    evaluate,
    plan,
    play,
    predict,
    pretrain,
    publish,
    resume,
    study,
    sweep,
    tasks,
    train,
    verify,
)


def main_of(module):
    return getattr(module, "main", None) or module.evaluate


def line_of(out: str, key: str) -> str:
    [line] = re.findall(rf"^  {re.escape(key)}=.*$", out, re.MULTILINE)
    return line


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_help(typed: Command, module, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = typed(main_of(module), "--help")
    assert (code, error) == (0, "")
    assert out.startswith(module.__doc__.split("\n")[0])
    for key in flatten_file(module.__name__.split(".")[-1]):
        assert line_of(out, key)
    assert list(tmp_path.iterdir()) == [], "it only tells"


def test_help_in_short(typed: Command) -> None:
    assert typed(train.main, "-h") == typed(train.main, "--help")


def flatten_file(verb: str) -> list[str]:
    file = CONFIG_DIR / f"{verb}.yaml"
    return [key for key, _ in entries(file)] if file.is_file() else ["task", "drqv2.lr", "world_model.learner.decay"]


def test_values_comments_and_where_they_come_from(typed: Command) -> None:
    _, out, _ = typed(train.main, "preset=small", "--help", "task=door-lock", "batch_size=7", "device=cpu")
    assert re.search(r"threads=0 +torch threads; 0 leaves torch's choice$", line_of(out, "threads"))
    assert re.search(r"demonstrations=0 +\[tasks/door-lock.yaml\]", line_of(out, "demonstrations"))
    assert re.search(r"drqv2.lr=0.0003 +\[presets/small.yaml\]", line_of(out, "drqv2.lr"))
    assert re.search(r"batch_size=7 +\[typed\]", line_of(out, "batch_size"))
    assert re.search(r"block_out_channels=\[32,64,64\] ", line_of(out, "world_model.tokenizer.block_out_channels"))
    values = flatten(to_dict(load(["preset=small", "task=door-lock", "batch_size=7", "device=cpu"])))
    assert {key for key in values if re.search(rf"^  {re.escape(key)}=", out, re.MULTILINE)} == set(values)


def test_a_comment_over_two_lines(typed: Command) -> None:
    _, out, _ = typed(pretrain.main, "--help", "schedule=paper-transformer")
    line = line_of(out, "cached_clips")
    assert re.search(r"cached_clips=0 +\[schedules/paper-transformer.yaml\]", line)
    assert "is tokenized once; 0 draws and tokenizes every batch anew" in line


@pytest.mark.parametrize("config", [LearnerConfig, OneStepLearning])
def test_a_key_of_a_learner_is_explained_in_one_place(typed: Command, config: type) -> None:
    """Beside its value in config.yaml; in pretrain.yaml stands at most why a value is another."""
    assert "#" not in inspect.getsource(config)
    _, out, _ = typed(pretrain.main, "--help")
    assert line_of(out, "learner.segment_length").endswith("  frames of such a clip")
    assert line_of(out, "onestep.mse_weight").endswith("  beside L1")
    assert line_of(out, "learner.reward_weight").endswith("  at 1 the unknown rewards drown the tokens for long")


def test_commands_with_keys_of_their_own_show_both(typed: Command) -> None:
    _, out, _ = typed(sweep.main, "task=hammer,coffee-push", "jobs=2", "--help")
    assert line_of(out, "jobs").startswith("  jobs=2")
    assert "[typed]" in line_of(out, "jobs")
    assert line_of(out, "task").startswith("  task=hammer")


def test_a_mistake_beside_help_is_still_one(typed: Command) -> None:
    code, out, error = typed(train.main, "--help", "sed=2")
    assert (code, out) == (2, "")
    assert "unknown key sed; did you mean 'seed'" in error


def test_list_of_commands(typed: Command, shell: Shell, project_root: Path) -> None:
    code, out, _ = typed(listing.main)
    assert code == 0
    for name, line in verbs(project_root / "mbrl"):
        assert re.search(rf"^python -m mbrl.{name} +{re.escape(line)}$", out, re.MULTILINE)
    started = set(re.findall(r"-m mbrl\.(\w+)", (project_root / "Makefile").read_text()))
    assert started <= set(dict(verbs(project_root / "mbrl")))
    assert typed(listing.main, "--help")[1] == out
    assert "write python -m mbrl.train" in typed(listing.main, "train")[2]
    assert "did you mean 'train'" in typed(listing.main, "trian")[2]
    assert shell("__main__").stdout == out


def test_list_of_tasks(typed: Command) -> None:
    code, out, _ = typed(tasks.main, "preset=paper", "device=cpu")
    assert code == 0
    listed = re.findall(r"[\w/-]+", out)
    assert set(envs.task_names()) <= set(listed)
    assert re.search(r"^    door-lock +\+10 for success, no demonstrations, 150,000 frames$", out, re.MULTILINE)
    assert "dm_control, 49 tasks: no bonus for success, no demonstrations, 1,000,000 frames" in out
    assert "no bonus for success, no demonstrations" in typed(tasks.main, "protocol=plain")[1].split("dm_control")[0]
