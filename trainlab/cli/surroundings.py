"""What the doctor looks at around the machine: SLURM, and the file systems that can be reached."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess

from trainlab.cli.facts import Fact

__all__ = ["PROBES"]

_PATIENCE = 10.0
_COMMANDS = ("sbatch", "srun", "scontrol")
# The protocol of a URL, the module that fsspec needs for it, and the package that brings it.
_FILE_SYSTEMS = (
    ("s3", "s3fs", "s3fs"),
    ("gs", "gcsfs", "gcsfs"),
    ("abfs", "adlfs", "adlfs"),
    ("hdfs", "pyarrow", "pyarrow"),
    ("hf", "huggingface_hub", "huggingface_hub"),
    ("http", "aiohttp", "aiohttp"),
    ("sftp", "paramiko", "paramiko"),
    ("smb", "smbprotocol", "smbprotocol"),
)


def _slurm() -> list[Fact]:
    found = [Fact("slurm", name, shutil.which(name)) for name in _COMMANDS]
    missing = [fact.name for fact in found if fact.value is None]
    if len(missing) == len(_COMMANDS):
        return [Fact("slurm", "commands", "none on the PATH")]
    if missing:
        problem = f"SLURM is here without {' and '.join(missing)}."
        found.append(
            Fact("slurm", "commands", None, problem, "Install slurm-client, or set PATH to all of SLURM's bin.")
        )
    if "scontrol" not in missing:
        found.append(_controller())
    return found


def _controller() -> Fact:
    try:
        done = subprocess.run(
            ["scontrol", "ping"],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        said, is_up = done.stdout.strip() or done.stderr.strip() or "no word", " UP" in done.stdout
    except subprocess.TimeoutExpired:
        said, is_up = f"no answer in {_PATIENCE:g} s", False
    said = said.splitlines()[0]
    if is_up:
        return Fact("slurm", "controller", said)
    remedy = "Check SLURM_CONF, that munge runs, and that slurmctld is up: scontrol ping"
    return Fact("slurm", "controller", said, f"SLURM's controller does not answer: {said}", remedy)


def _slurm_version() -> list[Fact]:
    if shutil.which("scontrol") is None:
        return []
    try:
        done = subprocess.run(["scontrol", "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return [Fact("slurm", "version", "unknown")]
    return [Fact("slurm", "version", done.stdout.strip() or "unknown")]


def _job() -> list[Fact]:
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK")
    told = {name: os.environ[name] for name in names if name in os.environ}
    return [Fact("slurm", "inside a job", told or False)]


def _submitit() -> list[Fact]:
    try:
        version = importlib.metadata.version("submitit")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed: pip install 'trainlab[slurm]'"
    return [Fact("slurm", "submitit", version)]


def _file_systems() -> list[Fact]:
    found = [Fact("storage", "fsspec", importlib.metadata.version("fsspec"))]
    for protocol, module, package in _FILE_SYSTEMS:
        is_there = importlib.util.find_spec(module) is not None
        found.append(Fact("storage", f"{protocol}://", "yes" if is_there else f"not installed: pip install {package}"))
    return found


PROBES = {"slurm": [_slurm, _slurm_version, _job, _submitit], "storage": [_file_systems]}
