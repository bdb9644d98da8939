"""Video prediction: the protocol, goals, what the context adds, the command line and its errors."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_metrics import StandIn
from tiny_world import LEARNER, TOKENIZER, TRANSFORMER, make_model

from mbrl.experiment.settings import UserError, load_plain
from mbrl.predict import predict
from mbrl.pretrain.models import note_held_out
from world_model import Episode, IVideoGPT, WeightsError
from world_model.api import Clips
from world_model.data import ClipDataset, DataError, goal_first, write_shard
from world_model.ivideogpt.learner import WorldModelLearner
from world_model.metrics.fvd import FILE

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # the published I3D is TorchScript
SIDE, FRAMES = 32, 5


def square(direction: tuple[int, int]) -> Episode:
    """A square that rests in the middle for two frames and then leaves: only the last frame tells where to."""
    frames = np.full((FRAMES, 3, SIDE, SIDE), 50, np.uint8)
    for t in range(FRAMES):
        y, x = (12 + 3 * max(0, t - 1) * d for d in direction)
        frames[t, :, y : y + 8, x : x + 8] = 220
    return Episode(frames, np.zeros((FRAMES - 1, 0), np.float32), np.zeros(FRAMES - 1, np.float32))


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_shard(folder, "squares", [square(d) for d in ((0, 1), (0, -1), (1, 0), (-1, 0))], "squares")
    return folder


@pytest.fixture(scope="module")
def trained(squares, tmp_path_factory):
    """A small model that learned these four clips by heart, each with its last frame first."""
    torch.manual_seed(0)
    tokenizer = dataclasses.replace(
        TOKENIZER,
        block_out_channels=(16, 16, 32),
        patch_size=4,
        latent_channels=16,
        num_dyn_embeddings=64,
        num_vq_embeddings=64,
        cross_attention_dropout=0.0,
        space_to_depth=1,
        blend=True,
    )
    transformer = dataclasses.replace(TRANSFORMER, attention_dropout=0.0)
    model = IVideoGPT(tokenizer, transformer, action_dim=0)
    config = dataclasses.replace(
        LEARNER,
        tokenizer_lr=3e-3,
        transformer_lr=3e-3,
        warmup_updates=10,
        decay_updates=120,
        sampled_future_frames=3,
        quantize_after=30,
        revive_codes_until=60,
        mse_weight=5.0,
    )
    learner = WorldModelLearner(model, config, seed=0)
    data = ClipDataset(squares).windows(np.arange(4), np.zeros(4, int), FRAMES)
    frames, actions, rewards = goal_first(data.frames.float() / 255, data.actions, data.rewards)
    for _ in range(120):
        learner.update(frames=frames)
    for _ in range(50):
        learner.update(clips=Clips(frames, actions, rewards))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def overrides(model, data, *more) -> list[str]:
    merged = {
        "model": model,
        "data": data,
        "part": "all",
        "windows": "first",
        "clips": 4,
        "samples": 1,
        "horizon": 3,
        "device": "cpu",
        "precision": "fp32",
    } | dict(override.split("=", 1) for override in more)
    return [f"{key}={value}" for key, value in merged.items()]


def made(*typed) -> predict.Prediction:
    return predict.Prediction(load_plain(predict.PredictSettings, "predict", overrides(*typed)))


def test_clips_learned_by_heart_come_back(squares, trained):
    metrics, images = made(trained, squares, "goal=true", "temperature=0").run()
    assert metrics["psnr"] > 27
    assert metrics["moving_error_ratio"] < 0.1
    assert images["true"].shape == images["predicted"].shape == (4, 3, 3, SIDE, SIDE)


def test_only_the_goal_tells_where_the_square_goes(squares, trained):
    """With the goals of other clips it goes there instead; the first real frame is the same in all."""
    prediction = made(trained, squares, "goal=true", "temperature=0")
    true = prediction.clips.frames.float() / 255  # (goal, first, ...)
    assert (true[:, 1] == true[:1, 1]).all()
    others = true.roll(1, 0)
    mixed = torch.cat([others[:, :1], true[:, 1:]], dim=1)
    seen = prediction.predict(mixed, prediction.clips.actions, 1, seed=0).frames[:, 0]
    there, here = ((seen - clips[:, 2:]).square().mean((1, 2, 3, 4)) for clips in (others, true))
    assert (there < 0.5 * here).all()


def test_goal_comes_first_and_actions_still_lead_to_the_next_frame():
    index = torch.arange(6)[None]
    frames, actions, rewards = goal_first(index, index.unsqueeze(-1), 10 * index)
    assert frames.tolist() == [[5, 0, 1, 2, 3, 4]]
    # Every future frame, from the second on, is led to by what was done at the frame before it in time.
    assert (actions[0, 1:-1, 0] == frames[0, 2:] - 1).all()
    assert (rewards[0, 1:-1] == 10 * (frames[0, 2:] - 1)).all()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(model, data): random weights with actions and rewards, 32 pixels."""
    folder, generator = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    make_model().save_pretrained(folder / "model")
    episodes = [
        Episode(
            generator.integers(0, 256, (16, 3, 32, 32), dtype=np.uint8),
            generator.normal(size=(15, 3)).astype(np.float32),
            np.arange(15, dtype=np.float32),
        )
        for _ in range(5)
    ]
    (folder / "data").mkdir()
    write_shard(folder / "data", "noise", episodes, "noise")
    torch.jit.script(StandIn()).save(str(folder / FILE))
    return folder / "model", folder / "data"


