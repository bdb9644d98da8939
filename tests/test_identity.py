"""Which keys tell two runs apart: those that their agent uses, with defaults for keys newer than a run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic import compared
from tiny import Command, copy_of, different, tiny, train

from mbrl import evaluate, resume
from mbrl.compare.results import given, read_run
from mbrl.experiment.identity import FREE_KEYS, UNUSED, differences, uses, with_defaults
from mbrl.experiment.run import Run, is_finished, run_folder, stored_settings
from mbrl.experiment.settings import CONFIG_DIR, Settings, UserError, flatten, load, to_dict

PUBLISHED = CONFIG_DIR.parent / "runs" / "published"


def edit(folder: Path, **changed: Any) -> None:
    """Set keys of a stored config, or take those away that are None."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in changed.items():
        *sections, name = key.split("__")
        part = config
        for section in sections:
            part = part[section]
        part[name] = value
        if value is None:
            del part[name]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_names_agents_and_keys_that_exist() -> None:
    assert set(UNUSED) <= {path.stem for path in (CONFIG_DIR / "agents").glob("*.yaml")}
    assert set().union(*UNUSED.values()) <= set(to_dict(load(["device=cpu"])))


@pytest.mark.parametrize(
    ("key", "agents"),
    [
        ("drqv2.lr", {"mbpo", "drqv2", "new"}),
        ("batch_size", {"mbpo", "drqv2", "new"}),
        ("dreamerv3.agc", {"dreamerv3", "new"}),
        ("world_model.learner.decay", {"mbpo", "mpc", "new"}),
        ("rollout_horizon", {"mbpo", "mpc", "new"}),
        ("planning.samples", {"mpc", "new"}),
        ("num_seed_frames", {"mbpo", "drqv2", "dreamerv3", "mpc", "uniform", "new"}),
    ],
)
def test_who_uses_what(key: str, agents: set[str]) -> None:
    assert {agent for agent in [*UNUSED, "new"] if uses(agent, key)} == agents


def test_differences_begin_with_the_keys_that_choose_others() -> None:
    small, paper = (flatten(to_dict(load([f"preset={name}", "device=cpu"]))) for name in ("small", "paper"))
    assert differences(small, paper, FREE_KEYS)[0] == "preset"
    assert differences(small, small | {"dreamerv3.agc": 1.0, "threads": 7, "removed": 1}, FREE_KEYS) == []
    assert differences(small, paper | {"agent": "drqv2"}, ())[:2] == ["agent", "preset"]


def test_a_newer_key_has_the_value_of_the_runs_own_files() -> None:
    overrides = ["task=door-lock", "preset=small", "agent=drqv2", "protocol=plain"]
    now = to_dict(load([*overrides, "device=cpu"]))
    old: dict[str, Any] = dict(override.split("=") for override in overrides)
    assert with_defaults(old) == now
    assert with_defaults(old | {"drqv2": {"lr": 1.0}, "device": "cuda", "removed": {"x": 1}}) == now | {
        "drqv2": now["drqv2"] | {"lr": 1.0},
        "device": "cuda",
    }
    with pytest.raises(UserError, match="unknown agent 'lost'"):
        with_defaults(old | {"agent": "lost"})


# -- compare -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted(PUBLISHED.glob("*/*/1")), ids=lambda folder: folder.parent.name)
def test_a_new_seed_stands_beside_a_published_run(folder: Path, tmp_path: Path) -> None:
    """Written by this version, whatever keys it has; the published one as it is, and without a key newer than it."""
    first, second = tmp_path / "1", tmp_path / "9"
    for copy in (first, second):
        shutil.copytree(folder, copy)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    new = with_defaults(config) | {"seed": 9, "num_train_frames": 40_000}
    (second / "config.yaml").write_text(yaml.safe_dump(new))
    assert [len(cell.curves) for cell in compared(tmp_path)[0].cells.values()] == [2]
    edit(first, drqv2__feature_dim=None, drqv2__stddev_clip=None, world_model__learner__reward_weight=None)
    edit(second, dreamerv3__agc=0.1)  # of another agent
    assert [len(cell.curves) for cell in compared(tmp_path)[0].cells.values()] == [2]
    edit(second, drqv2__critic_target_tau=0.5)
    tau = config["drqv2"]["critic_target_tau"]
    with pytest.raises(UserError, match=f"are not seeds of one method: drqv2.critic_target_tau {tau} and 0.5"):
        compared(tmp_path)


