"""Launching: a function or a script on one process, on many, on several nodes, or as a job of SLURM."""

from trainlab.errors import LaunchError, RankFailedError
from trainlab.launch.call import Call
from trainlab.launch.job import JobHandle
from trainlab.launch.launching import launch, launch_array, launch_script, on
from trainlab.launch.platform import Platform

__all__ = [
    "Call",
    "JobHandle",
    "LaunchError",
    "Platform",
    "RankFailedError",
    "launch",
    "launch_array",
    "launch_script",
    "on",
]
