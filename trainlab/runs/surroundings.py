"""What a run was made with, beside its parameters: packages, changes of its code, devices. No torch."""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

from trainlab.runs.folder_lock import unusable
from trainlab.runs.names import CODE, PACKAGES, PATCH
from trainlab.runs.program_code import checksums, loaded_files
from trainlab.runs.run_record import replace_text

__all__ = ["describe_devices", "list_packages", "record_changes", "record_surroundings"]

logger = logging.getLogger("trainlab.runs")

_GIT_SECONDS = 5.0
_LARGEST_PATCH = 10 * 2**20
_PATCH_SECONDS = 20.0
_MOST_UNTRACKED = 50
# Against settings of a person's own that would change what a diff looks like, or make it useless.
_DIFF = (
    *("-c", "core.quotepath=false", "diff", "--binary", "--full-index", "--unified=3", "--submodule=short"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames"),
    *("-O/dev/null", "HEAD"),
)
# They would name another tree, as in a hook of git's, or change the diff.
_MISLEADING = {"GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"}
_MISLEADING |= {"GIT_DIFF_OPTS", "GIT_NAMESPACE"}
_NAME_AND_VERSION = re.compile(r"^(Name|Version): *(\S+)", re.MULTILINE)
_USER_OF_URL = re.compile(r"(?<=://)[^/@\s]+@")


def record_surroundings(code: Path, run: Path) -> dict[str, Any] | None:
    """Write what a run is made with into its folder: ``packages.txt``, ``code.sha256`` and ``changes.patch``.

    Args:
        code: a folder of the program's git tree.
        run: the run's folder.

    Returns:
        What ``record_changes`` gives.

    Raises:
        RunFolderError: a file cannot be written.
    """
    replace_text(run / PACKAGES, list_packages())
    replace_text(run / CODE, checksums(loaded_files()))
    return record_changes(code, run)


def list_packages() -> str:
    """List the installed packages as ``pip freeze`` does.

    Returns:
        A line for each, ``name==version``, or ``name @ URL`` where it came from one; sorted.
    """
    found: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        told = dict(_NAME_AND_VERSION.findall(_headers(package)))
        name = told.get("Name")
        if name and name.lower() not in found:  # the first on the path is the one that is imported
            found[name.lower()] = _package_line(name, told.get("Version", ""), package)
    return "".join(f"{found[key]}\n" for key in sorted(found))


def record_changes(code: Path, run: Path) -> dict[str, Any] | None:
    """Write the changes of a program's git tree since its last commit into the run's ``changes.patch``.

    Args:
        code: a folder of the tree.
        run: the run's folder.

    Returns:
        "commit"; "dirty", whether tracked files were changed; "patch", the file's name, or None, with "patch_left_out",
        why, where there were changes; "untracked", the names of files that git does not know and that are therefore not
        in it, 50 at most, and "untracked_left_out", how many more; and "problem", what git could not tell, which is
        logged as a warning, too. Without the commit the rest is unknown. None outside of git.

    Raises:
        RunFolderError: the file cannot be written.
    """
    _write_patch(run / PATCH, b"")
    if not any((folder / ".git").exists() for folder in (code, *code.parents)):
        return None
    told: dict[str, Any] = {"commit": None, "dirty": None, "patch": None, "patch_left_out": None}
    told |= {"untracked": [], "untracked_left_out": 0, "problem": None}
    try:
        top, _, told["commit"] = _git(code, "rev-parse", "--show-toplevel", "HEAD").rstrip("\n").rpartition("\n")
        patch, why = _diff(Path(top))
        told |= {"dirty": bool(patch or why), "patch": PATCH if patch else None, "patch_left_out": why or None}
        _write_patch(run / PATCH, patch)
        untracked = _git(Path(top), "ls-files", "--others", "--exclude-standard", "--directory", "-z")
    except _GitError as error:
        logger.warning("What git knows of the code in %s could not be recorded: %s", code, error)
        return {**told, "problem": str(error)}
    names = [name for name in untracked.split("\0") if name]
    left_out = max(len(names) - _MOST_UNTRACKED, 0)
    return {**told, "untracked": names[:_MOST_UNTRACKED], "untracked_left_out": left_out}


def describe_devices() -> dict[str, Any]:
    """Describe what this machine computes on; no GPU is touched.

    Returns:
        "cpu", its name; "cpus", how many of them this process may use; "gpus", the names of NVIDIA's; and
        "cuda_visible_devices" where it is set.
    """
    told: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpu_names(),
    }
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        told["cuda_visible_devices"] = os.environ["CUDA_VISIBLE_DEVICES"]
    return told


def _headers(package: importlib.metadata.Distribution) -> str:
    # Not ``package.metadata``: to parse all of it, as an e-mail, takes a hundred times as long.
    text = package.read_text("METADATA") or package.read_text("PKG-INFO") or ""
    return text.partition("\n\n")[0]


def _package_line(name: str, version: str, package: importlib.metadata.Distribution) -> str:
    """One line of the list. Source: PEP 610 for what ``direct_url.json`` holds."""
    with contextlib.suppress(OSError, ValueError):
        origin = json.loads(package.read_text("direct_url.json") or "{}")
        if isinstance(origin, dict) and origin.get("url"):
            url, commit = _USER_OF_URL.sub("", str(origin["url"])), origin.get("vcs_info") or {}
            if commit.get("commit_id"):
                url = f"{commit.get('vcs', 'git')}+{url}@{commit['commit_id']}"
            return f"{name} @ {url}"
    return f"{name}=={version}"


class _GitError(Exception):
    """git could not tell something, and this is why."""


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_GIT_SECONDS,
            check=False,
            env=_environment(),
        )
    except OSError as error:
        raise _GitError(f"git cannot be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise _GitError(f"git {arguments[0]} takes longer than {_GIT_SECONDS:.0f} seconds") from error
    if done.returncode:
        first = done.stderr.strip().partition("\n")[0]
        raise _GitError(f"git {arguments[0]} ended with status {done.returncode}: {first}")
    return done.stdout


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
    # Else git may take the index's lock, and get in the way of its owner.
    return {**kept, "GIT_OPTIONAL_LOCKS": "0"}


def _diff(top: Path) -> tuple[bytes, str]:
    """The changes of tracked files, staged or not; or why there are none here."""
    try:
        git = subprocess.Popen(
            ["git", *_DIFF],
            cwd=top,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
    except OSError as error:
        return b"", f"git cannot be started: {error}"
    timer = threading.Timer(_PATCH_SECONDS, git.kill)
    timer.daemon = True
    timer.start()
    try:
        with git:
            assert git.stdout is not None  # it is a pipe; kept for the type checker
            is_whole = False
            try:
                patch = git.stdout.read(_LARGEST_PATCH + 1)
                is_whole = len(patch) <= _LARGEST_PATCH
            finally:
                if not is_whole:  # or a signal ends the run
                    git.kill()
    finally:
        timer.cancel()
    if len(patch) > _LARGEST_PATCH:
        return b"", f"it is larger than {_LARGEST_PATCH // 2**20} MiB"
    return (patch, "") if git.returncode == 0 else (b"", f"git diff ended with status {git.returncode}")


def _write_patch(file: Path, patch: bytes) -> None:
    """Write it in place of that of an earlier start."""
    try:
        file.unlink(missing_ok=True)
        if patch:
            file.write_bytes(patch)
    except OSError as error:
        raise unusable(file, "written", error) from error


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_names() -> list[str]:
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            found = re.search(r"^Model:\s*(.+)$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            names.append(found[1].strip() if found else "NVIDIA GPU")
    return names
