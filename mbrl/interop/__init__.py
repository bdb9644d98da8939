"""What other programs use of a run: its policy and its world model (`load`), and its dreams as an environment."""

from mbrl.interop.policy import Policy, load

__all__ = ["Policy", "load"]
