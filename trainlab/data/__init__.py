"""Data: loaders, samplers, and the streams of batches that training and validation read."""

from trainlab.data.better import BetterDataLoader
from trainlab.data.loader import DataLoader
from trainlab.data.samplers import (
    DistributedBatchSampler,
    DistributedSampler,
    RepeatBatchSampler,
    RepeatSampler,
    ReproducibleShuffleBatchSampler,
    ReproducibleShuffleSampler,
    SkipBatchSampler,
    SkipSampler,
)
from trainlab.data.sharded import sharded
from trainlab.data.share import piece_of_rank
from trainlab.data.stream import BatchStream
from trainlab.data.transfer import data_length, pin, to_device

__all__ = [
    "BatchStream",
    "BetterDataLoader",
    "DataLoader",
    "DistributedBatchSampler",
    "DistributedSampler",
    "RepeatBatchSampler",
    "RepeatSampler",
    "ReproducibleShuffleBatchSampler",
    "ReproducibleShuffleSampler",
    "SkipBatchSampler",
    "SkipSampler",
    "data_length",
    "piece_of_rank",
    "pin",
    "sharded",
    "to_device",
]
