import gc
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from tests.data.datasets import Augmented, Flow, Numbers
from trainlab.data import BatchStream, DataLoader
from trainlab.distributed import seed_all

DEADLINE = 120  # seconds, for what happens at once unless it is broken


def read(loader: DataLoader, *, epoch: int = 0, seed: int = 3, **position: Any) -> list[Any]:
    """Read an epoch, as Python values."""
    stream = BatchStream(loader, seed=seed)
    stream.start_epoch(epoch, **position)
    batches = [plain(batch) for batch in stream]
    stream.close()
    return batches


def plain(value: Any) -> Any:
    """Turn a batch into Python values, which compare exactly."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def children() -> list[multiprocessing.process.BaseProcess]:
    """List the workers of this process; those of loaders that an earlier test has left to the garbage go first."""
    gc.collect()
    return multiprocessing.active_children()


@pytest.mark.parametrize(
    "arguments", [{"num_workers": 1}, {"num_workers": 2}, {"num_workers": 2, "prefetch_factor": 1}]
)
def test_any_number_of_workers_gives_the_same(arguments: dict[str, Any]) -> None:
    """Order and random augmentation are the same for any number of workers, whatever this process drew before."""
    seed_all(1)
    expected = read(DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=2), epoch=1)
    seed_all(2)
    assert read(DataLoader(Augmented(), batch_size=4, shuffle=True, **arguments), epoch=1) == expected
    here = read(DataLoader(Augmented(), batch_size=4, shuffle=True), epoch=1)
    assert [batch[0] for batch in here] == [batch[0] for batch in expected]
    assert len({tuple(map(tuple, batch[1])) for batch in expected}) == len(expected)


@pytest.mark.parametrize("kind", ["map", "own sampler", "iterable"])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_resume_with_workers_is_exact(kind: str, ahead: bool) -> None:
    """With workers, the batches after a resume are those of the uninterrupted run, also when one was held."""

    def stream() -> BatchStream:
        if kind == "iterable":
            return BatchStream(DataLoader(Flow(), batch_size=4, num_workers=2), seed=3)
        order: dict[str, Any] = {"shuffle": True} if kind == "map" else {"sampler": range(36, -1, -1)}
        return BatchStream(DataLoader(Augmented(), batch_size=4, num_workers=2, **order), seed=3)

    whole = stream()
    whole.start_epoch(1)
    expected = [plain(batch) for batch in whole]
    stopped = stream()
    stopped.start_epoch(1)
    given = [plain(next(stopped)) for _ in range(3)]
    if ahead:
        assert not stopped.exhausted()
    records, state = stopped.position(), stopped.state_dict()
    stopped.close()
    resumed = stream()
    resumed.start_epoch(1, records=records, batches=3, state=state)
    given += [plain(batch) for batch in resumed]
    assert given == expected


def test_iterables_are_dealt_out_as_by_torch() -> None:
    """Batches of an iterable data set come from the workers in torch's order, each record once."""
    ours = read(DataLoader(Flow(shuffled=False), batch_size=3, num_workers=2))
    theirs = torch.utils.data.DataLoader(Flow(shuffled=False), batch_size=3, num_workers=2)
    assert [batch[0] for batch in ours] == [batch[0].tolist() for batch in theirs]


class Reporting(Dataset):
    """Its records tell what a worker sees."""

    prefix = "unset"

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int, int, bool, str]:
        info = get_worker_info()
        assert info is not None
        return os.getpid(), info.id, info.num_workers, info.dataset is self, self.prefix


def name_prefix(worker_id: int) -> None:
    """Mark the data set with the worker that reads it."""
    info = get_worker_info()
    assert info is not None
    info.dataset.prefix = f"worker {worker_id}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_see_what_torchs_see(method: str) -> None:
    """``get_worker_info`` knows the user's data set, and ``worker_init_fn`` can change it, however workers start."""
    loader = DataLoader(
        Reporting(),
        batch_size=None,
        num_workers=2,
        worker_init_fn=name_prefix,
        multiprocessing_context=method,
        timeout=DEADLINE,
        collate_fn=list,
    )
    batches = read(loader)
    assert [batch[1:] for batch in batches] == [[n % 2, 2, True, f"worker {n % 2}"] for n in range(4)]
    assert os.getpid() not in {batch[0] for batch in batches}


@pytest.mark.parametrize("persistent", [pytest.param(False, marks=pytest.mark.slow), True])
def test_persistent_workers_stay(persistent: bool) -> None:
    """Workers live on between epochs only where that is asked for, and give each epoch its own order either way."""
    loader = DataLoader(
        Augmented(12), batch_size=3, shuffle=True, num_workers=2, persistent_workers=persistent, prefetch_factor=1
    )
    stream = BatchStream(loader, seed=3)
    stream.start_epoch(0)
    first = [plain(batch) for batch in stream]
    workers = {child.pid for child in children()}
    assert bool(workers) is persistent
    stream.start_epoch(1)
    next(stream)  # and left in the middle
    stream.start_epoch(1)
    second = [plain(batch) for batch in stream]
    if persistent:
        assert {child.pid for child in children()} == workers
    stream.close()
    assert not children()
    assert first == read(DataLoader(Augmented(12), batch_size=3, shuffle=True, num_workers=1), epoch=0)
    assert second == read(DataLoader(Augmented(12), batch_size=3, shuffle=True, num_workers=1), epoch=1)


