"""How good predicted frames and rewards are."""

from world_model.metrics.frames import copied_share, correlation, moved, moving_errors, psnr, ssim

__all__ = ["copied_share", "correlation", "moved", "moving_errors", "psnr", "ssim"]