def test_the_best_prediction_of_a_clip_counts(tiny, monkeypatch):
    """Of five predictions, in batches of two, the fourth is the truth: it alone counts, and all count for the rest."""
    prediction = made(*tiny, "samples=5", "batch_size=2", "horizon=8", f"i3d_weights={tiny[0].parent}")
    calls = []

    def perfect_at_last(true, actions, count, seed):
        calls.append((len(true), count))
        future = true[:, None, 2:].expand(-1, count, -1, -1, -1, -1).clone()
        rewards = torch.arange(8.0).expand(len(true), count, 8).clone()
        if len(calls) % 3 != 2:  # the second batch of each clip holds the third and fourth
            future, rewards = 1 - future, rewards + 1
        else:
            future[:, 0] = 0.5
        return predict.Predicted(future, rewards, torch.zeros(len(true), count, 8, 4, dtype=torch.int64))

    monkeypatch.setattr(prediction, "predict", perfect_at_last)
    metrics, _ = prediction.run()
    assert calls == [(1, 2), (1, 2), (1, 1)] * 4
    assert metrics["psnr"] == pytest.approx(100)
    assert metrics["ssim"] == pytest.approx(1)
    assert metrics["mse"] == 0
    assert metrics["mean_psnr"] < 50
    assert metrics["moving_error_ratio"] > 0.1  # of all five
    assert metrics["copied_tokens"] == 1
    assert metrics["lpips"] is None
    assert metrics["fvd"] > 0


def test_rewards_belong_to_the_actions_that_earned_them(tiny, monkeypatch):
    prediction = made(*tiny, "horizon=5")
    expected = 1 + torch.arange(5.0)  # frames 0 and 1 are given: action 1 leads to the first that is predicted

    def knowing(true, actions, count, seed):
        shape = (len(true), count, 5)
        return predict.Predicted(torch.rand(*shape, 3, 32, 32), expected.expand(shape), torch.zeros(*shape, 4))

    monkeypatch.setattr(prediction, "predict", knowing)
    metrics, _ = prediction.run()
    assert metrics["reward_mae"] == 0
    assert metrics["reward_correlation"] == pytest.approx(1)


def test_held_out_clips_are_those_that_the_model_was_not_trained_on(tiny, tmp_path):
    """Trained with one episode in five held out: the last of the five, where one in twenty would be none or another."""
    (tmp_path / "model").mkdir()
    for part in ("tokenizer", "transformer"):
        (tmp_path / "model" / part).symlink_to(tiny[0] / part)
    note_held_out(tmp_path / "model", str(tiny[1]), 5)
    prediction = made(tmp_path / "model", tiny[1], "part=held_out")
    last = torch.from_numpy(ClipDataset(tiny[1]).episode(4).frames)
    assert torch.equal(prediction.clips.frames[0], last[:5])
    assert len(prediction.clips.frames) == 1
    with pytest.raises(UserError, match=r"held_out_every=20: .* was trained on data with held_out_every=5"):
        made(tmp_path / "model", tiny[1], "part=held_out", "held_out_every=20")
    elsewhere = tmp_path / "other"
    elsewhere.symlink_to(tiny[1])  # resolved, it has the same name
    with pytest.raises(UserError, match="use the same value"):
        made(tmp_path / "model", elsewhere, "held_out_every=20")


def test_fvd_of_the_clips_themselves_is_zero(tiny, monkeypatch):
    prediction = made(*tiny, "horizon=8", f"i3d_weights={tiny[0].parent}")

    def truth(true, actions, count, seed):
        return predict.Predicted(true[:, None, 2:], torch.zeros(len(true), 1, 8), torch.zeros(len(true), 1, 8, 4))

    monkeypatch.setattr(prediction, "predict", truth)
    metrics, _ = prediction.run()
    assert metrics["fvd"] == pytest.approx(0, abs=1e-4)
    assert metrics["reward_correlation"] is None
    assert prediction.missing["reward_correlation"] == "rewards never change"


