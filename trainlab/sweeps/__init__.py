"""Many runs of an experiment: sweeps over lists of parameters, and searches. No torch or Optuna before they begin."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainlab.sweeps.matrix import param_matrix as param_matrix
    from trainlab.sweeps.results import SweepResult as SweepResult
    from trainlab.sweeps.searching import search as search
    from trainlab.sweeps.sweep import run_parameter_sweep as run_parameter_sweep

# Where each name lives, loaded when it is first touched.
_HOMES = {
    "SweepResult": "results",
    "param_matrix": "matrix",
    "run_parameter_sweep": "sweep",
    "search": "searching",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
