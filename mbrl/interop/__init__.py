"""What other programs use of a run: its policy and its world model (`load`), and its dreams as an environment."""

from mbrl.interop.trained import Trained, load

__all__ = ["Trained", "load"]