def test_predictions_follow_seed_and_actions(tiny):
    first, again = (made(*tiny).run()[1]["predicted"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (made(*tiny, "seed=2").run()[1]["predicted"] != first).any()
    prediction = made(*tiny, "temperature=0")
    true, actions = prediction.clips.frames.float() / 255, prediction.clips.actions
    plain, other = (prediction.predict(true, a, 1, 0).frames for a in (actions, -actions))
    assert (plain != other).any()
    last = actions.clone()
    last[:, -1] = 99.0  # leads out of the clip
    torch.testing.assert_close(prediction.predict(true, last, 1, 0).frames, plain)


def test_a_model_without_action_weights_needs_no_actions(squares, trained, tiny):
    assert made(trained, squares).model.action_dim == 0
    torch.manual_seed(0)
    free = IVideoGPT(TOKENIZER, TRANSFORMER, action_dim=0, heads=())
    folder = tiny[0].parent / "free"
    free.save_pretrained(folder)
    prediction = made(folder, tiny[1])
    metrics, _ = prediction.run()
    assert metrics["reward_mae"] is None
    assert prediction.missing["reward_mae"] == "the model has no reward head"


def test_decoded_alone_is_decoding_with_attention_taken_out(tiny):
    tokenizer = IVideoGPT.from_pretrained(tiny[0], action_dim=3).eval().tokenizer
    ids = torch.randint(0, 32, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    frames = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    codes, context = (
        tokenizer.dynamics_quantize.embedding(ids),
        tokenizer.quantize(tokenizer.encode_context(frames)[0])[0],
    )
    with torch.no_grad():
        alone = tokenizer.decode_alone(ids)
        memory = tokenizer.decode_context(context)[1]
        assert (tokenizer.decode_future(codes, memory, frames[:, -1]) - alone).abs().max() > 1e-3
        for block in tokenizer.cond_decoder.cross_att_blocks:
            block.att.out_proj.weight.zero_()
            block.att.out_proj.bias.zero_()
        torch.testing.assert_close(tokenizer.decode_future(codes, memory, frames[:, -1]), alone)


def test_the_command_leaves_numbers_and_images(tiny, tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    code, said, _ = typed(predict.main, *overrides(*tiny, "samples=2", "decouple=true", "shown=2", "with_context=true"))
    assert code == 0
    folder = tmp_path / "runs/predictions" / f"{tiny[0].parent.name}-data"
    results = json.loads((folder / "metrics.json").read_text())
    assert (results["clips"], results["samples"], results["frames_given"]) == (4, 2, 2)
    assert results["conditioned_on_actions"]
    assert results["metrics"]["fvd"] is None
    assert results["missing"] == {
        "lpips": "no weights (perceptual_weights=none)",
        "fvd": "no weights (i3d_weights=none)",
        "reward_correlation": "rewards never change",  # the head is at its start
    }
    assert "| `fvd` | missing: no weights (i3d_weights=none) |" in said
    assert f"| `psnr` | {results['metrics']['psnr']:.4g} |" in (folder / "metrics.md").read_text()
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json",
        "metrics.md",
        "predictions.png",
        "predictions.gif",
    }


def test_mp4(tiny, tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    predict.main(overrides(*tiny, "video=mp4", "name=mp4"))
    with av.open(str(tmp_path / "runs/predictions/mp4/predictions.mp4")) as video:
        assert len(list(video.decode(video=0))) == 3


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        (["data=nowhere"], DataError, "nowhere holds no episodes"),
        (["model=nowhere"], UserError, "^model=nowhere: there is no such folder"),
        (["horizon=20"], DataError, "no episode .* has 2 .* frames .longest: 16"),
        (["context_length=3"], WeightsError, "trained with 2 context frames"),
        (["goal=true", "context_length=1"], UserError, "two context frames"),
        (["perceptual_weights=nowhere"], WeightsError, "must hold LPIPS-VGG weights"),
        (["i3d_weights=nowhere", "horizon=8"], WeightsError, "must be I3D as TorchScript"),
    ],
)
def test_bad_input_gets_one_line(tiny, more, error, said):
    with pytest.raises(error, match=said) as caught:
        made(*tiny, *more)
    assert "\n" not in str(caught.value)


def test_models_and_data_that_do_not_fit(squares, tiny, trained, tmp_path):
    with pytest.raises(UserError, match=r"wants 3 action numbers, .* has 0"):
        made(tiny[0], squares)
    (large := tmp_path / "large").mkdir()
    write_shard(large, "large", [Episode(np.zeros((9, 3, 64, 64), np.uint8), np.zeros((8, 3)), np.zeros(8))], "large")
    with pytest.raises(UserError, match=r"has frames \(3, 64, 64\), .* wants \(3, 32, 32\)"):
        made(tiny[0], large)
    (tmp_path / "tokenizer").symlink_to(trained / "tokenizer")
    (tmp_path / "transformer").symlink_to(tiny[0] / "transformer")
    with pytest.raises(WeightsError, match="makes 130 kinds of tokens, the transformer knows 50"):
        made(tmp_path, squares)
