"""The parameters that every experiment has."""

import os
import random
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from trainlab.experiments.parameters import Parameter

__all__ = ["DEFAULT_PARAMETERS", "draw_seed"]

_GROUP = "run"
_PROCESSES = "distributed run"


def _place(value: Any) -> Any:
    """A path or a URL as text."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def draw_seed() -> int:
    """A seed of 32 random bits."""
    return random.SystemRandom().getrandbits(32)


DEFAULT_PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        name="output_dir",
        annotation=Path,
        default=Path("runs"),
        help="the folder that the run's own folder is made in",
        group=_GROUP,
        is_default=True,
    ),
    Parameter(
        name="params_file",
        annotation=Path | None,
        allow_from_file=False,
        help="a YAML, JSON or TOML file with values, such as a run's params.yaml",
        group=_GROUP,
        is_default=True,
    ),
    Parameter(
        name="random_seed",
        annotation=Annotated[int, Field(ge=0, lt=2**63)],
        default_factory=draw_seed,
        default_help="32 random bits",
        help="the seed that all others come from",
        group=_GROUP,
        is_default=True,
    ),
    Parameter(
        name="checkpoint",
        annotation=Annotated[str, BeforeValidator(_place)] | None,
        help="a checkpoint to begin with",
        group=_GROUP,
        is_default=True,
    ),
    Parameter(
        name="cuda",
        annotation=bool,
        default=True,
        is_flag=True,
        help="use a GPU, if there is one",
        group=_GROUP,
        is_default=True,
    ),
    Parameter(
        name="deterministic",
        annotation=bool,
        default=False,
        is_flag=True,
        help="have torch compute the same bits in each run, which may be slower",
        group=_GROUP,
        is_default=True,
    ),
    Parameter(
        name="debug",
        annotation=bool,
        default=False,
        is_flag=True,
        help="drop into a debugger where an error is raised",
        group=_GROUP,
        is_default=True,
    ),
    Parameter(
        name="distributed",
        annotation=bool,
        default=False,
        is_flag=True,
        help="run on several processes",
        group=_PROCESSES,
        is_default=True,
    ),
    Parameter(
        name="nproc_per_node",
        annotation=Annotated[int, Field(ge=1)],
        default=1,
        envvar="NPROC_PER_NODE",
        help="processes on each node",
        group=_PROCESSES,
        is_default=True,
    ),
    Parameter(
        name="nnodes",
        annotation=Annotated[int, Field(ge=1)],
        default=1,
        envvar="NNODES",
        help="how many nodes",
        group=_PROCESSES,
        is_default=True,
    ),
    Parameter(
        name="node_rank",
        annotation=Annotated[int, Field(ge=0)],
        default=0,
        envvar="NODE_RANK",
        help="the number of this node",
        group=_PROCESSES,
        is_default=True,
    ),
    Parameter(
        name="master_addr",
        annotation=str,
        default="127.0.0.1",
        envvar="MASTER_ADDR",
        help="the address of the node that the others find each other at",
        group=_PROCESSES,
        is_default=True,
    ),
    Parameter(
        name="master_port",
        annotation=Annotated[int, Field(ge=1, le=65535)],
        default=29500,
        envvar="MASTER_PORT",
        help="its port",
        group=_PROCESSES,
        is_default=True,
    ),
)
