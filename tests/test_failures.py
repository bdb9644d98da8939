"""All that can go wrong in a run: one clear line, an exit code that is not 0, and nothing saved is lost."""

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Command, Shell, checkpoints, different, tiny, train, weights

from agents import DrQv2, TransitionBatch
from mbrl import train as train_module
from mbrl.experiment import checkpoints as checkpoints_module
from world_model import IVideoGPT
from world_model.api import Clips
from world_model.ivideogpt.learner import WorldModelLearner

# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_mistake_on_the_real_command_line(shell: Shell, run_root: Path) -> None:
    done = shell("train", "task=toy/reach", f"run_root={run_root}", "eval_every_frame=10")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown key eval_every_frame; did you mean 'eval_every_frames'?\n"
    assert not run_root.exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task=toy/reech", "unknown task 'toy/reech'"),
        ("task=coffee-posh", "did you mean 'coffee-push'"),
        ("agent=mbop", "did you mean 'mbpo'"),
        ("preset=smoek", "did you mean 'smoke'"),
        ("drqv2.hiden_dim=3", "did you mean 'drqv2.hidden_dim'"),
        ("seed=one", "seed=one has the wrong type"),
        ("real_ratio=1.5", "real_ratio=1.5 is out of range"),
        ("num_train_frames=20", "num_train_frames=20 must be more than num_seed_frames"),
        ("checkpoint_every_frames=10", "checkpoint_every_frames=10 is shorter than an episode"),
        ("episode_frames=21", "episode_frames=21"),
        ("world_model.tokenizer.resolution=64", "must equal image_size"),
        ("world_model.tokenizer.patch_size=3", "patch_size"),
        ("world_model.learner.precision=fp8", "precision=fp8"),
        ("world_model.learner.batch_size=0", "world_model.learner.batch_size=0 is out of range: it must be at least 1"),
        ("world_model.learner.warmup_updates=-1", "it must be at least 0"),
        ("world_model.learner.segment_length=2", "must be more than context_length=2"),
        ("world_model.learner.tokenizer_span=2", "must be more than context_length=2"),
        ("world_model.transformer.max_position_embeddings=40", "must be at least"),
        ("world_model.tokenizer.context_length=99", "frame_stack=3 must be at least world_model.tokenizer.context_len"),
        ("frame_stack=1", "frame_stack=1 must be at least world_model.tokenizer.context_length=2"),
        ("world_model.transformer.num_attention_heads=3", "num_attention_heads 3"),
        ("world_model.pretrained=nowhere", "world_model.pretrained=nowhere"),
        ("world_model.learner.perceptual_weights=nowhere", "nowhere"),
        ("world_model.learner.segment_length=30", "30 frames"),
    ],
)
def test_a_mistake_gets_one_line_and_can_be_put_right(typed: Command, run_root: Path, override: str, said: str) -> None:
    code, _, line = typed(train_module.main, *tiny(run_root, "num_train_frames=60", override))
    assert code == 2
    assert line.startswith("error: ")
    assert "\n" not in line
    assert said in line


def test_a_start_that_failed_leaves_nothing_in_the_way(typed: Command, run_root: Path) -> None:
    """Before anything was learned, a corrected command is no `other config`."""
    assert typed(train_module.main, *tiny(run_root, "checkpoint_every_frames=10"))[0] == 2
    code, _, line = typed(train_module.main, *tiny(run_root, "agent=mbpo", "num_train_frames=60"))
    assert (code, line) == (0, "")


def test_nothing_to_learn_from_is_said_at_the_door(typed: Command, run_root: Path) -> None:
    code, _, line = typed(train_module.main, *tiny(run_root, "demonstrations=0", "num_seed_frames=10"))
    assert code == 2
    assert "num_seed_frames=10 is shorter than an episode" in line


def test_a_run_of_another_config_is_refused(typed: Command, cut_off: Path) -> None:
    files = {path: path.read_bytes() for path in cut_off.rglob("*") if path.is_file()}
    code, _, line = typed(train_module.main, *tiny(cut_off.parents[3], "nstep=5"))
    assert code == 2
    assert "nstep was 3, is 5" in line
    assert files == {path: path.read_bytes() for path in cut_off.rglob("*") if path.is_file()}


# -- losses that break -------------------------------------------------------------------------------------------------


