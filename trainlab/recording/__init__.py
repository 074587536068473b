"""What a run writes down of itself, and what a person sees of it while it runs."""

from trainlab.recording.csv import CsvBackend
from trainlab.recording.display import Display, LineDisplay, NoDisplay, make_display
from trainlab.recording.jsonl import JsonlBackend
from trainlab.recording.record import Record
from trainlab.recording.recorder import Backend, Recorder
from trainlab.recording.rich_display import RichDisplay
from trainlab.recording.tensorboard import TensorBoardBackend, TorchWriter

__all__ = [
    "Backend",
    "CsvBackend",
    "Display",
    "JsonlBackend",
    "LineDisplay",
    "NoDisplay",
    "Record",
    "Recorder",
    "RichDisplay",
    "TensorBoardBackend",
    "TorchWriter",
    "make_display",
]
