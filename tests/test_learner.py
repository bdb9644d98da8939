"""What the learner does with noise, heads, codebooks, decay and dropout."""

import dataclasses

import pytest
import torch
from tiny_world import LEARNER, TOKENIZER, TRANSFORMER, make_clips, make_model

from world_model import IVideoGPT
from world_model.ivideogpt.learner import WorldModelLearner


def test_token_noise_touches_dynamics_tokens_alone():
    """Context, slots and every other clip stay; the share replaced is drawn for each clip, half the most on average."""
    model = make_model()
    layout = model.layout
    learner = WorldModelLearner(model, dataclasses.replace(LEARNER, token_noise=0.8), seed=0)
    frames = torch.rand(64, 6, 3, 32, 32)
    tokens, labels = model.tokens(frames)
    noisy, clean = learner._corrupt(tokens)
    assert clean.tolist() == 32 * [False, True]
    assert torch.equal(noisy[clean], tokens[clean])
    dynamics = (tokens >= layout.first_dynamics_id) & (tokens < layout.first_dynamics_id + layout.dynamics_codes)
    assert torch.equal(noisy[~dynamics], tokens[~dynamics])
    assert noisy[dynamics].min() >= layout.first_dynamics_id
    assert noisy[dynamics].max() < layout.first_dynamics_id + layout.dynamics_codes
    changed = (((noisy != tokens) & dynamics).sum(1) / dynamics.sum(1))[~clean]
    assert 0.3 < changed.mean() < 0.45  # a random token is the same one in 1 of 32 cases
    assert changed.min() < 0.1
    assert changed.max() > 0.6
    same, clean = WorldModelLearner(model, LEARNER, seed=0)._corrupt(tokens)
    assert same is tokens
    assert clean.all()


def test_heads_learn_from_clean_tokens_alone():
    """Rewards of the clips whose tokens are replaced change nothing; those of the others do."""

    def learned(changed):
        learner = WorldModelLearner(make_model(), dataclasses.replace(LEARNER, token_noise=0.8), seed=0)
        torch.manual_seed(1)
        clips = make_clips()
        rewards = clips.rewards.clone()
        rewards[changed] += 5
        metrics = learner.update(clips._replace(rewards=rewards))
        return metrics["reward_loss"], learner.model.heads["reward"].weight.clone()

    (loss, weight), (noisy_loss, noisy), (_, clean) = learned([]), learned([0, 2]), learned([1])
    assert loss == noisy_loss
    assert torch.equal(weight, noisy)
    assert not torch.equal(weight, clean)


def test_a_success_head_learns_where_success_is_known():
    torch.manual_seed(0)
    transformer = dataclasses.replace(TRANSFORMER, attention_dropout=0.0)
    model = IVideoGPT(TOKENIZER, transformer, 3, heads=("reward", "success"))
    learner = WorldModelLearner(model, dataclasses.replace(LEARNER, transformer_lr=1e-2), seed=0)
    clips = make_clips()
    successes = torch.full((4, 6), torch.nan)
    successes[1], successes[2] = 1.0, 0.0
    losses = [float(learner.update(clips._replace(successes=successes))["success_loss"]) for _ in range(60)]
    assert losses[0] == pytest.approx(0.693, abs=0.01), "at the start it says one half"
    assert losses[-1] < 0.1
    said = model.imagine(clips.frames[:, :2], clips.actions[:, 1:5], 4, temperature=0).heads["success"]
    assert said.shape == (4, 4)
    assert said[1].mean() > said[2].mean()
    assert "success_loss" not in learner.update(clips), "older clips do not have it"


def test_a_transformer_waits_until_codes_have_been_used():
    """The codebooks start on what the encoder gives at the first update that uses them, one after `quantize_after`."""
    learner = WorldModelLearner(
        make_model(), dataclasses.replace(LEARNER, quantize_after=2, revive_codes_until=9), seed=0
    )
    clips = make_clips()
    learned = ["transformer_loss" in learner.update(clips, clips.frames) for _ in range(4)]
    assert learned == [False, False, True, True]
    assert "transformer_loss" in WorldModelLearner(make_model(), LEARNER, seed=0).update(clips)


def test_weight_decay_spares_the_token_embedding():
    model = make_model()
    learner = WorldModelLearner(model, dataclasses.replace(LEARNER, weight_decay=0.1), seed=0)
    decayed, others = ({id(p) for p in group["params"]} for group in learner.optimizers["transformer"].param_groups)
    assert id(model.transformer.embedding.weight) in others
    assert id(model.transformer.head.weight) in decayed
    assert id(model.transformer.norm.weight) in others


@pytest.mark.parametrize("dropout", [True, False])
def test_the_tokenizer_learns_with_dropout_only_where_asked_to(dropout, monkeypatch):
    learner = WorldModelLearner(make_model(), dataclasses.replace(LEARNER, tokenizer_dropout=dropout), seed=0)
    modes, forward = [], learner.model.tokenizer.forward
    monkeypatch.setattr(
        learner.model.tokenizer,
        "forward",
        lambda *given: modes.append(learner.model.tokenizer.training) or forward(*given),
    )
    learner.update(make_clips(), make_clips().frames)
    assert modes == [dropout]
    assert not learner.model.tokenizer.training


def test_future_frames_are_drawn_for_each_clip():
    learner = WorldModelLearner(make_model(), dataclasses.replace(LEARNER, segment_length=8), seed=0)
    near = learner._choose(64, 6, torch.device("cpu"))
    assert near.shape == (64, 2)
    assert (near[:, 0] != near[:, 1]).all()
    assert len({tuple(row) for row in near.tolist()}) > 20, "not one choice for the whole batch"
    assert set(near.flatten().tolist()) == set(range(6))
    far = learner._choose(64, 40, torch.device("cpu"))
    assert far[:, 0].max() < 6, "half of a long span lies near"
    assert far[:, 1].max() > 20


def test_a_new_transformer_begins_with_the_codes():
    """Tokens with like codes have like embeddings, actions are heard, and it happens once."""
    model = make_model()
    torch.nn.init.zeros_(model.action_linear.weight)
    codebook, layout = model.tokenizer.dynamics_quantize.embedding.weight, model.layout
    with torch.no_grad():
        codebook.normal_()
        codebook[1] = codebook[0] + 0.01
    learner = WorldModelLearner(model, dataclasses.replace(LEARNER, embed_codes=True, transformer_lr=0.0), seed=0)
    embedding = model.transformer.embedding.weight
    before = embedding.detach().clone()
    learner.update(clips=make_clips())
    first = layout.first_dynamics_id
    rows = embedding[first : first + layout.dynamics_codes]
    distances = torch.cdist(rows, rows)
    assert distances[0, 1] < 0.6 * distances[0, 2:].min()
    assert 0.8 < rows.std() / before[first : first + layout.dynamics_codes].std() < 1.25
    assert torch.equal(embedding[layout.scf :], before[layout.scf :]), "slots stand for no code"
    assert torch.equal(model.transformer.head.weight, embedding)
    assert model.action_linear.weight.any()
    after = embedding.detach().clone()
    learner.update(clips=make_clips())
    assert torch.equal(embedding, after)
