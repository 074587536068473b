"""launch: run a function on every rank of a platform."""

import functools
import importlib
import logging
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import spawn
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trainlab.errors import InvalidTypeError, InvalidValueError, LaunchError
from trainlab.launch.call import Call, can_import_main
from trainlab.launch.platform import Platform
from trainlab.launch.worker import environment, run_rank, variables_of

if TYPE_CHECKING:
    from trainlab.launch.job import JobHandle

__all__ = ["launch", "launch_array", "launch_script", "on"]

T = TypeVar("T")
logger = logging.getLogger("trainlab.launch")


def launch(
    function: Callable[..., T], /, *args: Any, platform: Platform | None = None, **kwargs: Any
) -> "list[T] | JobHandle[T]":
    """Call a function on every rank of a platform, and wait for all of them.

    It gets nothing but its arguments; who it is, it finds in ``trainlab.distributed``. One rank is this very process.
    Several are processes of their own, which import the script that this call is made in: keep the call under
    ``if __name__ == "__main__":``. In a process that is one of several ranks already (torchrun, ``srun``) the function
    is called there, once on each.

    Args:
        function: what to call, training or not.
        args: its positional arguments; for several ranks they can be pickled, like what it returns.
        platform: where. Default ``Platform()``: this machine's GPUs, or this process.
        kwargs: its named arguments.

    Returns:
        What it returned, by rank. With ``device="slurm"`` a ``JobHandle``, unless ``wait=True``.

    Raises:
        RankFailedError: a rank failed; the first cause, with its traceback.
        LaunchError: the ranks cannot be started.
        InvalidValueError: the platform is not what this machine has.
        SystemExit: the ranks ended in good order after a signal, with 128 + its number.
    """
    platform = _checked(platform)
    call = Call(function, args, kwargs)
    _refuse_import(call)
    if platform.device == "slurm" and not _is_surely_rank():
        from trainlab.launch.slurm import submit

        handle = submit(call, platform)
        return handle.follow() if platform.wait else handle
    if _is_rank():
        return _call_here(call, platform)
    device, processes = _ranks_here(platform)
    variables = variables_of(platform, device)
    if processes == 1 and platform.node_range[1] == 1:
        _check_groups(platform, 1)
        with environment(variables):
            return [run_rank(call, platform)]
    _check_groups(platform, processes * platform.node_range[0])
    from trainlab.launch.agent import run_agent
    from trainlab.launch.tasks import FunctionTask

    # Without the key of multiprocessing's connections, which are not used, and "<stdin>" for the program's file.
    unused = {"authkey"} if can_import_main() else {"authkey", "init_main_from_path"}
    main = {name: value for name, value in spawn.get_preparation_data("rank").items() if name not in unused}
    task = FunctionTask(call.to_bytes(), main, platform)
    return run_agent(task, call.name, platform, processes, variables)


def on(platform: Platform) -> Callable[[Callable[..., T]], Callable[..., "list[T] | JobHandle[T]"]]:
    """Decorate a function so that each call of it is a ``launch``.

    Args:
        platform: where to run it.

    Returns:
        The decorator. The function itself stays in the attribute ``function`` of what it makes.
    """
    _checked(platform)

    def decorate(function: Callable[..., T]) -> Callable[..., "list[T] | JobHandle[T]"]:
        return functools.wraps(function)(_Launched(function, platform))

    return decorate


class _Launched:
    """A function that is launched when it is called; as a name of its module it can be sent to other processes."""

    def __init__(self, function: Callable[..., Any], platform: Platform) -> None:
        self.function, self.platform = function, platform

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # What no other process can find by its name is sent itself.
        function = _Inner(self) if _leads_to(self, self.function) else self.function
        return launch(function, *args, platform=self.platform, **kwargs)


class _Inner:
    """The function inside of a decorated one, found by the name that leads to the latter."""

    def __init__(self, outer: _Launched) -> None:
        self.outer = outer
        self.__name__ = outer.function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.outer.function(*args, **kwargs)

    def __reduce__(self) -> Any:
        function = self.outer.function
        return _inner_of, (function.__module__, function.__qualname__)


def _inner_of(module: str, qualname: str) -> _Inner:
    return _Inner(operator.attrgetter(qualname)(importlib.import_module(module)))


def _leads_to(launched: _Launched, function: Callable[..., Any]) -> bool:
    """Tell whether the function's name is that of the decorated one, also in a new process."""
    try:
        found = operator.attrgetter(function.__qualname__)(importlib.import_module(function.__module__))
    except (AttributeError, ImportError):
        return False
    return found is launched and (function.__module__ != "__main__" or can_import_main())


