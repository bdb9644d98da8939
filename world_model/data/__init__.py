"""Video with actions and rewards to train world models on: one format, whatever the source."""

from world_model.data.clips import ClipBatch, ClipDataset, DataError, Recording, shard_names, write_shard

__all__ = ["ClipBatch", "ClipDataset", "DataError", "Recording", "shard_names", "write_shard"]