def poison_agent(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    update, calls = DrQv2.update, iter(range(10**6))

    def poisoned(self: DrQv2, batch: TransitionBatch, *rest: Any) -> dict[str, torch.Tensor]:
        broken = batch._replace(reward=batch.reward * math.nan) if next(calls) == at else batch
        return update(self, broken, *rest)

    monkeypatch.setattr(DrQv2, "update", poisoned)


def poison_world_model(monkeypatch: pytest.MonkeyPatch, field: str, at: int) -> None:
    update, calls = WorldModelLearner.update, iter(range(10**6))

    def poisoned(self: WorldModelLearner, clips: Clips, *rest: Any) -> dict[str, torch.Tensor]:
        broken = next(calls) == at
        if broken and field == "rewards":  # a reward that is not finite is one that nobody knows
            self.model.heads["reward"].bias.data.fill_(math.nan)
        elif broken:
            clips = clips._replace(**{field: getattr(clips, field) * math.nan})
        return update(self, clips, *rest)

    monkeypatch.setattr(WorldModelLearner, "update", poisoned)


@pytest.mark.parametrize("log_every_frames", [20, 1000])
@pytest.mark.parametrize("loss", ["agent/critic_loss", "world_model/reward_loss", "world_model/transformer_loss"])
def test_a_loss_that_is_not_finite_stops_the_run(
    typed: Command, stopped: tuple[Path, list[str]], loss: str, log_every_frames: int
) -> None:
    """The loss is named, not what broke next because of it (an action, a draw); nothing saved is lost."""
    folder, overrides = stopped
    with pytest.MonkeyPatch.context() as patch:
        if loss.startswith("agent"):
            poison_agent(patch, at=7)
        else:
            poison_world_model(patch, {"world_model/reward_loss": "rewards"}.get(loss, "actions"), at=1)
        code, _, line = typed(train_module.main, *overrides, f"log_every_frames={log_every_frames}")
    assert code == 2
    assert line.startswith("error: ")
    assert f"{loss.split('/')[0]}/" in line
    assert "became nan at frame" in line
    assert 80 in checkpoints(folder)
    assert all(np.isfinite(value).all() for value in weights(folder).values())
    assert typed(train_module.main, *overrides)[::2] == (0, "")


def test_other_bugs_are_not_called_a_broken_loss(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(DrQv2, "update", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        train(run_root)


# -- disks that break --------------------------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint(shell: Shell, finished: Path, stopped: tuple[Path, list[str]]) -> None:
    """It is named, the one before is taken, and the run ends as if nothing had happened."""
    folder, overrides = stopped
    damaged = folder / "checkpoints" / "000000080" / "world_model.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    done = shell("train", *overrides)
    assert done.returncode == 0
    [line] = [line for line in done.stderr.splitlines() if "is damaged" in line]
    assert line.startswith("warning: checkpoint")
    assert "000000080 is damaged (world_model.pt has" in line
    assert "going back to 000000040" in line
    assert different(folder, finished) == []


def test_only_damaged_checkpoints(typed: Command, stopped: tuple[Path, list[str]]) -> None:
    folder, overrides = stopped
    for path in folder.glob("checkpoints/*/agent.pt"):
        path.unlink()
    code, _, line = typed(train_module.main, *overrides)
    assert code == 2
    assert "is damaged (agent.pt is missing)" in line
    assert len(list((folder / "replay").glob("*.npz"))) == 2 + 5, "the episodes are still there"


@pytest.mark.parametrize("index", [0, 3], ids=["demonstration", "episode"])
def test_a_damaged_episode_is_skipped_by_name(typed: Command, stopped: tuple[Path, list[str]], index: int) -> None:
    folder, overrides = stopped
    damaged = folder / "replay" / f"{index:06d}.npz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.warns(UserWarning, match=f"skipping damaged episode {damaged}: "):
        assert typed(train_module.main, *overrides)[0] == 0
    assert checkpoints(folder)[-1] == 160


def test_no_demonstration_can_be_read(typed: Command, stopped: tuple[Path, list[str]]) -> None:
    folder, overrides = stopped
    for index in range(2):
        (folder / "replay" / f"{index:06d}.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipping damaged episode"):
        code, _, line = typed(train_module.main, *overrides)
    assert code == 2
    assert "none of the 2 demonstrations in" in line


@pytest.mark.parametrize("where", ["checkpoint", "world_model", "metrics"])
def test_a_full_disk(typed: Command, finished: Path, stopped: tuple[Path, list[str]], where: str) -> None:
    """One line; the last good checkpoint stays; with room again the run ends as if nothing had happened."""
    folder, overrides = stopped

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        if where == "checkpoint":
            patch.setattr(checkpoints_module, "sync_folder", full)
        elif where == "world_model":
            patch.setattr(IVideoGPT, "save_pretrained", full)
        else:
            patch.setattr("mbrl.experiment.logger.json.dumps", full)
        code, _, line = typed(train_module.main, *overrides)
    assert code == 2
    assert "the disk is full" in line
    assert "\n" not in line
    assert 80 in checkpoints(folder) or 120 in checkpoints(folder)
    assert not list((folder / "checkpoints").glob(".tmp-*"))
    assert typed(train_module.main, *overrides)[::2] == (0, "")
    assert different(folder, finished) == []
