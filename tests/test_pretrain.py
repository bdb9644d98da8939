"""Pre-training end to end on a tiny recording: it learns, continues bit for bit, and leaves a model that loads."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mbrl.experiment.run import RunFinished, lock_folder
from mbrl.experiment.settings import load_plain
from mbrl.pretrain import pretrain
from mbrl.pretrain.models import held_out_every
from world_model import Episode, IVideoGPT
from world_model.data import ClipDataset, write_shard
from world_model.ivideogpt.learner import WorldModelLearner
from world_model.ivideogpt.weights import read_heads


def moving_square(seed: int, decisions: int = 15, size: int = 64) -> Episode:
    """A square that moves as the action says; its column is the reward."""
    generator = np.random.default_rng(seed)
    place = generator.integers(8, size - 16, 2)
    frames, actions, rewards = [], [], []
    for _ in range(decisions + 1):
        frame = np.full((3, size, size), 60, np.uint8)
        frame[:, place[0] : place[0] + 8, place[1] : place[1] + 8] = 220
        frames.append(frame)
        step = generator.integers(-3, 4, 2)
        place = np.clip(place + step, 0, size - 8)
        actions.append([*(step / 3), 0, 0])
        rewards.append(place[1] / size)
    return Episode(np.stack(frames), np.array(actions[:-1], np.float32), np.array(rewards[:-1], np.float32))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_shard(folder, "squares", [moving_square(i) for i in range(20)], "squares")
    return folder


def overrides(data, out, *more):
    merged = {
        "data": data,
        "out": out,
        "preset": "smoke",
        "device": "cpu",
        "threads": 1,
        "tokenizer_updates": 4,
        "transformer_updates": 3,
        "validate_every_updates": 4,
        "checkpoint_every_updates": 2,
        "cached_clips": 20,
        "horizon": 3,
        "learner.batch_size": 2,
        "learner.tokenizer_batch_size": 2,
        "learner.tokenizer_span": 12,
        "learner.quantize_after": 1,
    } | dict(override.split("=", 1) for override in more)
    return [f"{key}={value}" for key, value in merged.items()]


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    """The folder of a pre-training that ended well; to be copied."""
    out = tmp_path_factory.mktemp("pretrained") / "out"
    pretrain.main(overrides(data, out))
    return out


def final_weights(folder):
    newest = max(path for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    return load_file(newest / "world_model.safetensors")


@pytest.mark.parametrize("after", [3, 5])
def test_a_killed_pre_training_continues_bit_for_bit(data, pretrained, tmp_path, monkeypatch, after):
    update, done = WorldModelLearner.update, 0

    def killed(*arguments):
        nonlocal done
        if done == after:
            raise KeyboardInterrupt
        done += 1
        return update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(WorldModelLearner, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain.main(overrides(data, tmp_path / "cut"))
    pretrain.main(overrides(data, tmp_path / "cut"))
    whole, cut = final_weights(pretrained), final_weights(tmp_path / "cut")
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    updates = [json.loads(line)["frame"] for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert updates == sorted(updates)


def test_the_folder_holds_a_model_that_loads_and_says_what_made_it(data, tmp_path, typed):
    out = tmp_path / "out"
    code, text, _ = typed(pretrain.main, *overrides(data, out, f"unseen={data}", "held_out_every=10"))
    assert code == 0
    assert f"on 18 episodes (288 frames) of {data}: 4 updates of the tokenizer (2 clips), then 3" in text
    model = IVideoGPT.from_pretrained(out / "model", action_dim=4, context_length=2)
    assert held_out_every(out / "model", str(data)) == 10
    dream = model.imagine(torch.rand(1, 2, 3, 64, 64), torch.zeros(1, 2, 4), 2)
    assert dream.frames.shape == (1, 2, 3, 64, 64)
    assert f"data: {data}" in (out / "config.yaml").read_text()
    logged = set().union(*(json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()))
    assert {"world_model/tokenizer_loss", "world_model/transformer_loss"} <= logged
    assert {"held_out/moving_error_ratio", "unseen/moving_error_ratio"} <= logged
    code, text, _ = typed(pretrain.main, *overrides(data, out, f"unseen={data}", "held_out_every=10"))
    assert code == 0
    assert "is finished" in text


def test_one_stage_leaves_the_other_part_as_it_was(data, tmp_path):
    pretrain.main(overrides(data, tmp_path / "a", "stage=tokenizer"))
    pretrain.main(overrides(data, tmp_path / "b", "stage=transformer", f"start_from={tmp_path / 'a/model'}"))
    a, b = final_weights(tmp_path / "a"), final_weights(tmp_path / "b")
    changed = {name.split(".")[0] for name, value in a.items() if not torch.equal(value, b[name])}
    assert changed == {"transformer", "action_linear", "heads"}


def test_clips_without_actions_with_the_goal_first(data, tmp_path, typed):
    """Of a mixture of which the transformer sees a part; the frames that it is given begin with the last."""
    episodes = [ClipDataset(data).episode(i) for i in range(20)]
    (folder := tmp_path / "data").mkdir()
    for name in ("bridge", "sthsth"):
        free = [Episode(e.frames, e.actions[:, :0], e.rewards) for e in episodes]
        write_shard(folder, name, free, name)
    out = tmp_path / "out"
    code, _, error = typed(pretrain.main, *overrides(folder, out, "goal=true", "mixture=paper"))
    assert (code, error) == (0, "")
    assert read_heads(out / "model").action_dim == 0
    clips = load_file(out / "tokens.safetensors")["tokens"]
    assert len(clips) == 20
    code, _, error = typed(pretrain.main, *overrides(data, tmp_path / "other", "mixture=paper"))
    assert code == 2
    assert "none is in the mixture" in error


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data=nowhere", "nowhere holds no train episodes"),
        ("sharded=true", "learner.embed_codes=true needs whole embeddings"),
        ("start_from=nowhere", "nowhere: there is no such folder"),
        ("schedule=papr-tokenizer", "unknown schedule 'papr-tokenizer'; did you mean 'paper-tokenizer'"),
        (
            "learner.quantize_after=5",
            "after learner.quantize_after=5 updates and has 4: the transformer would learn from codebooks that were",
        ),
        ("learner.quantize_after=4", "after learner.quantize_after=4 updates and has 4"),
        ("stage=transformer", "after learner.quantize_after=1 updates and has 0"),
        ("accumulate=3", "learner.batch_size=2 cannot be split into 3 parts"),
        ("augmentation.crop_scale=[1.0]", "crop_scale=[1.0] must be two numbers"),
        ("preset=tiny", "unknown preset 'tiny'"),
        ("tokeniser_updates=3", "did you mean 'tokenizer_updates'"),
        ("learner.segment_length=30", "has 30 frames"),
    ],
)
def test_bad_input_gets_one_line(data, tmp_path, typed, override, said):
    code, _, error = typed(pretrain.main, *overrides(data, tmp_path / "out", override))
    assert code == 2
    assert said in error
    assert "\n" not in error


def test_a_folder_of_another_pre_training_is_refused(data, pretrained, typed):
    code, _, error = typed(pretrain.main, *overrides(data, pretrained, "seed=2", "transformer_updates=5"))
    assert code == 2
    assert "seed was 1, is 2" in error


def test_the_papers_schedules():
    """Table 3 of arXiv 2405.15223."""
    first = load_plain(pretrain.PretrainSettings, "pretrain", ["schedule=paper-tokenizer"])
    second = load_plain(pretrain.PretrainSettings, "pretrain", ["schedule=paper-transformer", "seed=3"])
    assert (first.stage, first.tokenizer_updates, first.preset) == ("tokenizer", 1_000_000, "paper")
    a, b = first.learner, second.learner
    assert (a.tokenizer_batch_size, a.tokenizer_span, a.sampled_future_frames) == (64, 16, 6)
    assert (a.tokenizer_lr, a.warmup_updates, a.decay_updates, a.weight_decay, a.max_grad_norm) == (5e-4, 500, 0, 0, 1)
    assert (second.stage, second.transformer_updates, second.cached_clips) == ("transformer", 700_000, 0)
    assert (b.batch_size, b.segment_length, b.transformer_lr, b.decay) == (64, 16, 1e-4, "cosine")
    assert (b.warmup_updates, b.decay_updates, b.weight_decay, b.max_grad_norm) == (5000, 700_000, 0.01, 1)
    assert first.augmentation == second.augmentation
    assert second.seed == 3
    assert not first.augmentation.nothing


def test_clips_tokenized_as_they_are_drawn(data, tmp_path):
    """No cache; augmented; with a discriminator from the third update on."""
    more = ["cached_clips=0", "augmentation.crop_scale=[0.8,1.0]", "discriminator.weight=0.8", "accumulate=2"]
    out = tmp_path / "out"
    pretrain.main(overrides(data, out, *more, "discriminator.after_updates=2", "discriminator.channels=[8,16]"))
    assert not (out / "tokens.safetensors").exists()
    logged = set().union(*(json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()))
    assert {"world_model/discriminator_loss", "world_model/tokenizer_adversarial"} <= logged


def test_cached_tokens_follow_the_tokenizer(data, tmp_path):
    """A restart with more updates of the tokenizer makes the tokens again."""
    out, cache = tmp_path / "out", tmp_path / "out/tokens.safetensors"
    fast = "learner.tokenizer_lr=1e-1"
    pretrain.main(overrides(data, out, fast))
    with pytest.warns(UserWarning, match="another state of the tokenizer: made again"):
        pretrain.main(overrides(data, out, fast, "tokenizer_updates=8", "transformer_updates=4"))
    left = load_file(cache)
    cache.unlink()
    more = overrides(data, out, fast, "tokenizer_updates=8", "transformer_updates=5")
    again = pretrain.Pretraining(load_plain(pretrain.PretrainSettings, "pretrain", more))
    assert torch.equal(again.tokens.tokens, left["tokens"])


@pytest.mark.parametrize("damage", [lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:], lambda b: b[:-9]])
def test_damaged_cached_tokens_are_made_again(data, pretrained, tmp_path, damage):
    out, cache = tmp_path / "out", tmp_path / "out/tokens.safetensors"
    shutil.copytree(pretrained, out)
    whole = {name: value.clone() for name, value in load_file(cache).items()}  # not mapped to the file
    cache.write_bytes(damage(cache.read_bytes()))
    more = overrides(data, out, "transformer_updates=4")
    with pytest.warns(UserWarning, match="damaged"):
        again = pretrain.Pretraining(load_plain(pretrain.PretrainSettings, "pretrain", more)).tokens
    assert all(torch.equal(value, getattr(again, name)) for name, value in whole.items())


@pytest.mark.parametrize("ends", ["finished", "stopped"])
def test_the_folder_is_free_however_a_pre_training_ends(data, tmp_path, monkeypatch, ends):
    """Also while its error, which holds on to everything in its frames, is looked at."""
    if ends == "finished":
        pretrain.main(overrides(data, tmp_path / "out", "transformer_updates=1", "tokenizer_updates=2"))
    else:
        monkeypatch.setattr(pretrain.Pretraining, "train", lambda self: 1 / 0)
    with pytest.raises((RunFinished, ZeroDivisionError)) as caught:
        pretrain.main(overrides(data, tmp_path / "out", "transformer_updates=1", "tokenizer_updates=2"))
    lock_folder(tmp_path / "out").close()
    assert caught.traceback


def test_no_empty_tables(pretrained):
    tables = [path for path in pretrained.glob("*.csv") if len(list(csv.reader(path.open()))) < 2]
    assert tables == []
