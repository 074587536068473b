"""What the doctor looks at on torch and the GPUs."""

import os
import re
import shutil
import subprocess

from trainlab.cli.facts import Fact

__all__ = ["PROBES"]

_PATIENCE = 30.0
_QUERY = ("index", "name", "memory.total", "memory.used", "mig.mode.current", "driver_version")


def _torch() -> list[Fact]:
    import torch

    built = torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else None)
    return [
        Fact("torch", "torch", str(torch.__version__)),
        Fact("torch", "built for CUDA", built),
        Fact("torch", "threads", torch.get_num_threads()),
    ]


def _devices() -> list[Fact]:
    import torch

    from trainlab.distributed import visible_gpus

    smi = _ask_driver("--query-gpu=" + ",".join(_QUERY), "--format=csv,noheader,nounits")
    in_driver = [line for line in smi.splitlines() if line.strip()]
    usable = torch.cuda.is_available()
    found = [Fact("devices", f"GPU {line.split(', ')[0]}", _gpu(line)) for line in in_driver]
    found += [Fact("devices", "GPUs for ranks", visible_gpus())]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        found.append(Fact("devices", "CUDA_VISIBLE_DEVICES", hidden))
    problem = remedy = ""
    if in_driver and torch.version.cuda is None:
        problem = "There are GPUs, and torch is built without CUDA."
        remedy = "Install a build with CUDA: https://pytorch.org/get-started/locally"
    elif in_driver and not usable and hidden not in {"", "-1"}:
        problem = "There are GPUs, and torch cannot use them: the driver may be too old for this build of torch."
        remedy = f"Update the driver, or install torch for an older CUDA than {torch.version.cuda}; see nvidia-smi."
    found.append(Fact("devices", "CUDA", usable, problem or None, remedy or None))
    found.append(Fact("devices", "MPS", bool(torch.backends.mps.is_available())))
    return found


def _gpu(line: str) -> str:
    """A GPU for a person, of a line that nvidia-smi gave."""
    told = dict(zip(_QUERY, line.split(", "), strict=False))
    mig = "" if told.get("mig.mode.current") in {None, "[N/A]", "Disabled"} else ", MIG"
    return (
        f"{told['name']}, {told['memory.total']} MiB ({told['memory.used']} used), driver {told['driver_version']}{mig}"
    )


def _mig() -> list[Fact]:
    instances = re.findall(r"^\s*(MIG .+?)\s+Device.*UUID: (MIG-[^)\s]+)", _ask_driver("-L"), re.MULTILINE)
    if not instances:
        return []
    names = [f"{name}: {uuid}" for name, uuid in instances]
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if len(instances) > 1 and "MIG-" not in listed:
        problem = f"{len(instances)} instances of MIG are there, and a process sees only the first."
        remedy = f"For one rank on each: export CUDA_VISIBLE_DEVICES={','.join(uuid for _, uuid in instances)}"
        return [Fact("devices", "MIG", names, problem, remedy)]
    return [Fact("devices", "MIG", names)]


def _backends() -> list[Fact]:
    from torch import distributed

    remedy = "Install another build of torch."
    if not distributed.is_available():
        what = "torch is built without torch.distributed: there can be one process only."
        return [Fact("backends", "torch.distributed", False, what, remedy)]
    names = [name for name in distributed.Backend.backend_list if name != distributed.Backend.UNDEFINED]
    there = {name: bool(distributed.is_backend_available(name)) for name in names if name != "fake"}
    problem = None if there.get("gloo") else "torch is built without gloo, over which ranks talk to each other."
    found = [Fact("backends", "gloo", bool(there.pop("gloo", False)), problem, remedy if problem else None)]
    return found + [Fact("backends", name, is_there) for name, is_there in sorted(there.items())]


def _ask_driver(*arguments: str) -> str:
    """What nvidia-smi answers; "" where there is none, or no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    return done.stdout if done.returncode == 0 else ""


PROBES = {"torch": [_torch], "devices": [_devices, _mig], "backends": [_backends]}
