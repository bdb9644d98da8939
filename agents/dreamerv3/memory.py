"""Latest known states of the replayed steps, so that a window can begin where the step before it left off.

The official code keeps these entries in its replay (`replay_context: 1`): they are written when a step comes in, and
again whenever it was learned from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.dreamerv3.config import Size
from agents.dreamerv3.rssm import State


class StateMemory:
    """A state for each slot of a replay buffer, on the device of the agent.

    The deterministic part, within (-1, 1), is kept in float16: closer than the bfloat16 of the official code. At
    `size12m` that is 4 kB a step, of which a checkpoint holds those written so far: 0.8 GB after 400,000 frames at
    action repeat 2. Continuing bit for bit needs them: each state was made by the weights that last saw its step, so
    the present weights cannot make it again, and most change between two checkpoints, so saving only changes gains
    nothing.
    """

    def __init__(self, slots: int, size: Size, device: torch.device) -> None:
        self.classes = size.classes
        self.deter = torch.zeros(slots, size.deter, dtype=torch.float16, device=device)
        self.stoch = torch.zeros(slots, size.stoch, dtype=torch.uint8, device=device)  # class of each latent
        self.used = 0  # slots from here on were never written

    def read(self, slots: Tensor) -> State:
        """The states (B, ...) at int64 slots (B,)."""
        stoch = F.one_hot(self.stoch[slots].long(), self.classes).float().flatten(1)
        return State(self.deter[slots].float(), stoch)

    def reserve(self, slots: Tensor) -> None:
        """Slots (on the CPU) that are about to be written for the first time."""
        self.used = max(self.used, int(slots.max()) + 1)

    def write(self, slots: Tensor, states: State) -> None:
        """Keeps states (B, T, ...) at slots (B, T)."""
        slots = slots.flatten()
        deter = states.deter.detach().flatten(0, 1).half()
        stoch = states.stoch.detach().flatten(0, 1).unflatten(1, (-1, self.classes)).argmax(-1).to(torch.uint8)
        if slots.device.type == "cpu":  # of equal slots numpy keeps the last; torch, with several threads, any
            self.deter.numpy()[slots.numpy()] = deter.numpy()
            self.stoch.numpy()[slots.numpy()] = stoch.numpy()
        else:
            self.deter[slots], self.stoch[slots] = deter, stoch

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the slots that were ever written."""
        return {"deter": self.deter[: self.used].clone(), "stoch": self.stoch[: self.used].clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` returned."""
        self.used = len(state["deter"])
        self.deter[: self.used], self.stoch[: self.used] = state["deter"], state["stoch"]
