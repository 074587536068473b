"""Run scenarios on several ranks and compare them with one process."""

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.parallel.job import Job
from trainlab.distributed import DistributedContext
from trainlab.parallel import DDPOptions, FSDPOptions, Parallel, make_parallel

# Older versions can shard on GPUs only.
NEEDS_FSDP = pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch has no FSDP2 on CPUs")

Way = tuple[str, DDPOptions | FSDPOptions | None]


def compare_all(cases: dict[str, tuple[Callable[[Job], Any], Way]]) -> dict[str, str]:
    """Called on each rank: run each scenario shared and alone.

    Returns:
        By the case's name: "" if the weights are the same within float64's rounding, else what is wrong.
    """
    with DistributedContext.from_torch_distributed() as distributed:
        return {name: _compare(scenario, way, distributed) for name, (scenario, way) in cases.items()}


def shared(way: Way, distributed: DistributedContext) -> Job:
    parallel = make_parallel(*way, distributed, torch.device("cpu"))
    return Job(parallel, distributed.rank, distributed.size)


def _compare(scenario: Callable[[Job], Any], way: Way, distributed: DistributedContext) -> str:
    alone = scenario(Job(Parallel(), 0, 1))
    job = shared(way, distributed)
    try:
        together = scenario(job)
    except Exception:
        return traceback.format_exc()
    finally:
        job.parallel.close()
    worst = max(_distance(a, b) for a, b in zip(alone, together, strict=True))
    return "" if worst < _tolerance(alone[0].dtype) else f"differs by {worst}"


def _distance(alone: torch.Tensor, together: torch.Tensor) -> float:
    if not alone.numel():
        return 0.0
    return float((alone.double() - together.double()).abs().max()) if alone.shape == together.shape else torch.inf


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-13 if dtype == torch.float64 else 1e-2
