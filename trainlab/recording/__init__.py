"""What a run writes down of itself, and what a person sees of it while it runs. Only a Recorder needs torch."""

from typing import TYPE_CHECKING

from trainlab.recording.counter import Counter
from trainlab.recording.csv import CsvBackend
from trainlab.recording.display import Display, LineDisplay, NoDisplay, make_display
from trainlab.recording.jsonl import JsonlBackend
from trainlab.recording.loop_bar import live_terminal, with_bar
from trainlab.recording.record import Record
from trainlab.recording.rich_display import RichDisplay
from trainlab.recording.series import Backend, Series
from trainlab.recording.tensorboard import TensorBoardBackend, TorchWriter

if TYPE_CHECKING:
    from trainlab.recording.recorder import Recorder

__all__ = [
    "Backend",
    "Counter",
    "CsvBackend",
    "Display",
    "JsonlBackend",
    "LineDisplay",
    "NoDisplay",
    "Record",
    "Recorder",
    "RichDisplay",
    "Series",
    "TensorBoardBackend",
    "TorchWriter",
    "live_terminal",
    "make_display",
    "with_bar",
]


def __getattr__(name: str) -> object:
    if name != "Recorder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trainlab.recording.recorder import Recorder

    globals()[name] = Recorder
    return Recorder
