"""Checkpoints: a folder with a manifest, written last; weights in safetensors, the rest as data."""

from trainlab.checkpoint.background import MODES, CheckpointWriter, SaveMode, Write
from trainlab.checkpoint.classes import classes_in, register_class
from trainlab.checkpoint.layout import checkpoint_name, list_checkpoints, remove_checkpoint, remove_rubbish
from trainlab.checkpoint.matching import match_keys
from trainlab.checkpoint.parts import Parts
from trainlab.checkpoint.reader import Checkpoint, latest_checkpoint
from trainlab.checkpoint.retention import Entry, Retention
from trainlab.checkpoint.sharding import (
    is_sharded,
    only_parts,
    part_of,
    place_as_part,
    place_like,
    place_tree,
    without_parts,
)
from trainlab.checkpoint.simple import load_checkpoint, newest_of_run, save_checkpoint
from trainlab.checkpoint.snapshot import Snapshot
from trainlab.checkpoint.tree import decode, encode
from trainlab.checkpoint.warm_start import LoadedKeys, load_weights
from trainlab.checkpoint.writer import WriteAbortedError

__all__ = [
    "MODES",
    "Checkpoint",
    "CheckpointWriter",
    "Entry",
    "LoadedKeys",
    "Parts",
    "Retention",
    "SaveMode",
    "Snapshot",
    "Write",
    "WriteAbortedError",
    "checkpoint_name",
    "classes_in",
    "decode",
    "encode",
    "is_sharded",
    "latest_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "load_weights",
    "match_keys",
    "newest_of_run",
    "only_parts",
    "part_of",
    "place_as_part",
    "place_like",
    "place_tree",
    "register_class",
    "remove_checkpoint",
    "remove_rubbish",
    "save_checkpoint",
    "without_parts",
]
