"""What every test of experiments starts from."""

from collections.abc import Iterator

import pytest

from trainlab.experiments.definition import registered


@pytest.fixture(autouse=True)
def _forget_experiments() -> Iterator[None]:
    before = [*registered]
    registered.clear()
    yield
    registered[:] = before