def test_persistent_workers_of_an_iterable() -> None:
    """Workers that stay begin an iterable data set anew in each epoch."""
    loader = DataLoader(Flow(8, shuffled=False), batch_size=2, num_workers=2, persistent_workers=True)
    stream = BatchStream(loader, seed=3)
    epochs = []
    for epoch in range(3):
        stream.start_epoch(epoch)
        epochs.append([plain(batch) for batch in stream])
    stream.close()
    assert [[batch[0] for batch in batches] for batches in epochs] == [[[0, 2], [1, 3], [4, 6], [5, 7]]] * 3
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize(
    "how", ["close", "end", *(pytest.param(how, marks=pytest.mark.slow) for how in ("next epoch", "iterator"))]
)
def test_no_worker_is_left(how: str) -> None:
    """No worker outlives the epoch that it was started for, whether that was left early or read to its end."""
    loader = DataLoader(Numbers(40), batch_size=2, num_workers=2, persistent_workers=how == "iterator")
    if how == "iterator":
        iterator = iter(loader)
        next(iterator)
        assert len(children()) == 2
        del iterator
    else:
        stream = BatchStream(loader, seed=3)
        stream.start_epoch(0)
        next(stream)
        assert len(children()) == 2
        if how == "close":
            stream.close()
        elif how == "next epoch":
            stream.start_epoch(1)
        else:
            while not stream.exhausted():
                next(stream)
    assert not children()


def test_workers_draw_nothing_from_this_process() -> None:
    """Starting workers leaves the generators of this process as they were."""
    seed_all(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    read(DataLoader(Augmented(5), shuffle=True, num_workers=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


class Failing(Numbers):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__(4)
        self.error = error

    def __getitem__(self, index: int) -> int:
        raise self.error("from the data set")


@pytest.mark.parametrize("error", [KeyError, StopIteration])
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_data_set_reach_the_user(error: type[Exception], workers: int) -> None:
    """An error in ``__getitem__`` is raised where the batch was asked for; StopIteration does not end the epoch."""
    expected = RuntimeError if error is StopIteration else error
    with pytest.raises(expected, match="StopIteration" if error is StopIteration else "from the data set"):
        read(DataLoader(Failing(error), num_workers=workers))
    assert not children()


PROGRAM = """
import json, os, signal, sys, time
import torch
from trainlab.data import BatchStream, DataLoader

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        if index >= 8:
            time.sleep(float(sys.argv[1]))
        return os.getpid()

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    kind = {"ours": DataLoader, "torch's": torch.utils.data.DataLoader}[sys.argv[2]]
    stream = BatchStream(kind(Slow(), batch_size=2, num_workers=2, multiprocessing_context=sys.argv[3]), seed=1)
    stream.start_epoch(0)
    workers = {int(next(stream)[0]) for _ in range(4)}
    print(json.dumps(sorted(workers)), flush=True)
    sys.stdin.readline()
    print(json.dumps([next(stream).tolist() for _ in range(2)]), flush=True)
    stream.close()
"""


def start(
    tmp_path: Path, seconds: float, kind: str, method: str
) -> "tuple[subprocess.Popen[str], list[psutil.Process]]":
    """Start the program, and return it with the workers that it names."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    process = subprocess.Popen(
        [sys.executable, str(script), str(seconds), kind, method],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    return process, [psutil.Process(pid) for pid in json.loads(process.stdout.readline())]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's workers look for their parent every few seconds")
@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_workers_end_with_a_killed_parent(tmp_path: Path, method: str) -> None:
    """After a kill -9 of the training process no worker lives on, not even one that is busy for an hour."""
    process, workers = start(tmp_path, 3600, "ours", method)
    assert len(workers) == 2
    with process:
        process.kill()
    _, alive = psutil.wait_procs(workers, timeout=DEADLINE)
    assert not alive


@pytest.mark.parametrize(
    ("kind", "method"), [pytest.param("ours", "spawn", marks=pytest.mark.slow), ("torch's", "fork")]
)
def test_workers_survive_signals_to_the_group(tmp_path: Path, kind: str, method: str) -> None:
    """Signals that ask the run to stop, sent to the whole process group, leave the workers at their work."""
    process, workers = start(tmp_path, 0, kind, method)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.killpg(process.pid, number)
    output, _ = process.communicate("go on\n", timeout=DEADLINE)
    assert {pid for batch in json.loads(output) for pid in batch} == {worker.pid for worker in workers}
    assert process.returncode == 0
