"""Clips that a finished tokenizer has tokenized, in one file: `tokens.safetensors` of a pre-training.

The file holds a digest of the tokenizer's weights and one of its own content, so that tokens of another tokenizer and
a damaged file are noticed.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from world_model.files import READ_ERRORS, regular
from world_model.ivideogpt.config import TokenClips


def save(path: Path, clips: TokenClips, tokenizer: nn.Module) -> None:
    """Write the file whole or not at all."""
    about = {"tokenizer": _digest(tokenizer.state_dict()), "content": _digest(clips._asdict())}
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(safetensors.torch.save(clips._asdict(), about))
    temporary.rename(path)


def load(path: Path, tokenizer: nn.Module) -> TokenClips | None:
    """The clips, or None if they are damaged or were made with other weights than the tokenizer has now."""
    try:
        with safetensors.safe_open(regular(path), "pt") as file:
            about, fields = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
        expected = {"tokenizer": _digest(tokenizer.state_dict()), "content": _digest(fields)}
        return TokenClips(**fields) if about == expected else None
    except READ_ERRORS:
        return None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
