"""Putting a simulator back into the state in which it was built.

Meta-world and the DM Control suite move bodies, sites and lights of the *model* at every reset and keep
values in Python attributes, so an ordinary reset carries traces of earlier episodes. A trajectory can be a
pure function of the reset seed and the actions only if these go back first.
"""

import copy
from collections.abc import Collection
from typing import Any

import numpy as np

# Millions of bytes that no task writes to: meshes, textures, bounding volumes, names.
_NEVER_WRITTEN = ("mesh_", "tex_", "bvh_", "name", "text_", "skin_", "flex")


class ModelSnapshot:
    """The numbers of a `mujoco.MjModel` as they are now."""

    def __init__(self, model: Any) -> None:
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []  # (view into the model, copy)
        for name in dir(model):
            if name.startswith(("_", *_NEVER_WRITTEN)):
                continue
            value = getattr(model, name)
            if isinstance(value, np.ndarray) and value.flags.writeable:
                self._arrays.append((value, value.copy()))

    def restore(self) -> None:
        """Writes the numbers back into the model."""
        for live, saved in self._arrays:
            np.copyto(live, saved)


class AttributeSnapshot:
    """The Python attributes of an object as they are now, arrays and containers copied.

    Views into the simulator's memory stay views: they follow the simulation, as they do in a new object.

    Args:
        owner: whose attributes.
        shared: names of attributes kept by reference and not copied (the simulator itself).
    """

    def __init__(self, owner: Any, shared: Collection[str]) -> None:
        self._owner = owner
        self._saved = dict(vars(owner))
        self._copied = {
            name
            for name, value in self._saved.items()
            if name not in shared and not (isinstance(value, np.ndarray) and not value.flags.owndata)
        }
        for name in self._copied:
            self._saved[name] = copy.deepcopy(self._saved[name])

    def restore(self) -> None:
        """Puts the attributes back, and takes away those that came later."""
        attributes = vars(self._owner)
        attributes.clear()
        for name, value in self._saved.items():
            attributes[name] = copy.deepcopy(value) if name in self._copied else value
