"""A saved world model as the predictor that VP2's planners call (Tian et al. 2023, arXiv 2304.13723).

    predictor = VP2Predictor("world_model/pretrained/small")
    predictor({"video": video, "actions": actions})["rgb"]

Written after VP2's interface for FitVid and the one of thuml/iVideoGPT, whose conventions it keeps: of the actions that
lead through the context none is looked at, and the context frames that come back have been through the tokenizer.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbrl.predict.models import Precision, load_predictor
from world_model.api import Dreamable, imagine
from world_model.hub import fetch, local, model_in
from world_model.schema import UserError


class VP2Predictor:
    """What VP2 asks of a model: `num_context`, `base_prediction_modality`, and a call.

    Args:
        folder: of a world model, iVideoGPT or one-step, or of a run that left one; or a name of the hub.
        max_rows: candidates dreamt side by side.
        temperature, top_k: of the model's draws; VP2's planners were run with 1 and 100, 0 takes the likeliest.
        seed: of the draws, from the first call on.
        device, precision: where it computes, and in what; fp32 equals the official code to 1e-4.
    Raises:
        UserError, WeightsError: there is no such model.
    """

    base_prediction_modality = "rgb"

    def __init__(
        self,
        folder: str | Path,
        max_rows: int = 200,
        temperature: float = 1.0,
        top_k: int = 100,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
    ) -> None:
        path = local(folder) or fetch(str(folder))
        if path is None:
            raise UserError(f"{folder}: there is no such folder")
        self.device = torch.device(device)
        self._model = load_predictor(model_in(path), None, precision, self.device)
        self.num_context = self._model.context_length  # K
        self._max_rows, self._temperature, self._top_k = max_rows, temperature, top_k
        self._generator = torch.Generator(self.device).manual_seed(seed)

    @property
    def world(self) -> Dreamable:
        return self._model.world

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Frames 1 to T of each candidate.

        Args:
            batch: "video", float (B, K, H, W, 3) in [0, 1], the context; "actions", float (B, T, A), of which
                `actions[:, i]` leads from frame i to the next.
        Returns:
            "rgb", float32 (B, T, H, W, 3) in [0, 1]: the context frames but the first, then T - K + 1 dreamt ones.
        Raises:
            UserError: other shapes.
        """
        video, actions = (torch.as_tensor(np.asarray(batch[key]), dtype=torch.float32) for key in ("video", "actions"))
        known, size, wide = self.num_context, self._model.resolution, self._model.action_dim
        if video.shape[1:] != (known, size, size, 3):
            raise UserError(f"video {tuple(video.shape)} must be (B, {known}, {size}, {size}, 3)")
        if actions.ndim != 3 or len(actions) != len(video) or actions.shape[1] < known or actions.shape[2] != wide:
            raise UserError(f"actions {tuple(actions.shape)} must be ({len(video)}, {known} or more, {wide})")
        rows = zip(video.split(self._max_rows), actions.split(self._max_rows), strict=True)
        return {"rgb": np.concatenate([self._predicted(*some) for some in rows])}

    def _predicted(self, video: Tensor, actions: Tensor) -> np.ndarray:
        context, future = video.permute(0, 1, 4, 2, 3).to(self.device), actions[:, self.num_context - 1 :]
        with self._model.autocast():
            dream = imagine(
                self.world,
                context,
                future.to(self.device),
                future.shape[1],
                temperature=self._temperature,
                top_k=self._top_k,
                generator=self._generator,
            )
            if (tokens := self._model.tokens) is not None:
                context = tokens.tokenizer.detokenize(tokens.tokenizer.tokenize(context)[0]).float().clamp(0, 1)
        return torch.cat([context[:, 1:], dream.frames.float()], dim=1).permute(0, 1, 3, 4, 2).cpu().numpy()
