"""deterministic: torch computes the same from the same, or says that it cannot."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from trainlab.errors import InvalidStateError, InvalidValueError

__all__ = ["CUBLAS_WORKSPACE", "deterministic"]

logger = logging.getLogger("trainlab.experiments")

_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
# The two with which cuBLAS gives the same result each time; the first has the larger buffers, and is faster.
# Source: cuBLAS, "Results reproducibility".
_WORKSPACES = (":4096:8", ":16:8")
CUBLAS_WORKSPACE = {_VARIABLE: _WORKSPACES[0]}


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms alone in this block, and what it was set to before after it.

    Args:
        enabled: whether to; if not, nothing is done, and torch is not loaded.

    Yields:
        None.

    Raises:
        InvalidStateError: CUDA is in use already, and cuBLAS was not told before.
        InvalidValueError: CUBLAS_WORKSPACE_CONFIG has another value than the deterministic ones.
    """
    if not enabled:
        yield
        return
    import torch

    given = os.environ.get(_VARIABLE)
    _check_workspace(given, in_use=torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    cudnn = torch.backends.cudnn
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.benchmark, cudnn.deterministic
    os.environ.setdefault(_VARIABLE, _WORKSPACES[0])
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark, cudnn.deterministic = False, True
    logger.info(
        "deterministic: torch uses deterministic algorithms alone. What has none raises an error; others may be slower "
        "(cuDNN does not look for its fastest), and new memory is filled before it is used. Another machine, number of "
        "threads or version may still give other results."
    )
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        cudnn.benchmark, cudnn.deterministic = before
        if given is None:
            os.environ.pop(_VARIABLE, None)


def _check_workspace(given: str | None, *, in_use: bool) -> None:
    if given is not None and given not in _WORKSPACES:
        raise InvalidValueError(
            f"deterministic needs {_VARIABLE}={_WORKSPACES[0]} or {_WORKSPACES[1]}. Received: {_VARIABLE}={given}. "
            "Take the variable out of the environment, or set it to one of these."
        )
    if given is None and in_use:
        raise InvalidStateError(
            f"deterministic came too late for cuBLAS, which reads {_VARIABLE} when CUDA is first used, and CUDA is in "
            f"use. Set {_VARIABLE}={_WORKSPACES[0]} in the environment of the program, or touch no GPU before the run."
        )
