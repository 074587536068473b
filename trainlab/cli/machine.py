"""What the doctor looks at on the machine itself: CPUs, memory, disks, limits and its name."""

import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path

from trainlab import __version__
from trainlab.cli.facts import Fact, gibibytes

__all__ = ["PROBES"]

_GIB = 2**30
# What a job of a few ranks with workers opens: sockets, pipes, files of the data set.
_LEAST_OPEN_FILES = 1024
_SHARED = Path("/dev/shm")
_INFINIBAND = Path("/sys/class/infiniband")
_PATIENCE = 5.0


def _software() -> list[Fact]:
    return [
        Fact("software", "python", f"{platform.python_version()} ({sys.executable})"),
        Fact("software", "system", platform.platform()),
        Fact("software", "trainlab", __version__),
    ]


def _cpus() -> list[Fact]:
    from trainlab.distributed.cpus import cpu_quota, usable_cpus

    usable, quota = len(usable_cpus()), cpu_quota()
    found = [Fact("cpu", "CPUs", os.cpu_count()), Fact("cpu", "CPUs that this process may use", usable)]
    problem = None
    if quota is not None and quota < 1:
        problem = f"The control group lets less than one CPU run ({quota:g})."
    remedy = "Raise the container's limit: docker run --cpus=4, or resources.limits.cpu of a pod." if problem else None
    return [*found, Fact("cpu", "limit of the control group", quota, problem, remedy)]


def _memory() -> list[Fact]:
    from trainlab.distributed.cpus import control_group_values

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = _available_memory()
    texts = [*control_group_values("", "memory.max"), *control_group_values("memory", "memory.limit_in_bytes")]
    limits = [int(text) for text in texts if text.isdecimal() and int(text) < total]
    found = [Fact("memory", "total GiB", gibibytes(total))]
    if limits:
        found.append(Fact("memory", "limit of the control group, GiB", gibibytes(min(limits))))
    if available is not None:
        problem = None if available >= _GIB else f"Only {gibibytes(available)} GiB of memory are available."
        remedy = "End what else runs here, or use a machine with more memory." if problem else None
        found.append(Fact("memory", "available GiB", gibibytes(available), problem, remedy))
    return found


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _shared_memory() -> list[Fact]:
    if not _SHARED.is_dir():
        problem = "There is no /dev/shm." if sys.platform == "linux" else None
        remedy = "Mount it: mount -t tmpfs -o size=8g tmpfs /dev/shm" if problem else None
        return [Fact("memory", "shared (/dev/shm)", None, problem, remedy)]
    usage = shutil.disk_usage(_SHARED)
    problem = remedy = None
    if usage.total < _GIB:
        problem = (
            f"/dev/shm holds {gibibytes(usage.total)} GiB: workers of data loaders and NCCL pass their data through it."
        )
        remedy = (
            "Give the container more: docker run --shm-size=8g (or --ipc=host); else: mount -o remount,size=8g /dev/shm"
        )
    elif usage.free < _GIB // 4:
        problem = f"/dev/shm is full: {gibibytes(usage.free)} of {gibibytes(usage.total)} GiB are free."
        remedy = "Remove what ended programs have left there: ls -la /dev/shm"
    return [
        Fact("memory", "shared (/dev/shm) GiB", gibibytes(usage.total), problem, remedy),
        Fact("memory", "shared (/dev/shm) free GiB", gibibytes(usage.free)),
    ]


def _disk_here() -> list[Fact]:
    return _disk("this folder", Path.cwd(), "Free some space, or start runs elsewhere: trainlab.init(run_dir=…).")


def _disk_for_temporary_files() -> list[Fact]:
    remedy = "Free some space, or set TMPDIR to a folder on another disk."
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        return [Fact("disk", "temporary files", None, f"There is no folder for temporary files: {error}", remedy)]
    named = os.environ.get("TMPDIR")
    if named and Path(named).resolve() != folder.resolve():
        problem = f"TMPDIR names a folder that cannot be written to: {named}; {folder} is used."
        return [Fact("disk", "TMPDIR", named, problem, remedy), *_disk("temporary files", folder, remedy)]
    return _disk("temporary files", folder, remedy)


def _disk(what: str, folder: Path, remedy: str) -> list[Fact]:
    free = shutil.disk_usage(folder).free
    problem = None
    if not os.access(folder, os.W_OK):
        problem = f"{folder} cannot be written to."
    elif free < _GIB:
        problem = f"{folder} has {gibibytes(free)} GiB free."
    return [
        Fact("disk", what, str(folder)),
        Fact("disk", f"{what}, free GiB", gibibytes(free), problem, remedy if problem else None),
    ]


def _limits() -> list[Fact]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    problem = remedy = None
    if soft != resource.RLIM_INFINITY and soft < _LEAST_OPEN_FILES:
        problem = f"A process may open {soft} files: ranks and workers run out of them (Too many open files)."
        reachable = hard == resource.RLIM_INFINITY or hard >= _LEAST_OPEN_FILES
        remedy = (
            f"ulimit -n {65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)}"
            if reachable
            else "Raise the hard limit: docker run --ulimit nofile=65536, or nofile in /etc/security/limits.conf"
        )
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return [
        Fact("limits", "open files", _limit(soft), problem, remedy),
        _locked_memory(locked, locked == resource.RLIM_INFINITY),
    ]


def _locked_memory(limit: int, unlimited: bool) -> Fact:
    value = "unlimited" if unlimited else gibibytes(limit)
    has_infiniband = _INFINIBAND.is_dir() and any(_INFINIBAND.iterdir())
    if unlimited or not has_infiniband:
        return Fact("limits", "locked memory, GiB", value)
    problem = f"{value} GiB of memory can be locked: InfiniBand's transfers need more."
    remedy = "ulimit -l unlimited, docker run --ulimit memlock=-1, or memlock in /etc/security/limits.conf"
    return Fact("limits", "locked memory, GiB", value, problem, remedy)


def _limit(number: int) -> int | str:
    import resource

    return "unlimited" if number == resource.RLIM_INFINITY else number


def _host() -> list[Fact]:
    name = socket.gethostname()
    found: list[str | OSError] = []

    def resolve() -> None:
        try:
            found.append(str(socket.getaddrinfo(name, None)[0][4][0]))
        except OSError as error:
            found.append(error)

    # A name server that is away lets the call wait for long; the thread ends with the process.
    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    answer: str | OSError = found[0] if found else TimeoutError(f"no answer in {_PATIENCE:g} s")
    if isinstance(answer, str):
        return [Fact("network", "host", f"{name} ({answer})")]
    remedy = f"Add it to /etc/hosts: echo '127.0.1.1 {name}' >> /etc/hosts"
    return [Fact("network", "host", name, f"The name of this host, {name}, does not resolve: {answer}.", remedy)]


def _interfaces() -> list[Fact]:
    names = [name for _, name in socket.if_nameindex()]
    return [Fact("network", "interfaces", names)]


PROBES = {
    "software": [_software],
    "cpu": [_cpus],
    "memory": [_memory, _shared_memory],
    "disk": [_disk_here, _disk_for_temporary_files],
    "limits": [_limits],
    "network": [_host, _interfaces],
}