def test_renamed_keys_keep_their_values() -> None:
    folder = PUBLISHED / "button-press-topdown-wall/mbpo-no-guide/1"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["drqv2"]["guide_schedule"] == "0"
    assert with_defaults(config)["drqv2"]["bc_schedule"] == "0"
    assert "behaviour cloning" not in given(read_run(folder, lambda note: None))
    assert "behaviour cloning" in given(read_run(folder.parents[1] / "mbpo/1", lambda note: None))


# -- a run that goes on ------------------------------------------------------------------------------------------------


def test_a_run_of_another_version_goes_on(typed: Command, stopped: tuple[Path, list[str]]) -> None:
    """Without a key that is newer than it, with one that was removed since, beside other values of other agents."""
    folder, overrides = stopped
    settings = load(overrides)
    edit(folder, nstep=None, drqv2__stddev_clip=None, removed={"key": 1}, dreamerv3__agc=0.1)
    assert stored_settings(settings).drqv2 == settings.drqv2
    code, out, error = typed(evaluate.evaluate, *overrides, "num_eval_episodes=1")
    assert (code, error) == (0, "")
    code, out, error = typed(resume.main, *overrides)
    assert (code, error) == (0, "")
    assert is_finished(settings)


def test_a_finished_run_is_made_longer(finished: Path, run_root: Path, tmp_path: Path) -> None:
    """And ends, bit for bit, as if it had been that long from the start."""
    folder, overrides = copy_of(finished, run_root)
    longer = load([*overrides, "num_train_frames=240"])
    assert not is_finished(longer)
    assert train(run_root, "num_train_frames=240") == folder
    assert [line.split(",")[0] for line in (folder / "eval.csv").read_text().splitlines()[1:]] == ["80", "160", "240"]
    assert different(folder, train(tmp_path / "whole", "num_train_frames=240")) == []
    assert stored_settings(load(overrides)).num_train_frames == 240
    assert is_finished(longer)
    with pytest.raises(UserError, match=r"another config \(num_train_frames was 240, is 160\): set variant"):
        Run.open(load(overrides))


def test_resume_makes_a_finished_run_longer(typed: Command, finished: Path, run_root: Path) -> None:
    folder, overrides = copy_of(finished, run_root)
    which = [override for override in overrides if override.split("=")[0] in ("task", "run_root", "num_seed_frames")]
    assert "is finished: 160 frames" in typed(resume.main, *which)[1]
    assert typed(resume.main, *which, "num_train_frames=200")[0] == 0
    assert (folder / "eval.csv").read_text().splitlines()[-1].startswith("200,")
    code, _, error = typed(resume.main, *which, "batch_size=8")
    assert code == 2
    assert "batch_size was 4, is 8): leave these keys out" in error


# -- smoke runs --------------------------------------------------------------------------------------------------------


def real(run_root: Path) -> Settings:
    return load(["task=toy/reach", "preset=small", "device=cpu", f"run_root={run_root}"])


def test_a_smoke_run_gives_way_to_a_real_one(finished: Path, run_root: Path) -> None:
    folder, overrides = copy_of(finished, run_root)
    smoke, aside = load(overrides), folder.parents[1] / "mbpo-smoke" / folder.name
    before = (folder / "eval.csv").read_text()
    assert run_folder(smoke) == run_folder(real(run_root)) == folder
    for _ in range(2):  # the second time there is one aside already
        with Run.open(real(run_root)) as run:
            assert (run.folder, run.start_frame) == (folder, 0)
            run.save(200, {})
        assert run_folder(smoke) == aside
        assert (aside / "eval.csv").read_text() == before
        assert is_finished(smoke)
        shutil.rmtree(folder)
        assert run_folder(smoke) == folder
        shutil.copytree(finished, folder)


def test_a_smoke_run_is_made_beside_a_real_one(run_root: Path) -> None:
    with Run.open(real(run_root)) as run:
        run.save(200, {})
    folders = [run_folder(load(tiny(run_root, override))) for override in ("variant=", "variant=mine")]
    assert [folder.parent.name for folder in folders] == ["mbpo-smoke", "mbpo-mine"]
    with Run.open(load(tiny(run_root, "variant=mine", "seed=2"))) as run:
        run.save(20, {})
    random = ("world_model.pretrained=none", "world_model.learner.quantize_after=0")
    with Run.open(load(tiny(run_root, "preset=small", "variant=mine", "seed=2", *random))) as run:
        assert run.start_frame == 0
    assert (run_root / "toy/reach/mbpo-mine-smoke/2/checkpoints/000000020").exists()
