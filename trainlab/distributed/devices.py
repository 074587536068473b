"""On what a rank trains: which device, which GPU of the node, and which part of one."""

import os
from typing import Any

import torch

from trainlab.distributed.places import place_of_environment
from trainlab.errors import InvalidValueError

__all__ = [
    "best_device",
    "check_gpus",
    "choose_device",
    "gpu_environment",
    "mig_instances",
    "split_mig",
    "visible_gpus",
]

_KINDS = ("cpu", "cuda", "mps")
_VARIABLE = "CUDA_VISIBLE_DEVICES"


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device that a name stands for; no GPU is touched.

    Args:
        name: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "mps" or one of these with an index. Default None:
            the environment variable TRAINLAB_DEVICE, or "auto".

    Returns:
        The device. "auto" does not take MPS for several ranks, which cannot share it.

    Raises:
        InvalidValueError: There is no such device, or not here.
    """
    split_mig()
    wanted: Any = (os.environ.get("TRAINLAB_DEVICE") or "auto") if name is None else name
    source = " from TRAINLAB_DEVICE" if name is None else ""
    if wanted == "auto":
        return torch.device(best_device(has_cuda=torch.cuda.is_available(), has_mps=torch.backends.mps.is_available()))
    try:
        chosen = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise InvalidValueError(
            f"device {wanted!r}{source} is none that torch knows: {error}. Use 'auto', 'cpu', 'cuda' or 'mps'."
        ) from error
    if chosen.type not in _KINDS:
        raise InvalidValueError(f"device must be 'auto', 'cpu', 'cuda' or 'mps'. Received: {wanted!r}{source}.")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[chosen.type]:
        usable = ", ".join(repr(kind) for kind, is_there in there.items() if is_there)
        raise InvalidValueError(
            f"This machine has no {chosen.type} device. Received: {wanted!r}{source}. It has: {usable}."
        )
    return chosen


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that processes of this environment may use; asking takes none of them.

    Returns:
        A name for each: its entry in CUDA_VISIBLE_DEVICES, or its number. Instances of MIG are listed one by one, as
        that variable does.
    """
    instances = mig_instances()
    if instances:
        return instances
    # Without CUDA being started in this process, as long as NVML answers.
    count = torch.cuda.device_count()
    listed = [entry.strip() for entry in os.environ.get(_VARIABLE, "").split(",")]
    return listed[:count] if len(listed) >= count and listed != [""] else [str(index) for index in range(count)]


def check_gpus(processes: int) -> None:
    """Make sure that each rank of a node can have a GPU of its own.

    Args:
        processes: The number of ranks on this node.

    Raises:
        InvalidValueError: There are fewer GPUs.
    """
    gpus = visible_gpus()
    if processes <= len(gpus):
        return
    limited = f" (CUDA_VISIBLE_DEVICES={os.environ[_VARIABLE]!r})" if _VARIABLE in os.environ else ""
    there = f"{len(gpus)} ({', '.join(gpus)})" if gpus else "none"
    todo = f"Start at most {len(gpus)}, one for each GPU." if gpus else "Use device='cpu'."
    raise InvalidValueError(
        f"Each rank has a GPU of its own. Received: {processes} ranks on this node, and these GPUs: {there}"
        f"{limited}. {todo}"
    )


def gpu_environment(local_rank: int, processes: int) -> dict[str, str]:
    """The variables that a rank needs, before it starts CUDA, to see the GPU that is its own.

    A process can use one instance of MIG alone, so each rank is shown its own. Whole GPUs are all shown to all ranks,
    which reach each other's memory so; each takes the one of its local rank.

    Args:
        local_rank: Of the rank on its node.
        processes: The number of ranks on this node.

    Returns:
        Variables by name; none for whole GPUs, nor for a process alone.

    Raises:
        InvalidValueError: There are fewer instances than ranks.
    """
    instances = mig_instances()
    if not instances or processes == 1:
        return {}
    check_gpus(processes)
    # NCCL takes two instances of a GPU for the same one unless it is told; older versions refuse all the same.
    allowed = {} if "NCCL_MULTI_RANK_GPU_ENABLE" in os.environ else {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    return {_VARIABLE: instances[local_rank], **allowed}


def split_mig() -> None:
    """Leave this rank the instance of MIG that is its own, where its launcher shows it those of the whole node.

    torchrun and srun show all instances to all ranks. It has an effect only before this process starts CUDA.
    """
    instances = mig_instances()
    if len(instances) < 2 or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    place = place_of_environment()
    if place is not None and place.local_rank is not None and place.local_rank < len(instances):
        os.environ.update(gpu_environment(place.local_rank, min(place.local_size or 1, len(instances))))


def mig_instances() -> list[str]:
    """The instances of MIG that CUDA_VISIBLE_DEVICES lists.

    Returns:
        Their names; none where it lists whole GPUs, or is not set.
    """
    listed = [entry.strip() for entry in os.environ.get(_VARIABLE, "").split(",")]
    return [entry for entry in listed if entry.startswith("MIG-")]


def best_device(*, has_cuda: bool, has_mps: bool) -> str:
    """What "auto" stands for on a machine.

    Args:
        has_cuda: Whether it has GPUs of NVIDIA.
        has_mps: Whether it has Apple's.

    Returns:
        "cuda", "mps" or "cpu".
    """
    if has_cuda:
        return "cuda"
    if not has_mps:
        return "cpu"
    place = place_of_environment()
    return "mps" if place is None or place.size == 1 else "cpu"
