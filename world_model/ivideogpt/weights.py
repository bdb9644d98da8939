"""Checkpoints in the official iVideoGPT layout, in and out.

    <folder>/tokenizer/   config.json  diffusion_pytorch_model.safetensors
    <folder>/transformer/ config.json  model.safetensors

The tokenizer's parameter names are the official ones. The transformer's are translated here: the official files hold
plain LLaMA keys (action-free) or the same behind `llm.` beside `action_linear.*` and `reward_linear.*`; ours joins the
query, key and value projections, and the two halves of the SwiGLU, into one matrix each.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from world_model.api import WeightsError
from world_model.files import read_json, read_tensors, reading, regular
from world_model.heads import HEADS
from world_model.ivideogpt.network import VideoGPT
from world_model.ivideogpt.tokenizer import TokenizerConfig
from world_model.ivideogpt.transformer import TransformerConfig
from world_model.schema import build

TOKENIZER_FILE = Path("tokenizer/diffusion_pytorch_model.safetensors")
TRANSFORMER_FILE = Path("transformer/model.safetensors")

# What the official classes assume where a config.json is silent (thuml/iVideoGPT and transformers' LlamaConfig).
TOKENIZER_DEFAULTS: dict[str, Any] = dict(
    in_channels=3,
    resolution=256,
    block_out_channels=[64],
    layers_per_block=1,
    latent_channels=3,
    norm_num_groups=32,
    mid_block_add_attention=True,
    num_vq_embeddings=256,
    num_dyn_embeddings=256,
    patch_size=4,
    max_att_resolution=32,
    context_length=1,
    cross_attention_dropout=0.1,
    space_to_depth=1,
    blend=False,
)
TRANSFORMER_DEFAULTS: dict[str, Any] = dict(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    attention_dropout=0.0,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    initializer_range=0.02,
    max_position_embeddings=2048,
)
# Ours -> theirs, inside one layer. A tuple is joined along the output dimension.
LAYER_KEYS: dict[str, tuple[str, ...]] = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "feed_forward_norm.weight": ("post_attention_layernorm.weight",),
    "feed_forward.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "feed_forward.down.weight": ("mlp.down_proj.weight",),
}
TOP_KEYS = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}

Config = TypeVar("Config", TokenizerConfig, TransformerConfig)


def _config(cls: type[Config], raw: dict[str, Any], defaults: dict[str, Any]) -> Config:
    return build(cls, {field.name: raw.get(field.name, defaults[field.name]) for field in fields(cls)})


def read_configs(folder: str | Path, context_length: int | None = None) -> tuple[TokenizerConfig, TransformerConfig]:
    """Sizes of a checkpoint; keys that its config files leave out take the official defaults.

    Args:
        context_length: K to use, at most the checkpoint's; None takes the checkpoint's.
    """
    folder = Path(folder)
    path = folder / "tokenizer/config.json"
    with reading(path, WeightsError):
        raw = read_json(path)
        if raw.get("residual"):
            raise WeightsError(f"{folder} holds a `residual` tokenizer, which there is no more: pre-train it anew")
        tokenizer = _config(TokenizerConfig, raw, TOKENIZER_DEFAULTS)
        _check_size(folder / TOKENIZER_FILE, tokenizer.least_parameters)
    if context_length is not None:
        if not 1 <= context_length <= tokenizer.context_length:
            raise WeightsError(
                f"{folder} was trained with {tokenizer.context_length} context frames; "
                f"context_length={context_length} is not possible"
            )
        tokenizer = replace(tokenizer, context_length=context_length)
    path = folder / "transformer/config.json"
    with reading(path, WeightsError):
        raw = read_json(path)
        transformer = _config(TransformerConfig, raw, TRANSFORMER_DEFAULTS)
        _check_size(folder / TRANSFORMER_FILE, transformer.parameters(tokenizer.layout.vocabulary))
    if (vocabulary := raw.get("vocab_size", tokenizer.layout.vocabulary)) != tokenizer.layout.vocabulary:
        raise WeightsError(
            f"{folder}: the tokenizer makes {tokenizer.layout.vocabulary} kinds of tokens, the transformer knows "
            f"{vocabulary}; they do not belong together"
        )
    return tokenizer, transformer


def _check_size(weights: Path, parameters: int) -> None:
    """Raises ValueError if a config asks for more than its weights can be, which would be made before it shows."""
    if weights.is_file() and parameters > weights.stat().st_size:
        raise ValueError(f"it has {parameters:,} parameters or more, {weights.name} fewer")


class StoredHeads(NamedTuple):
    action_dim: int  # 0: the checkpoint is action-free
    heads: tuple[str, ...]


def read_heads(folder: str | Path) -> StoredHeads:
    """Which heads the transformer of a checkpoint was saved with. Raises WeightsError."""
    path = Path(folder) / TRANSFORMER_FILE
    with reading(path, WeightsError), safe_open(regular(path), "pt") as file:
        names = file.keys()
        action_dim = file.get_slice("action_linear.weight").get_shape()[1] if "action_linear.weight" in names else 0
        return StoredHeads(action_dim, tuple(name for name in HEADS if f"{name}_linear.weight" in names))


def _fill(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Load every parameter of a module; say which one does not fit."""
    own = module.state_dict()
    for key, value in own.items():
        if key not in state:
            raise WeightsError(f"{source} has no {key}: it is not a checkpoint of this kind of model")
        if state[key].shape != value.shape:
            raise WeightsError(
                f"{source} is of another size: {key} is {tuple(state[key].shape)}, the model needs {tuple(value.shape)}"
            )
    if unknown := sorted(set(state) - set(own)):
        raise WeightsError(f"{source} holds {unknown[0]}, which this model does not have")
    module.load_state_dict(state)


