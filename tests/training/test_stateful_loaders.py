"""A run that trains from a loader with a state of its own is killed by a real SIGKILL and resumed exactly."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.stateful_loaders import AHEAD, IN_PROCESS
from tests.training.processes import Server, serving

QUICK = [
    "here:stateful",
    "here:nodes, by epoch",
    "ahead:stateful, position",
    "ahead:nodes, threads",
    "ahead:trainlab, counting",
]
ALL = [f"here:{name}" for name in IN_PROCESS] + [f"ahead:{name}" for name in AHEAD]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where the processes come from."""
    with serving("tests.training.loader_program", tmp_path_factory.mktemp("processes")) as started:
        yield started


@pytest.mark.parametrize(
    "loader", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ALL]
)
def test_killed_in_and_between_epochs_it_ends_as_an_uninterrupted_run(
    server: Server, tmp_path: Path, loader: str
) -> None:
    """Killed in an epoch, at the end of one and in a later one, a run goes on at the next batch, to the same bits."""
    whole, status = server.run(tmp_path / "whole", "--loader", loader)
    assert status == 0, whole.stderr
    expected = whole.trained()
    ends = [one["batch"] for before, one in itertools.pairwise(expected) if before["epoch"] < one["epoch"]]
    first = 0
    for place in (3, ends[0], ends[0] + 2, ends[1] + 1):
        killed, status = server.run(tmp_path / "cut", "--loader", loader, "--kill-at", place)
        assert status == -9, killed.stderr
        assert killed.trained() == expected[first : first + len(killed.trained())]
        first = place
    last, status = server.run(tmp_path / "cut", "--loader", loader)
    assert status == 0, last.stderr
    assert last.trained() == expected[first:]
    assert last.result == whole.result
    assert "before the ``update``" not in last.stderr
