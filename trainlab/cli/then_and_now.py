"""What is not as it was when a run was begun: code, packages, Python, machine."""

import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlab.runs.comparing import packages_of
from trainlab.runs.contents import RunFiles
from trainlab.runs.listing import RunInfo
from trainlab.runs.names import CODE, PACKAGES, PATCH
from trainlab.runs.program_code import read_checksums, sha256_of
from trainlab.runs.surroundings import describe_devices, list_packages, record_changes

__all__ = ["changes_since"]

_NONE = "none"
_SHOWN = 12  # of the digits of a hash


def changes_since(run: RunInfo, files: RunFiles) -> dict[str, tuple[str, str]]:
    """Compare a run's record with what is here now.

    Args:
        run: The run.
        files: Its files.

    Returns:
        By what differs, how it was and how it is; what was not recorded is left out.
    """
    found = _of_git(run, files) | _of_files(run, files)
    versions = run.record.get("versions") or {}
    found["Python"] = (str(versions.get("python", "")), platform.python_version())
    found["platform"] = (str(versions.get("platform", "")), platform.platform())
    devices = run.record.get("devices")
    if isinstance(devices, Mapping):
        now = describe_devices()
        found |= {name: (_text(devices.get(name)), _text(now[name])) for name in ("cpu", "cpus", "gpus")}
    differing = {name: (then, now) for name, (then, now) in found.items() if then and then != now}
    text = files.read(PACKAGES).decode(errors="replace")
    return differing | (_of_packages(packages_of(text)) if text else {})


def _of_git(run: RunInfo, files: RunFiles) -> dict[str, tuple[str, str]]:
    git = run.record.get("git")
    code = _folder_of_code(run)
    if not isinstance(git, Mapping) or git.get("commit") is None or not code.is_dir():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        now = record_changes(code, Path(folder))
        patch = Path(folder) / PATCH
        patch_now = patch.read_bytes() if patch.exists() else b""
    if now is None or now["commit"] is None:
        return {"commit": (str(git.get("commit")), _NONE)}
    found = {"commit": (str(git.get("commit")), str(now["commit"]))}
    patch_then = files.read(PATCH)
    if patch_then != patch_now or git["dirty"] != now["dirty"]:
        found["changes that are not committed"] = (_told_patch(patch_then, git), _told_patch(patch_now, now))
        if found["changes that are not committed"][0] == found["changes that are not committed"][1]:
            found["changes that are not committed"] = ("others", _told_patch(patch_now, now))
    return found


def _of_files(run: RunInfo, files: RunFiles) -> dict[str, tuple[str, str]]:
    """The files that the run's code was loaded from, which git need not know."""
    code = _folder_of_code(run)
    found = {}
    for file, then in read_checksums(files.read(CODE).decode(errors="surrogateescape")).items():
        now = sha256_of(Path(file)) or _NONE
        found[f"content of {os.path.relpath(file, code)}"] = (then[:_SHOWN], now[:_SHOWN])
    return found


def _folder_of_code(run: RunInfo) -> Path:
    experiment = run.record.get("experiment")
    cwd = str(run.record.get("cwd") or os.getcwd())
    if isinstance(experiment, Mapping):
        return Path(str(experiment.get("file"))).parent
    return Path(cwd, str(run.record.get("script") or "x")).parent


def _told_patch(patch: bytes, git: Mapping[str, Any]) -> str:
    if not patch:
        return f"not kept ({git.get('patch_left_out') or 'unknown'})" if git.get("dirty") else _NONE
    files = patch.count(b"\ndiff --git ") + patch.startswith(b"diff --git ")
    return f"{files} files changed"


def _of_packages(then: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    now = packages_of(list_packages())
    names = sorted({*then, *now}, key=str.lower)
    pairs = {f"package {name}": (then.get(name, _NONE), now.get(name, _NONE)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _text(value: Any) -> str:
    return (", ".join(map(str, value)) or _NONE) if isinstance(value, list) else str(value or "")
