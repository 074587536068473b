"""The functions by which a script asks for its ranks; all of them work without a process group too."""

import os
from typing import Any

import torch
import torch.distributed

from trainlab.distributed.context import DistributedContext, join
from trainlab.distributed.cpus import share_threads
from trainlab.distributed.devices import choose_device, mig_instances, split_mig
from trainlab.distributed.group import is_group_open
from trainlab.distributed.places import Place, place_of_environment
from trainlab.errors import InvalidTypeError, InvalidValueError

__all__ = [
    "broadcast_from_master",
    "distributed_barrier",
    "get_num_processes",
    "get_rank",
    "init_distributed",
    "is_distributed",
    "is_master",
    "open_ranks",
]


def init_distributed(
    backend: str | None = None, *, timeout: float | None = None, heartbeat_timeout: float | None = None
) -> DistributedContext:
    """Connect this process with the others that torchrun, a SLURM step or `launch` started.

    Args:
        backend: Of the process group, such as "gloo" or "nccl". Default None: gloo, and NCCL too where there is a GPU.
        timeout: Seconds that an exchange or a collective waits for the other ranks at most. Default None: the
            environment variable TRAINLAB_TIMEOUT, or 600.
        heartbeat_timeout: Seconds without a sign of life after which a rank is given up. Default None: the environment
            variable TRAINLAB_HEARTBEAT_TIMEOUT, or 60.

    Returns:
        The context, closed at the end of the program at the latest. A process that was started alone is alone.

    Raises:
        InvalidValueError: There is no such backend here.
        DistributedError: The processes do not find each other.
    """
    if backend is None:
        backend = _backend(torch.cuda.is_available())
    elif not torch.distributed.is_backend_available(backend.lower()) and ":" not in backend:
        known = [
            name for name in torch.distributed.Backend.backend_list if torch.distributed.is_backend_available(name)
        ]
        raise InvalidValueError(f"There is no such backend here. Received: {backend!r}. Pass one of {sorted(known)}.")
    return join(_place(), backend=backend, timeout=timeout, heartbeat_timeout=heartbeat_timeout)


def open_ranks(
    device: torch.device | None = None, *, timeout: float | None = None, heartbeat_timeout: float | None = None
) -> DistributedContext:
    """Connect this process with the others of its job, with the backend that fits the device, and take its GPU.

    The ranks of a node share its CPUs for torch's threads too, unless the user has set their number.

    Args:
        device: What is trained on. Default None: the environment variable TRAINLAB_DEVICE, or CUDA if there is one.
        timeout: As ``init_distributed``'s.
        heartbeat_timeout: As ``init_distributed``'s.

    Returns:
        The context. A GPU of this process's own is torch's current one; a process alone keeps what it has.

    Raises:
        InvalidValueError: Several ranks cannot train on the device, or have not a GPU each, or are told nonsense about
            their CPUs; on every rank.
        DistributedError: The processes do not find each other.
    """
    split_mig()
    place = _place()
    if device is None and os.environ.get("TRAINLAB_DEVICE"):
        device = choose_device()
    if device is not None and device.type not in {"cpu", "cuda"} and place is not None and place.size > 1:
        raise InvalidValueError(
            f"Several ranks train on CPUs or on NVIDIA's GPUs. Received: device {str(device)!r} and {place.size} ranks."
        )
    on_gpus = torch.cuda.is_available() if device is None else device.type == "cuda"
    if on_gpus and place is not None and place.size > 1 and place.local_rank is not None:
        _set_gpu(place.local_rank, device)  # before anything, NCCL's threads too, can take the first one
    context = join(place, backend=_backend(on_gpus), timeout=timeout, heartbeat_timeout=heartbeat_timeout)
    try:
        if on_gpus and context.size > 1:
            _take_gpu(context, device)
        share_threads(context)
    except BaseException:
        context.close()
        raise
    return context


def is_distributed() -> bool:
    """Tell whether a process group of torch is open."""
    return is_group_open()


def is_master() -> bool:
    """Tell whether this is rank 0; a process alone is."""
    return get_rank() == 0


def get_num_processes() -> int:
    """The number of processes.

    Returns:
        At least 1; 1 without a process group.
    """
    return torch.distributed.get_world_size() if is_group_open() else 1


def get_rank() -> int:
    """The rank of this process.

    Returns:
        0 to ``get_num_processes() - 1``; 0 without a process group.
    """
    return torch.distributed.get_rank() if is_group_open() else 0


def broadcast_from_master(value: Any) -> torch.Tensor:
    """Give every process the numbers of rank 0.

    Args:
        value: A number, an array, a tensor, or lists of numbers; that of rank 0 counts.

    Returns:
        A tensor, without a process group too; on the device where the tensor of rank 0 is.

    Raises:
        InvalidTypeError: The value of rank 0 is nothing that a tensor is made of; on every rank.
        PeerFailedError: Another rank has failed.
    """
    if not is_group_open():
        return _tensor(value)
    # Shares the context that is open, or makes one over a group that the script opened itself.
    return _tensor(join(None).exchange.broadcast(value))


def distributed_barrier() -> None:
    """Wait until all processes have come here; nothing without a process group.

    Raises:
        PeerFailedError: Another rank has failed.
    """
    if is_group_open():
        join(None).exchange.barrier()


def _backend(on_gpus: bool) -> str:
    return "cpu:gloo,cuda:nccl" if on_gpus else "gloo"


def _place() -> Place | None:
    """What the launcher says, unless an open group says otherwise."""
    place = place_of_environment()
    if is_group_open() and place is not None and (place.rank, place.size) != (get_rank(), get_num_processes()):
        return None
    return place


def _tensor(value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(
            f"Numbers, arrays and tensors can be broadcast from the master. Received: {type(value).__name__} ({error})."
        ) from error


def _set_gpu(local_rank: int, device: torch.device | None) -> int | None:
    """Make the GPU of a rank torch's current one; None if there are too few."""
    count = torch.cuda.device_count()
    # A launcher may show each rank its own GPU alone.
    index = local_rank if count > 1 else 0
    if device is not None and device.index is not None:
        index = device.index
    if index >= count:
        return None
    torch.cuda.set_device(index)
    return index


def _take_gpu(context: DistributedContext, device: torch.device | None) -> None:
    """Every rank gets a GPU of its own, or all of them get the same error."""
    problem = own = None
    if device is not None and device.index is not None and context.local_size > 1:
        problem = f"device {str(device)!r} for {context.local_size} ranks on a node: pass device='cuda'"
    elif (index := _set_gpu(context.local_rank, device)) is None:
        problem = (
            f"{torch.cuda.device_count()} GPUs for {context.local_size} ranks on a node: start one rank for each GPU"
        )
    else:
        # Instances of MIG may be told apart by their names alone.
        own = mig_instances()[:1] or str(torch.cuda.get_device_properties(index).uuid)
    told = context.allgather((problem, context.cross_rank, own))
    for rank, (found, node, theirs) in enumerate(told):
        if found is None and [(other, other_own) for _, other, other_own in told].count((node, theirs)) > 1:
            found = f"fewer GPUs than ranks on node {node}: start one rank for each GPU"
        if found is not None:
            raise InvalidValueError(f"Each rank has a GPU of its own. Received, on rank {rank}: {found}.")
