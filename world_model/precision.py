"""Which precision to compute in: the one answer to whether a device computes in bf16."""

import dataclasses
from typing import Any, TypeVar

import torch

Config = TypeVar("Config", bound=Any)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 by itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The reduced precision to compute in, or None for float32.

    Raises:
        ValueError: `precision` is none of auto, fp32, bf16.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision={precision}: it must be auto, fp32 or bf16")
    reduced = precision == "bf16" or (precision == "auto" and computes_in_bf16(device))
    return torch.bfloat16 if reduced else None


def decided(config: Config, device: torch.device) -> Config:
    """A frozen config with its `precision` fp32 or bf16, whichever auto means on this device."""
    reduced = autocast_dtype(config.precision, device) is not None
    return dataclasses.replace(config, precision="bf16" if reduced else "fp32")
