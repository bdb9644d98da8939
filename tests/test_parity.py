"""Our world model computes what the official implementation computes.

`data/official-tiny` is a tiny model in the official checkpoint layout with the outputs of the official code
(thuml/iVideoGPT 2ae0381, transformers 4.38.2, diffusers 0.27.0, torch 2.13.0 on a CPU, float32, evaluation mode).
To regenerate it: build the official `CompressiveVQModel` and `HeadModelWithAction` at the sizes of the two config.json,
save both in their own formats, and store the arrays that `expected.safetensors` names.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from world_model import IVideoGPT, TokenizerConfig, TransformerConfig, WeightsError, symexp
from world_model.ivideogpt.weights import TRANSFORMER_FILE, read_configs

TINY = Path(__file__).parent / "data" / "official-tiny"
CLOSE = dict(rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def expected():
    return load_file(TINY / "expected.safetensors")


@pytest.fixture(scope="module", params=["as saved", "keys left out", "without llm prefix"])
def model(request, tmp_path_factory):
    """The tiny model, read from each form that official checkpoints come in."""
    folder = tmp_path_factory.mktemp("official")
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    if request.param == "keys left out":
        path = folder / "tokenizer/config.json"
        config = json.loads(path.read_text())
        for key in ("patch_size", "in_channels", "norm_num_groups"):
            del config[key]  # the values of the tiny model are the official defaults
        path.write_text(json.dumps(config))
        path = folder / "transformer/config.json"
        config = json.loads(path.read_text())
        for key in ("rms_norm_eps", "rope_theta", "attention_dropout", "num_key_value_heads", "vocab_size"):
            del config[key]
        path.write_text(json.dumps(config))
    if request.param == "without llm prefix":
        state = load_file(folder / TRANSFORMER_FILE)
        save_file({k.removeprefix("llm."): v for k, v in state.items()}, folder / TRANSFORMER_FILE)
    return IVideoGPT.from_pretrained(folder, action_dim=4, context_length=2).eval()


@torch.no_grad()
def test_tokens(model, expected):
    tokens, labels = model.tokenizer.tokenize(expected["frames"])
    assert torch.equal(tokens, expected["tokens"])
    assert torch.equal(labels, expected["labels"])


@torch.no_grad()
def test_detokenize(model, expected):
    torch.testing.assert_close(model.tokenizer.detokenize(expected["tokens"]), expected["detokenized"], **CLOSE)


@torch.no_grad()
def test_tokenizer_training_forward(model, expected):
    out = model.tokenizer(expected["frames"])
    torch.testing.assert_close(out.future.flatten(0, 1), expected["recon"], **CLOSE)
    torch.testing.assert_close(out.context.flatten(0, 1), expected["ref_recon"], **CLOSE)
    torch.testing.assert_close(out.commit_loss, expected["commit_loss"], **CLOSE)
    torch.testing.assert_close(out.dynamics_commit_loss, expected["dyn_commit_loss"], **CLOSE)


@torch.no_grad()
def test_transformer(model, expected):
    out = model(expected["frames"], expected["actions"])
    torch.testing.assert_close(out.logits, expected["logits"], **CLOSE)
    torch.testing.assert_close(out.ce_loss, expected["ce_loss"], **CLOSE)
    torch.testing.assert_close(out.reward_pred, expected["reward_pred"][..., 0], **CLOSE)
    assert out.loss is out.ce_loss  # no rewards were given


@torch.no_grad()
def test_greedy_rollout(model, expected):
    dream = model.imagine(expected["rollout_context"], expected["rollout_actions"], horizon=6, temperature=0)
    assert torch.equal(dream.tokens, expected["rollout_tokens"])
    torch.testing.assert_close(dream.frames, expected["rollout_frames"], **CLOSE)
    torch.testing.assert_close(dream.rewards, expected["rollout_rewards"][..., 0], **CLOSE)
    torch.testing.assert_close(symexp(expected["rollout_rewards_symlog"]), expected["rollout_rewards"], **CLOSE)
    assert torch.equal(dream.actions, expected["rollout_actions"])


def test_saved_folder_reads_back_equal(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = IVideoGPT.from_pretrained(tmp_path, action_dim=4, context_length=2)
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    for key, value in again.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert read_configs(tmp_path) == (model.tokenizer.config, model.transformer.config)
    saved, official = load_file(tmp_path / TRANSFORMER_FILE), load_file(TINY / TRANSFORMER_FILE)
    assert saved.keys() == official.keys()
    assert all(torch.equal(saved[k], official[k]) for k in official)


def test_fewer_context_frames_keep_the_last_positions(expected):
    two = IVideoGPT.from_pretrained(TINY, context_length=2)
    one = IVideoGPT.from_pretrained(TINY, context_length=1).eval()
    for name, parameter in one.tokenizer.named_parameters():
        if name.endswith("kv_pos_emb"):
            assert torch.equal(parameter, two.tokenizer.get_parameter(name)[-len(parameter) :])
    with torch.no_grad():
        tokens, _ = one.tokenizer.tokenize(expected["frames"])
    assert tokens.shape[1] == one.layout.length(expected["frames"].shape[1])
    with pytest.raises(WeightsError, match="context_length=3"):
        IVideoGPT.from_pretrained(TINY, context_length=3)


def test_action_free_checkpoint_starts_actions_at_zero(tmp_path, expected):
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / TRANSFORMER_FILE)
    save_file(
        {k.removeprefix("llm."): v for k, v in state.items() if k.startswith("llm.")},
        tmp_path / TRANSFORMER_FILE,
    )
    model = IVideoGPT.from_pretrained(tmp_path, action_dim=7).eval()
    actions = torch.randn(2, 8, 7)
    with torch.no_grad():
        a, b = model(expected["frames"], actions), model(expected["frames"])
    assert torch.equal(a.logits, b.logits)


def test_another_robots_actions_start_at_zero_when_asked_for(expected):
    model = IVideoGPT.from_pretrained(TINY, action_dim=7, new_actions=True).eval()
    as_it_was = IVideoGPT.from_pretrained(TINY, action_dim=4).eval()
    assert not model.action_linear.weight.any()
    kept = {name: value for name, value in as_it_was.state_dict().items() if not name.startswith("action_linear")}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in kept.items())


def test_weights_can_be_saved_in_half_the_size(model, tmp_path):
    model.save_pretrained(tmp_path, torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / TRANSFORMER_FILE).values()} == {torch.bfloat16}
    again = IVideoGPT.from_pretrained(tmp_path, action_dim=4, context_length=2)
    for key, value in model.state_dict().items():
        assert again.state_dict()[key].dtype == torch.float32
        assert torch.equal(again.state_dict()[key], value.bfloat16().float()), key


@pytest.mark.parametrize("file", ["tokenizer/diffusion_pytorch_model.safetensors", "transformer/model.safetensors"])
def test_damaged_checkpoints_are_named(file, tmp_path):
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=Path(file).name):
        IVideoGPT.from_pretrained(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(WeightsError, match="missing"):
        IVideoGPT.from_pretrained(tmp_path)


def test_checkpoint_of_other_sizes_is_refused(tmp_path):
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 32}))
    with pytest.raises(WeightsError, match="another size"):
        IVideoGPT.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="action_linear|another size"):
        IVideoGPT.from_pretrained(TINY, action_dim=5)


def test_a_residual_tokenizer_of_earlier_versions_is_refused(tmp_path):
    """Its weights have the shapes of another kind, and would load."""
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"residual": True}))
    with pytest.raises(WeightsError, match="pre-train it anew"):
        IVideoGPT.from_pretrained(tmp_path)


def test_paper_size_counts_the_paper_parameters():
    tokenizer = TokenizerConfig(
        in_channels=3, resolution=64, block_out_channels=(128, 256, 512), layers_per_block=2, latent_channels=64,
        norm_num_groups=32, mid_block_add_attention=False, num_vq_embeddings=8192, num_dyn_embeddings=8192,
        patch_size=4, max_att_resolution=16, context_length=2, cross_attention_dropout=0.1,
        space_to_depth=1,
        blend=False,
    )  # fmt: skip
    transformer = TransformerConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, attention_dropout=0.1,
        rms_norm_eps=1e-6, rope_theta=10000.0, initializer_range=0.02, max_position_embeddings=1024,
    )  # fmt: skip
    with torch.device("meta"):
        model = IVideoGPT(tokenizer, transformer, action_dim=4)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert round(count(model.tokenizer) / 1e6, 2) == 114.16
    heads = count(model.action_linear) + count(model.heads)
    assert round((count(model.transformer) + heads) / 1e6, 2) == 138.44
    assert model.layout.vocabulary == 16386
    assert model.layout.length(12) == 683
