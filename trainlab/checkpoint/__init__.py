"""Checkpoints: a folder with a manifest, written last; weights in safetensors, the rest as data."""

from trainlab.checkpoint.layout import allot, list_checkpoints, remove_rubbish
from trainlab.checkpoint.reader import Checkpoint, latest_checkpoint, match_keys
from trainlab.checkpoint.tree import decode, encode
from trainlab.checkpoint.writer import write_checkpoint

__all__ = [
    "Checkpoint",
    "allot",
    "decode",
    "encode",
    "latest_checkpoint",
    "list_checkpoints",
    "match_keys",
    "remove_rubbish",
    "write_checkpoint",
]
