"""What is claimed of a run that is killed and resumed again and again, compared with one that never was."""

import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.training.processes import Process, Server
from trainlab.checkpoint import Checkpoint, list_checkpoints
from trainlab.storage import open_store

__all__ = ["SIGKILL", "Interrupted", "Whole", "check_recorded", "lines", "saved"]

SIGKILL = -signal.SIGKILL
PERIOD = 4


class Whole:
    """An uninterrupted run, checked to have read each record as often as it is trained.

    Args:
        server: where its process comes from.
        run_dir: its folder.
        features: of the program.
        *options: further ones of the program.

    Attributes:
        batches: what was trained, batch by batch.
        saves: the batches at which checkpoints were made.
        seconds: how long the process took.
    """

    def __init__(self, server: Server, run_dir: Path, features: str, *options: object) -> None:
        self.run_dir, self.features, self.options = run_dir, features, options
        begun = time.monotonic()
        self.process, status = server.run(run_dir, "--features", features, "--leave-at-once", *options)
        self.seconds = time.monotonic() - begun
        assert status == 0, self.process.stderr
        assert self.process.gone()
        self.batches = self.process.trained()
        self.saves = self.process.begun()
        check_reads(self.process, self, 0, (run_dir / "log.txt").read_text())


class Interrupted:
    """A run that is killed any number of times; whatever is claimed of that is checked at each kill.

    Args:
        server: where its processes come from.
        run_dir: its folder.
        whole: the run that it must be like.

    Attributes:
        first: the batches that were trained at the newest checkpoint: where the next process has to begin.
    """

    def __init__(self, server: Server, run_dir: Path, whole: Whole) -> None:
        self._server, self._run_dir, self._whole = server, run_dir, whole
        self._processes: list[Process] = []
        self.first = max(saved(run_dir), default=0)

    def kill_at(self, place: str) -> bool:
        """Run until a place, where the process dies by itself; False if it came to its end before."""
        process, status = self._server.run(self._run_dir, *self._arguments(), "--kill-at", place)
        return self._ended(process, status)

    def kill_after(self, seconds: float) -> bool:
        """Run for so long, and be killed from outside; False if it came to its end before."""
        process = self._server.start(self._run_dir, *self._arguments())
        process.gone(seconds)
        process.signal(signal.SIGKILL)  # nobody has waited for it, so the number is its own still
        return self._ended(process, process.wait())

    def finish(self) -> Process:
        """Run to the end, and compare all that is left with the uninterrupted run."""
        log = self._run_dir / "log.txt"
        logged_before = log.stat().st_size if log.exists() else 0
        process, status = self._server.run(self._run_dir, *self._arguments())
        first = self.first
        assert not self._ended(process, status)
        whole = self._whole
        assert len(process.trained()) == len(whole.batches) - first
        check_reads(process, whole, first, log.read_bytes()[logged_before:].decode())
        found, expected = process.result, whole.process.result
        differing = [part for part in expected if found[part] != expected[part]]
        assert not differing, f"other {differing} than {whole.run_dir}"
        check_recorded(self._run_dir, whole.run_dir)
        assert all(one.gone() for one in self._processes)
        return process

    def _arguments(self) -> list[object]:
        return ["--features", self._whole.features, "--leave-at-once", *self._whole.options]

    def _ended(self, process: Process, status: int) -> bool:
        """Check what a process did and left; say whether it was killed."""
        assert status in (0, SIGKILL), process.stderr
        self._processes.append(process)
        whole, before = self._whole, self.first
        self.first = max(saved(self._run_dir), default=0)
        trained, begun = process.trained(), process.begun()
        assert trained == whole.batches[before : before + len(trained)], f"not from batch {before}: {process.out}"
        assert begun == [save for save in whole.saves if save > before][: len(begun)], process.out
        # Nothing that was durable is lost, ...
        last_begun = begun[-1] if begun else before
        durable = max([save for save in whole.saves if save < last_begun], default=0)
        told_durable = max([before, *map(batch_of, process.told_durable())])
        assert self.first >= max(durable, told_durable), f"{self.first} is left of {durable} and {told_durable}"
        # ... and no more is done again than what came after the last checkpoint, or the one before, if that was
        # still being written.
        done_again = before + len(trained) - self.first
        assert done_again <= (PERIOD if self.first == last_begun else 2 * PERIOD), f"{done_again} batches are lost"
        return status == SIGKILL


def saved(run_dir: Path) -> list[int]:
    """The batches at which there are checkpoints, each of them whole."""
    store = open_store(run_dir / "checkpoints")
    names = list_checkpoints(store)
    for name in names:
        Checkpoint.open_in(store, name).close()
    return [batch_of(name) for name in names]


def batch_of(name: str) -> int:
    """The batches that were trained at a checkpoint, by its name."""
    return int(name[len("batch-") :].split(".", maxsplit=1)[0])


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what is not to be repeated: times and rates."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in ("time", "perf")} for record in records]


def scalars(run_dir: Path) -> dict[tuple[str, int], float]:
    """All scalars in TensorBoard's files, read as raw events: each (tag, step) must be there once."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: list[tuple[tuple[str, int], float]] = []
    for file in sorted((run_dir / "tensorboard").iterdir()):
        for event in LegacyEventFileLoader(str(file)).Load():
            found += [((value.tag, event.step), value.simple_value) for value in event.summary.value]
    assert len(dict(found)) == len(found)
    return {(tag, step): value for (tag, step), value in found if not tag.startswith("perf/")}


def check_recorded(run_dir: Path, whole: Path) -> None:
    """Whether each step was recorded once, and the same files are there as after an uninterrupted run."""
    found, expected = _files(run_dir), _files(whole)
    assert found == expected, f"too much: {found - expected}, missing: {expected - found}"
    check_series(run_dir, whole)


def check_series(run_dir: Path, whole: Path) -> None:
    """Whether each step was recorded once, with the numbers of an uninterrupted run."""
    assert lines(run_dir) == lines(whole)
    steps = Counter((line["kind"], line["batch"]) for line in lines(run_dir))
    assert set(steps.values()) == {1}
    assert scalars(run_dir) == scalars(whole) != {}


def check_reads(process: Process, whole: Whole, first: int, log: str) -> None:
    """Whether a process that ran to the end read the records of its own batches once, and no others."""
    batches, features = whole.batches, whole.features
    needed = Counter(number for batch in batches[first:] for number in batch["numbers"])
    begun = [b for b in batches[:first] if first < len(batches) and b["epoch"] == batches[first]["epoch"]]
    if "iterable" in features and begun:
        # It has no position to go on from: the epoch is read again up to it, and that is told once.
        needed.update(number for batch in begun for number in batch["numbers"])
        assert log.count("are read again") == 1
    else:
        assert "read again" not in log
    assert Counter(process.read()) == needed


def _files(run_dir: Path) -> set[str]:
    """What is in a run's folder, but for TensorBoard's files, of which each start makes one."""
    paths = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*")}
    return {path for path in paths if not path.startswith("tensorboard/")}
