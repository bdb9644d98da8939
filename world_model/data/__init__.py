"""Video with actions and rewards to train world models on: one format, whatever the source."""

from world_model.data.clips import ClipDataset, DataError, goal_first, shard_names, write_shard
from world_model.data.source import BROKEN, Reader, SourceOptions


def make_reader(source: str, options: SourceOptions) -> Reader:
    """The reader of a format. Raises DataError if there is none, or if a package that it needs is missing."""
    # Imported here: no reader should need the packages of another.
    if source == "npz":
        from world_model.data.npz import NpzFolder

        return NpzFolder(options)
    if source == "lerobot":
        from world_model.data.lerobot import LeRobot

        return LeRobot(options)
    if source == "rlds":
        from world_model.data.rlds import Rlds

        return Rlds(options)
    if source == "ssv2":
        from world_model.data.ssv2 import SomethingV2

        return SomethingV2(options)
    if source == "bair":
        from world_model.data.bair import Bair

        return Bair(options)
    if source == "robonet":
        from world_model.data.robonet import RoboNet

        return RoboNet(options)
    raise DataError(f"source={source}: there is no reader for it")


__all__ = [
    "BROKEN",
    "ClipDataset",
    "DataError",
    "Reader",
    "SourceOptions",
    "goal_first",
    "make_reader",
    "shard_names",
    "write_shard",
]
