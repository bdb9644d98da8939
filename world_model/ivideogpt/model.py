"""iVideoGPT (Wu et al., arXiv 2405.15223): its network, dreams in it, and checkpoints in the official layout."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from world_model.api import Dream, Origin, imagine
from world_model.hub import fetch, local, model_in
from world_model.ivideogpt import weights
from world_model.ivideogpt.network import VideoGPT
from world_model.ivideogpt.rollout import TokenRollout


class IVideoGPT(VideoGPT):
    """An interactive world model over frames, actions and rewards; its arguments are those of `VideoGPT`."""

    def start(
        self,
        context: Tensor,
        temperature: float = 1.0,
        top_k: int = 100,
        generator: torch.Generator | None = None,
        *,
        origins: Sequence[Origin] | None = None,
        horizon: int | None = None,
        guard: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> TokenRollout:
        """Begin to dream; see `world_model.api.WorldModel.start` and, for `guard`, `TokenRollout`."""
        return TokenRollout(self, context, temperature, top_k, generator, horizon, guard)

    def imagine(
        self,
        context: Tensor,
        policy: Tensor | Callable[[Tensor], Tensor],
        horizon: int,
        temperature: float = 1.0,
        top_k: int = 100,
        generator: torch.Generator | None = None,
    ) -> Dream:
        """Dream `horizon` frames ahead; see `world_model.api.imagine`."""
        return imagine(self, context, policy, horizon, temperature=temperature, top_k=top_k, generator=generator)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        action_dim: int = 4,
        context_length: int | None = 2,
        attention_dropout: float | None = None,
        new_actions: bool = False,
        heads: Collection[str] = ("reward",),
    ) -> "IVideoGPT":
        """Load a checkpoint in the official layout (`tokenizer/`, `transformer/`).

        Args:
            folder: of the checkpoint or of a run; a name of the hub, `<owner>/<name>@<revision>`; or, from anywhere,
                `world_model/pretrained/small`, weights that come with the package.
            action_dim: A; 0 for an action-free model. A checkpoint without action weights starts them at zero.
            context_length: K, at most the checkpoint's; None takes the checkpoint's.
            attention_dropout: of the transformer while training; None keeps the checkpoint's.
            new_actions: start the action weights at zero where the checkpoint's are for another `action_dim`.
            heads: what is predicted beside the frames; a head that the checkpoint has not starts at zero.
        Raises:
            world_model.WeightsError: files are missing, damaged or of other sizes.
        """
        folder = model_in(local(folder) or fetch(str(folder)) or Path(folder))
        tokenizer, transformer = weights.read_configs(folder, context_length)
        if attention_dropout is not None:
            transformer = replace(transformer, attention_dropout=attention_dropout)
        model = cls(tokenizer, transformer, action_dim, heads)
        weights.load(model, folder, new_actions)
        return model

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a checkpoint in the official layout; see `world_model.ivideogpt.weights.save`."""
        weights.save(self, folder, dtype)
