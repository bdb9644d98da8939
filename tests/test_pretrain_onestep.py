"""Pre-training of the one-step predictor: the same clips and numbers, resumed bit for bit, used and predicted with."""

import json

import numpy as np
import pytest
import torch
from test_pretrain import final_weights, moving_square
from tiny import train

from mbrl.predict import predict
from mbrl.pretrain import onestep, pretrain
from mbrl.pretrain.models import held_out_every
from world_model import Episode
from world_model.data import write_shard
from world_model.onestep import OneStep, OneStepWorld


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_shard(folder, "squares", [moving_square(i) for i in range(20)], "squares")
    return folder


def overrides(data, out, *more):
    merged = {
        "kind": "onestep",
        "data": data,
        "out": out,
        "device": "cpu",
        "threads": 1,
        "validate_every_updates": 4,
        "checkpoint_every_updates": 2,
        "horizon": 3,
        "onestep.width": 8,
        "onestep.steps": 2,
        "onestep.batch_size": 4,
        "onestep.updates": 6,
    } | dict(override.split("=", 1) for override in more)
    return [f"{key}={value}" for key, value in merged.items()]


def test_killed_after_the_last_update_it_still_leaves_a_model(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(OneStepWorld, "save_pretrained", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretrain.main(overrides(data, tmp_path / "out"))
    pretrain.main(overrides(data, tmp_path / "out"))
    saved, trained = OneStep.from_pretrained(tmp_path / "out/model").state_dict(), final_weights(tmp_path / "out")
    assert all(torch.equal(value, saved[name]) for name, value in trained.items())


@pytest.mark.parametrize("after", [3, 4])
def test_a_killed_pre_training_continues_bit_for_bit(data, tmp_path, monkeypatch, after):
    pretrain.main(overrides(data, tmp_path / "whole"))
    update, updates = OneStepWorld.update, []

    def killed(self, *arguments):
        if len(updates) == after:
            raise KeyboardInterrupt
        updates.append(arguments)
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(OneStepWorld, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain.main(overrides(data, tmp_path / "cut"))
    pretrain.main(overrides(data, tmp_path / "cut"))
    whole, cut = final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut")
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    frames = [json.loads(line)["frame"] for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert frames == sorted(frames)


def test_the_folder_is_like_any_other_and_its_model_is_used(data, tmp_path, typed, monkeypatch):
    out = tmp_path / "out"
    given = overrides(data, out, f"unseen={data}", "held_out_every=10")
    code, text, _ = typed(pretrain.main, *given)
    assert code == 0
    assert f"on 18 episodes (288 frames) of {data}: 6 updates (4 clips); 0 are done" in text
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = set().union(*lines)
    assert "world_model/onestep_total_loss" in logged
    names = ("dream_mse", "dream_psnr", "moving_error_ratio", "moving_error_ratio_shuffled", "reward_mae")
    assert {f"{part}/{name}" for part in ("held_out", "unseen") for name in names} <= logged
    assert [line["frame"] for line in lines if "held_out/dream_mse" in line] == [4, 6]
    assert held_out_every(out / "model", str(data)) == 10
    code, text, _ = typed(pretrain.main, *given)
    assert (code, "is finished" in text) == (0, True)

    monkeypatch.chdir(tmp_path)
    code, said, _ = typed(predict.main, f"model={out / 'model'}", f"data={data}", "clips=3", "samples=5", "horizon=10")
    assert code == 0
    results = json.loads((tmp_path / f"runs/predictions/out-{data.name}/metrics.json").read_text())
    assert (results["samples"], results["clips"], results["held_out_every"]) == (1, 3, 10)
    assert results["frames_per_second"] > 0
    assert results["metrics"]["copied_tokens"] is None
    assert "| `copied_tokens` | missing: the model has no tokens |" in said
    assert results["metrics"]["psnr"] == pytest.approx(results["metrics"]["mean_psnr"])
    assert results["metrics"]["moving_error_ratio"] > 0
    code, _, error = typed(predict.main, f"model={out / 'model'}", f"data={data}", "decouple=true")
    assert (code, error.splitlines()) == (
        2,
        [f"error: decouple=true needs a tokenizer, which {out / 'model'} does not have"],
    )
    code, _, error = typed(predict.main, f"model={out / 'model'}", f"data={data}", "context_length=1")
    assert (code, "predicts from 2 frames" in error) == (2, True)


def test_an_agent_begins_from_it(tmp_path, run_root):
    """Frames of 64 pixels and actions as in the recording; a run that learns nothing more of the world keeps it."""

    from world_model.data import write_shard

    generator = np.random.default_rng(0)
    (recorded := tmp_path / "data").mkdir()
    episodes = [
        Episode(generator.integers(0, 256, (9, 3, 32, 32), np.uint8), np.zeros((8, 2), np.float32), np.zeros(8))
        for _ in range(20)
    ]
    write_shard(recorded, "noise", episodes, "noise")
    pretrain.main(overrides(recorded, tmp_path / "out"))
    model = OneStep.from_pretrained(tmp_path / "out/model")
    keys = ("world_model.kind=onestep", f"world_model.onestep_pretrained={tmp_path / 'out/model'}")
    folder = train(run_root, *keys, "world_model.onestep.update_every_frames=1000", "initial_model_updates=0")
    ours, theirs = model.state_dict(), OneStep.from_pretrained(folder / "world_model").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_minutes_end_it_and_count_over_restarts(data, tmp_path, monkeypatch, typed):
    """A clock that goes on by a second an update: half a minute is thirty of them."""
    seconds = [0.0]
    update = OneStepWorld.update

    def slow(self, *arguments):
        seconds[0] += 1
        if seconds[0] == 10:
            raise KeyboardInterrupt
        return update(self, *arguments)

    monkeypatch.setattr(OneStepWorld, "update", slow)
    monkeypatch.setattr("mbrl.experiment.logger.time.monotonic", lambda: seconds[0])
    given = overrides(data, tmp_path / "out", "onestep.minutes=0.5", "onestep.updates=1000")
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(given)
    pretrain.main(given)
    stored = json.loads(max((tmp_path / "out/checkpoints").iterdir()).joinpath("pretraining.json").read_text())
    assert stored["wall_time_s"] == 30
    assert max((tmp_path / "out/checkpoints").iterdir()).name == f"{30:09d}"
    code, text, _ = typed(pretrain.main, *given)
    assert (code, "is finished" in text) == (0, True)


def test_the_rate_falls_along_half_a_cosine(data, tmp_path):
    config = onestep.OneStepPretraining(
        pretrain.load_plain(
            pretrain.PretrainSettings, "pretrain", overrides(data, tmp_path / "out", "onestep.final_lr=0.2")
        )
    ).config
    assert [round(onestep.rate(config, progress), 6) for progress in (0, 0.5, 1)] == [1, 0.6, 0.2]
    assert onestep.done(config, 3, 10_000) == 0.5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("goal=true", "kind=onestep does not read goal; leave it out"),
        ("schedule=paper-tokenizer", "kind=onestep does not read schedule"),
        ("learner.batch_size=4", "kind=onestep does not read learner.batch_size"),
        ("kind=ivideogpt", "kind=ivideogpt does not read onestep.batch_size"),
        ("onestep.minutes=0", "onestep.minutes=0.0 is out of range"),
        ("onestep.steps=30", "has 32 frames"),
        ("onestep.wdith=8", "did you mean 'onestep.width'"),
    ],
)
def test_bad_input_gets_one_line(data, tmp_path, typed, override, said):
    code, _, error = typed(pretrain.main, *overrides(data, tmp_path / "out", override))
    assert code == 2
    assert said in error
    assert "\n" not in error.strip()


def test_a_folder_of_another_pre_training_is_refused(data, tmp_path, typed):
    pretrain.main(overrides(data, tmp_path / "out"))
    code, _, error = typed(pretrain.main, *overrides(data, tmp_path / "out", "onestep.updates=9", "onestep.lr=1e-2"))
    assert code == 2
    assert "onestep.lr was 0.001, is 0.01" in error
    code, _, error = typed(pretrain.main, f"data={data}", f"out={tmp_path / 'out'}", "device=cpu", "horizon=3")
    assert (code, "kind was onestep, is ivideogpt" in error) == (2, True)