def load(model: VideoGPT, folder: str | Path, new_actions: bool = False) -> None:
    """Fill a model from a checkpoint. Action weights and heads keep their start values where the checkpoint has none.

    With `new_actions` so do action weights of another width: the checkpoint's are for another robot.
    """
    load_tokenizer(model, folder)
    source = Path(folder) / TRANSFORMER_FILE
    with reading(source, WeightsError):
        state = {k: v for k, v in read_tensors(source).items() if not k.endswith("rotary_emb.inv_freq")}
    modules = _linears(model)
    for name in ["action_linear", *(f"{head}_linear" for head in HEADS)]:
        linear = {k.removeprefix(f"{name}."): state.pop(k) for k in list(state) if k.startswith(f"{name}.")}
        if not linear or name not in modules:
            continue
        other_robot = "weight" in linear and linear["weight"].shape != modules[name].weight.shape
        if new_actions and name == "action_linear" and other_robot:
            continue
        _fill(modules[name], linear, source)
    _fill(
        model.transformer,
        _from_official({k.removeprefix("llm."): v for k, v in state.items()}, source),
        source,
    )


def _linears(model: VideoGPT) -> dict[str, nn.Module]:
    """What stands beside the LLaMA, under the names of the official files."""
    heads = {f"{name}_linear": head for name, head in model.heads.items()}
    return ({} if model.action_linear is None else {"action_linear": model.action_linear}) | heads


def load_tokenizer(model: VideoGPT, folder: str | Path) -> None:
    """Fill a model's tokenizer alone from a checkpoint."""
    source = Path(folder) / TOKENIZER_FILE
    with reading(source, WeightsError):
        state = read_tensors(source)
    own = model.tokenizer.state_dict()
    for key in own:
        # Fewer context frames than trained with: the position embeddings of the last ones are kept, as officially.
        if key.endswith("kv_pos_emb") and key in state and state[key].dim() and len(state[key]) > len(own[key]):
            state[key] = state[key][-len(own[key]) :]
    _fill(model.tokenizer, state, source)


def _from_official(state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    try:
        for mine, theirs in TOP_KEYS.items():
            ours[mine] = state.pop(theirs)
        for layer in range(sum(k.endswith("input_layernorm.weight") for k in state)):
            for mine, parts in LAYER_KEYS.items():
                ours[f"blocks.{layer}.{mine}"] = torch.cat([state.pop(f"model.layers.{layer}.{k}") for k in parts])
    except KeyError as error:
        raise WeightsError(f"{source} has no {error.args[0]}: it is not a LLaMA checkpoint") from None
    return {**ours, **state}  # what is left is unknown, and `_fill` names it


def _to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    official = {theirs: state[mine] for mine, theirs in TOP_KEYS.items()}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, layer, mine = key.split(".", 2)
            parts = LAYER_KEYS[mine]
            for name, part in zip(parts, value.chunk(len(parts)), strict=True):
                official[f"model.layers.{layer}.{name}"] = part
    return official


def save(model: VideoGPT, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `model` to `folder` in the official layout, its weights as `dtype`. Not atomic.

    The official code loads it, but for what is ours: other heads, a `blend` or `space_to_depth` tokenizer.
    """
    folder = Path(folder)
    for name in ("tokenizer", "transformer"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tokenizer, transformer = model.tokenizer.config, model.transformer.config
    levels = len(tokenizer.block_out_channels)
    tokenizer_json = {
        "_class_name": "CompressiveVQModel",
        "out_channels": tokenizer.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "act_fn": "silu",
        "norm_type": "group",
        "vq_embed_dim": None,
        **asdict(tokenizer),
    }
    for key in ("cross_attention_dropout", "space_to_depth", "blend"):  # ours: the official config has no such keys
        if tokenizer_json[key] == TOKENIZER_DEFAULTS[key]:
            del tokenizer_json[key]
    transformer_json = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": model.layout.vocabulary,
        "num_key_value_heads": transformer.num_attention_heads,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **asdict(transformer),
    }
    (folder / "tokenizer/config.json").write_text(json.dumps(tokenizer_json, indent=1))
    (folder / "transformer/config.json").write_text(json.dumps(transformer_json, indent=1))

    official = _to_official(model.transformer.state_dict())
    if linears := _linears(model):
        official = {f"llm.{k}": v for k, v in official.items()}
    for name, linear in linears.items():
        official |= {f"{name}.{k}": v for k, v in linear.state_dict().items()}
    for file, state in ((TOKENIZER_FILE, model.tokenizer.state_dict()), (TRANSFORMER_FILE, official)):
        # Not `save_file`: a full disk is then an OSError, as from every other write.
        (folder / file).write_bytes(to_bytes({key: value.to(dtype).contiguous() for key, value in state.items()}))
