"""Kinds of models: sizes by name, official-layout checkpoints of all kinds, models without actions or rewards."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_parity import TINY
from tiny_world import LEARNER, TOKENIZER, TRANSFORMER, make_clips

from mbrl.experiment.settings import UserError, load_plain
from mbrl.predict import predict
from mbrl.pretrain import pretrain
from mbrl.pretrain.models import make_model, sizes
from world_model import Episode, IVideoGPT, TokenizerConfig, TransformerConfig, WeightsError
from world_model.data import ClipDataset, DataError, write_shard
from world_model.ivideogpt.learner import WorldModelLearner
from world_model.ivideogpt.weights import TRANSFORMER_FILE, read_configs, read_heads


def millions(module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [
        (TokenizerConfig, "64", 114),
        (TokenizerConfig, "256", 310),
        (TransformerConfig, "base", 138),
        (TransformerConfig, "medium", 436),
    ],
)
def test_sizes_are_the_papers(kind, name, count):
    """Table 2 of arXiv 2405.15223, in millions of parameters."""
    paper = {TokenizerConfig: "64", TransformerConfig: "base"} | {kind: name}
    with torch.device("meta"):
        model = IVideoGPT(*(sizes(cls, paper[cls], "small") for cls in (TokenizerConfig, TransformerConfig)))
    part = model.tokenizer if kind is TokenizerConfig else model.transformer
    assert round(millions(part)) == count
    assert (model.layout.context_tokens, model.layout.dynamics_tokens) == (256, 16)
    assert model.layout.vocabulary == 16386


def test_auto_sizes_are_the_presets():
    assert sizes(TransformerConfig, "auto", "small") == sizes(TransformerConfig, "small", "paper")
    assert sizes(TokenizerConfig, "auto", "paper") == sizes(TokenizerConfig, "64", "small")
    with pytest.raises(UserError, match="transformer=mediun: there is none of this name; did you mean 'medium'"):
        sizes(TransformerConfig, "mediun", "small")


# -- official checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    episodes = [
        Episode(
            torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator).numpy(),
            torch.randn(7, 4, generator=generator).numpy(),
            torch.randn(7, generator=generator).numpy(),
        )
        for _ in range(20)  # one is held out
    ]
    write_shard(folder, "noise", episodes, "noise")
    return folder


@pytest.mark.parametrize("action_dim", [0, 4], ids=["action-free", "action-conditioned"])
@pytest.mark.parametrize("context_length", [1, 2])
def test_official_checkpoints_load_and_predict(data, tmp_path, context_length, action_dim):
    """As published: no reward head; without actions plain LLaMA keys, with them `llm.` before each."""
    model = IVideoGPT.from_pretrained(TINY, action_dim, context_length, new_actions=True, heads=())
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / TRANSFORMER_FILE)
    assert ("action_linear.weight" in names) == ("llm.lm_head.weight" in names) == (action_dim > 0)
    assert ("lm_head.weight" in names) == (action_dim == 0)
    asked = dict(model=tmp_path, data=data, part="all", clips=2, samples=1, horizon=4, device="cpu", windows="first")
    overrides = [f"{key}={value}" for key, value in asked.items()]
    prediction = predict.Prediction(load_plain(predict.PredictSettings, "predict", overrides))
    assert (prediction.known, prediction.model.action_dim) == (context_length, action_dim)
    true, actions = prediction.clips.frames.float() / 255, prediction.clips.actions
    seen = [prediction.predict(true, given, 1, seed=0).frames for given in (actions, 5 * actions)]
    assert seen[0].shape == (2, 1, 4, 3, 64, 64)
    assert torch.equal(*seen) == (action_dim == 0)
    with pytest.raises(WeightsError, match=f"trained with {context_length} context frames"):
        IVideoGPT.from_pretrained(tmp_path, action_dim, context_length + 1)


# -- what a pre-training starts from ----------------------------------------------------------------------------------


def started(**changes):
    kind = dict(tokenizer="auto", transformer="auto", preset="smoke", action_dim=4, context_length=None, rewards=True)
    return make_model(**kind | dict(start_from=str(TINY)) | changes)


def test_a_checkpoint_is_taken_over_whole_or_its_tokenizer_alone():
    official = IVideoGPT.from_pretrained(TINY, action_dim=4)
    whole, of_tokenizer = started(), started(transformer="tiny")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in official.state_dict().items())
    own = of_tokenizer.tokenizer.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in official.tokenizer.state_dict().items())
    assert of_tokenizer.transformer.config == sizes(TransformerConfig, "tiny", "small")
    assert of_tokenizer.transformer.head.out_features == official.layout.vocabulary


def test_a_hub_name_is_fetched_by_huggingface_hub(monkeypatch):
    hub = types.ModuleType("huggingface_hub")
    hub.__spec__ = importlib.machinery.ModuleSpec("huggingface_hub", None)
    asked = []
    hub.snapshot_download = lambda name: asked.append(name) or str(TINY)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert started(start_from="thuml/ivideogpt-oxe-64-act-free").layout.context_length == 2
    assert asked == ["thuml/ivideogpt-oxe-64-act-free"]


def test_context_length_actions_and_rewards_are_chosen():
    assert started(context_length=1).layout.context_length == 1
    assert started(start_from="none", context_length=3).layout.context_length == 3
    assert started(action_dim=0, rewards=False).action_linear is None
    assert not started(action_dim=0, rewards=False).heads
    assert not started(action_dim=7).action_linear.weight.any()  # of another robot
    with pytest.raises(WeightsError, match="context_length=3 is not possible"):
        started(context_length=3)
    with pytest.raises(UserError, match="tokenizer=64: start_from=.* has one"):
        started(tokenizer="64")


def test_a_model_without_rewards_learns():
    model = IVideoGPT(TOKENIZER, TRANSFORMER, action_dim=3, heads=())
    learner = WorldModelLearner(model, LEARNER, seed=0)
    metrics = [learner.update(make_clips()) for _ in range(10)]
    assert "reward_loss" not in metrics[0]
    assert metrics[-1]["transformer_loss"] < metrics[0]["transformer_loss"]


def overrides(data, out, *more):
    asked = dict(
        data=data, out=out, start_from=TINY, tokenizer_updates=1, transformer_updates=1, cached_clips=20, horizon=3,
        device="cpu", threads=1,
    )  # fmt: skip
    learner = dict(segment_length=5, tokenizer_span=5, sampled_future_frames=2, batch_size=2, tokenizer_batch_size=2)
    asked |= {f"learner.{key}": value for key, value in learner.items()}
    return [*(f"{key}={value}" for key, value in asked.items()), *more]


def test_pre_training_without_actions_and_rewards(data, tmp_path, typed, monkeypatch):
    """Of data that has both, from a checkpoint that has both, with one frame given instead of two."""
    monkeypatch.setattr("mbrl.world.validate.CLIPS", 4)
    given = overrides(data, tmp_path / "out", "actions=false", "rewards=false", "context_length=1")
    code, _, error = typed(pretrain.main, *given)
    assert (code, error) == (0, "")
    model = tmp_path / "out/model"
    assert read_heads(model) == (0, ())
    assert read_configs(model)[0].context_length == 1
    logged = (tmp_path / "out/metrics.jsonl").read_text()
    assert "held_out/moving_error_ratio" in logged
    assert "reward" not in logged
    code, _, error = typed(pretrain.main, *given, "goal=true")
    assert code == 2
    assert "goal=true needs context_length=2" in error


def test_few_episodes_are_drawn_by_the_seed_and_more_contain_them(data):
    def kept(count, seed):
        part = ClipDataset(data, "train")
        part.keep(count, np.random.default_rng(seed))
        assert part.num_episodes == count
        return {part.episode(i).rewards.tobytes() for i in range(count)}

    assert len(kept(3, 0)) == 3
    assert kept(3, 0) == kept(3, 0) != kept(3, 1)
    assert kept(3, 0) < kept(5, 0) < kept(19, 0)
    with pytest.raises(DataError, match="has 19 episodes to learn from, not 20"):
        kept(20, 0)


def test_pre_training_on_few_episodes_sees_no_other(data, tmp_path):
    settings = load_plain(pretrain.PretrainSettings, "pretrain", overrides(data, tmp_path, "episodes=2"))
    training = pretrain.Pretraining(settings)
    assert training.train_data.num_episodes == 2
    few = {action.tobytes() for i in range(2) for action in training.train_data.episode(i).actions}
    drawn = {action.numpy().tobytes() for clip in training.tokens.actions for action in clip[:-1]}
    assert drawn <= few
    assert len(drawn) > 7  # of both
