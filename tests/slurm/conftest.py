"""One real SLURM for all tests in this folder."""

from collections.abc import Iterator

import pytest

from tests.slurm import cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[cluster.Slurm]:
    """A real SLURM of two nodes with two CPUs each, and one more; see ``cluster``."""
    if (reason := cluster.missing()) is not None:
        pytest.skip(reason)
    with cluster.running() as running:
        yield running
