"""``deterministic``: what torch is set to for a run, and what it was set to is back afterwards."""

import logging
import os

import pytest
import torch

from trainlab.errors import InvalidStateError, InvalidValueError
from trainlab.experiments.determinism import deterministic

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)


def state() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
        os.environ.get(CUBLAS),
    )


def test_an_operation_without_a_deterministic_algorithm_is_an_error() -> None:
    """In a deterministic run, what torch cannot do deterministically raises an error instead of giving other bits."""
    values, index = torch.zeros(3), torch.tensor([0, 0, 1])
    with deterministic(True):
        with pytest.raises(RuntimeError, match="deterministic"):
            values.put_(index, torch.ones(3), accumulate=False)
        assert state() == (True, False, False, True, ":4096:8")


@pytest.mark.parametrize("benchmark", [True, False])
def test_what_was_set_before_is_back_after_a_run(benchmark: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a deterministic run, also one that failed, torch and the environment are as they were."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = state()
        with pytest.raises(ZeroDivisionError), deterministic(True):
            raise ZeroDivisionError
        assert state() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_without_it_nothing_is_changed() -> None:
    """A run that does not ask for determinism leaves torch alone."""
    before = state()
    with deterministic(False):
        assert state() == before


def test_what_it_costs_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A run's log says what determinism costs, and what it does not promise."""
    with caplog.at_level(logging.INFO, "trainlab"), deterministic(True):
        pass
    assert "slower" in caplog.text
    assert "number of threads" in caplog.text


def test_a_setting_of_cublas_that_contradicts_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has set cuBLAS to something that is not deterministic is told, rather than overruled."""
    monkeypatch.setenv(CUBLAS, ":0:0")
    with pytest.raises(InvalidValueError, match=r"Received: CUBLAS_WORKSPACE_CONFIG=:0:0"), deterministic(True):
        pass
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic(True):
        assert os.environ[CUBLAS] == ":16:8"
    assert os.environ[CUBLAS] == ":16:8"


def test_it_is_refused_once_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that asks for it after CUDA was used is told that it is too late, unless cuBLAS was set in time."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(InvalidStateError, match="too late for cuBLAS"), deterministic(True):
        pass
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(CUBLAS, ":4096:8")
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
