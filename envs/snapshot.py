"""The state of a MuJoCo simulator: put back as it was built, or as it was at any moment of an episode.

Meta-world and the DM Control suite move bodies, sites and lights of the *model* at every reset and keep
values in Python attributes, so an ordinary reset carries traces of earlier episodes, and MuJoCo's own state
alone is no full one. `MujocoState` keeps all three: physics, model, attributes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# Millions of bytes that no task writes to: meshes, textures, bounding volumes, names.
_NEVER_WRITTEN = ("mesh_", "tex_", "bvh_", "name", "text_", "skin_", "flex")
_IMMUTABLE = (type(None), bool, int, float, str, tuple, np.generic)


class MujocoSnapshot(NamedTuple):
    """What one moment of an episode consists of; can be pickled, and restored into another simulator of the task."""

    physics: np.ndarray  # float64 (S,): MuJoCo's mjSTATE_INTEGRATION, the warm start of its solver included
    model: Mapping[str, np.ndarray]  # the arrays of the model in which it differs from the model as built
    attributes: tuple[Mapping[str, Any], ...]  # of each owner, by name


class MujocoState:
    """Everything that an episode changes in a MuJoCo simulator, as it is built now.

    In hardly any task does the model change within an episode, so it is compared with the built one once an episode,
    at the first snapshot; with `changing_model` at each.

    Args:
        model: a `mujoco.MjModel`.
        data: its `mujoco.MjData`.
        owners: the objects whose Python attributes belong to the state: numbers, strings, arrays and containers
            of them. Attributes of other types are parts of the simulator and stay as they are: spaces, random
            generators (seeded by every reset, and not drawn from after it), the model.
    """

    def __init__(self, model: Any, data: Any, *owners: Any, changing_model: bool = False) -> None:
        import mujoco

        self._mujoco = mujoco
        self._kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self._size = mujoco.mj_stateSize(model, self._kind)
        self._model, self._data, self._owners, self._changing = model, data, owners, changing_model
        self._arrays = {name: (array, array.copy()) for name, array in _arrays_of(model) if array.flags.writeable}
        self._fields = [(name, _address(array), array.nbytes) for name, array in _arrays_of(data)]
        self._attributes = self._copy_attributes()
        self._changes: Mapping[str, np.ndarray] | None = {}  # of the model in this episode; None before one asks

    def rebuild(self) -> None:
        """Puts model and attributes back as they were built; the physics is for the caller to reset."""
        self._put_model({})
        self._changes = None
        self._put_attributes(self._attributes)

    def snapshot(self) -> MujocoSnapshot:
        """The state now; later changes do not touch it."""
        if self._changes is None or self._changing:
            self._changes = {
                name: live.copy() for name, (live, built) in self._arrays.items() if not np.array_equal(live, built)
            }
        physics = np.empty(self._size)
        self._mujoco.mj_getState(self._model, self._data, physics, self._kind)
        return MujocoSnapshot(physics, self._changes, self._copy_attributes())

    def restore(self, snapshot: MujocoSnapshot) -> bool:
        """Goes to the state of `snapshot`, whatever happened before; returns whether the model was written to."""
        another_episode = self._changing or self._changes is not snapshot.model
        if another_episode:
            self._put_model(snapshot.model)
            self._changes = snapshot.model
        self._put_attributes(snapshot.attributes)
        self._mujoco.mj_setState(self._model, self._data, snapshot.physics, self._kind)
        self._mujoco.mj_forward(self._model, self._data)  # positions of bodies, sites, cameras ...
        self._mujoco.mj_setState(self._model, self._data, snapshot.physics, self._kind)  # it moved the warm start
        return another_episode

    def positions(self, snapshot: MujocoSnapshot | None = None) -> np.ndarray:
        """float64 (nq,), `qpos` of a snapshot, or of the present state: radians and metres, as the model has them."""
        if snapshot is None:
            return self._data.qpos.copy()
        before = self._mujoco.mj_stateSize(self._model, self._mujoco.mjtState.mjSTATE_TIME)  # parts lie in order of bit
        return snapshot.physics[before : before + self._model.nq]

    def _put_model(self, changes: Mapping[str, np.ndarray]) -> None:
        for name, (live, built) in self._arrays.items():
            np.copyto(live, changes.get(name, built))

    def _copy_attributes(self) -> tuple[dict[str, Any], ...]:
        return tuple(
            {name: self._copied(value) for name, value in vars(owner).items() if _is_state(value)}
            for owner in self._owners
        )

    def _put_attributes(self, saved: tuple[Mapping[str, Any], ...]) -> None:
        """Values back, and those that came later away."""
        for owner, values in zip(self._owners, saved, strict=True):
            attributes = vars(owner)
            parts = {name: value for name, value in attributes.items() if not _is_state(value)}
            attributes.clear()
            attributes.update(parts)
            attributes.update({name: self._copied(value) for name, value in values.items()})

    def _copied(self, value: Any) -> Any:
        """A copy to keep or to hand out. A view into the simulator's memory is kept as the place it looks at."""
        if isinstance(value, _IMMUTABLE):
            return value.of(self._data) if isinstance(value, _View) else value
        if isinstance(value, np.ndarray):
            return value.copy() if _owns_memory(value) else self._place_of(value)
        if isinstance(value, dict):
            return {key: self._copied(item) for key, item in value.items()}
        return type(value)(map(self._copied, value))

    def _place_of(self, view: np.ndarray) -> "_View":
        address = _address(view)
        for name, start, size in self._fields:
            if start <= address < start + size:
                return _View(name, (address - start) // view.itemsize, view.shape)
        raise ValueError("an attribute looks into memory that is not MjData's, so its state cannot be kept")


class _View(NamedTuple):
    """Where an array of the attributes lies in `MjData`: it follows the simulation."""

    field: str
    first: int
    shape: tuple[int, ...]

    def of(self, data: Any) -> np.ndarray:
        whole = getattr(data, self.field).reshape(-1)
        return whole[self.first : self.first + int(np.prod(self.shape))].reshape(self.shape)


def _is_state(value: Any) -> bool:
    return isinstance(value, (*_IMMUTABLE, np.ndarray, list, dict, set))


def _owns_memory(array: np.ndarray) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is None


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _arrays_of(owner: Any) -> list[tuple[str, np.ndarray]]:
    """The arrays of an `MjModel` or `MjData` by name, as views."""
    names = [name for name in dir(owner) if not name.startswith(("_", *_NEVER_WRITTEN))]
    return [(name, value) for name in names if isinstance(value := getattr(owner, name), np.ndarray)]