def launch_array(
    function: Callable[..., T], arguments: Iterable[Mapping[str, Any] | tuple[Any, ...]], *, platform: Platform
) -> "list[JobHandle[T]]":
    """Submit one job of a SLURM array for each set of arguments.

    Args:
        function: what each job calls, on each of its ranks.
        arguments: a dict of named arguments, or a tuple of positional ones, for each job.
        platform: with ``device="slurm"``; ``array_parallelism`` says how many run at once, ``wait`` whether to wait for
            the end of all.

    Returns:
        A handle for each, in order.

    Raises:
        InvalidValueError: the platform is no SLURM, or there is nothing to run.
        LaunchError: the jobs cannot be submitted.
    """
    platform = _checked(platform)
    if platform.device != "slurm":
        raise InvalidValueError(
            f"An array of jobs is SLURM's. Received: device={platform.device!r}. Pass Platform(device='slurm', …), or "
            "call launch for each."
        )
    calls = [_call_of(function, one) for one in arguments]
    if not calls:
        raise InvalidValueError("An array has at least one job. Received: no arguments.")
    from trainlab.launch.slurm import submit_array

    handles = submit_array(calls, platform)
    if platform.wait:
        from trainlab.launch.waiting import wait_visibly

        wait_visibly(handles)
    return handles


def _call_of(function: Callable[..., T], arguments: Any) -> Call[T]:
    if isinstance(arguments, Mapping):
        return Call(function, (), dict(arguments))
    if isinstance(arguments, tuple):
        return Call(function, arguments)
    raise InvalidTypeError(
        "The arguments of a job are a dict of named ones, or a tuple of positional ones. Received: "
        f"{arguments!r} ({type(arguments).__name__})."
    )


def launch_script(
    platform: Platform | None = None,
    *,
    script: str | os.PathLike[str] | None = None,
    module: str | None = None,
    argv: Iterable[str] = (),
) -> int:
    """Run a script, or a module, as the program of every rank, as torchrun does.

    Args:
        platform: where. Default ``Platform()``.
        script: its path.
        module: its name in place of a script's path, as after ``python -m``.
        argv: its arguments.

    Returns:
        The exit status: 0.

    Raises:
        RankFailedError: a rank failed; the first cause, with its traceback.
        LaunchError: the ranks cannot be started.
        InvalidValueError: the platform is not what this machine has, or there is no such script.
        SystemExit: the ranks ended in good order after a signal, with 128 + its number.
    """
    platform = _checked(platform)
    if (script is None) == (module is None):
        raise InvalidValueError(f"Either a script or a module is launched. Received: {script!r} and {module!r}.")
    if script is not None and not Path(script).is_file():
        raise InvalidValueError(f"There is no such script. Received: {os.fspath(script)!r}, seen from {os.getcwd()}.")
    from trainlab.launch.tasks import ScriptTask

    task = ScriptTask(None if script is None else os.path.abspath(script), module, tuple(argv))
    name = Path(script).stem if script is not None else str(module)
    if platform.device == "slurm":
        from trainlab.launch.slurm import submit

        handle = submit(Call(_run_script, (task,)), platform.model_copy(update={"name": platform.name or name}))
        if platform.wait:
            handle.follow()
        else:
            logger.warning(
                "Job %s is submitted; its folder, which is the run's too, is %s.", handle.job_id, handle.folder
            )
        return 0
    device, processes = _ranks_here(platform)
    from trainlab.launch.agent import run_agent

    run_agent(task, name, platform, processes, variables_of(platform, device))
    return 0


def _run_script(task: Any) -> None:
    task.run()


def _checked(platform: Platform | None) -> Platform:
    if platform is None:
        return Platform()
    if not isinstance(platform, Platform):
        raise InvalidTypeError(f"platform is a trainlab.launch.Platform. Received: {platform!r}.")
    return platform


def _is_rank() -> bool:
    """Tell whether this process is one of several ranks already."""
    from trainlab.distributed import get_num_processes
    from trainlab.distributed.places import place_of_environment

    place = place_of_environment()
    return get_num_processes() > 1 or (place is not None and place.size > 1)


def _is_surely_rank() -> bool:
    """Tell the same where half a place does not matter: a job that is submitted has places of its own."""
    try:
        return _is_rank()
    except InvalidValueError:
        return False


def _call_here(call: Call[T], platform: Platform) -> list[T]:
    """Call a function as the rank that this process is, and give each rank what all of them returned."""
    from trainlab.distributed import open_ranks

    device = None if platform.device in {"auto", "slurm"} else platform.device
    with environment(variables_of(platform, device)), open_ranks() as ranks:
        return ranks.allgather(run_rank(call, platform))


def _ranks_here(platform: Platform) -> tuple[str, int]:
    """The device, and how many ranks this node has."""
    from trainlab.distributed import check_gpus, choose_device, visible_gpus

    # "auto" leaves it to TRAINLAB_DEVICE, if that is set.
    device = choose_device(None if platform.device == "auto" else platform.device).type
    if device != "cuda":
        return device, platform.processes or 1
    processes = platform.processes or len(visible_gpus())
    check_gpus(processes)
    return device, processes


def _check_groups(platform: Platform, size: int) -> None:
    named = sum(len(group) for group in platform.ipc_groups or [])
    if platform.ipc_groups is not None and named != size:
        raise InvalidValueError(f"ipc_groups name each of the {size} ranks once. Received: {named} ranks.")


def _refuse_import(call: Call[Any]) -> None:
    """Refuse to start processes from one that is only importing the script for a rank."""
    if "TRAINLAB_IMPORTING" in os.environ:
        raise LaunchError(
            f"launch({call.name}) was called while a rank imported the script. Put the call under "
            '`if __name__ == "__main__":`, so that only the script itself makes it.'
        )
