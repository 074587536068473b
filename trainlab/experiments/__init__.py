"""Functions that become experiments: parameters, a command line, a run folder. No torch before a run begins."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainlab.experiments.children import is_subprocess as is_subprocess
    from trainlab.experiments.children import launch_subprocess as launch_subprocess
    from trainlab.experiments.children import local_rank as local_rank
    from trainlab.experiments.children import run_experiment as run_experiment
    from trainlab.experiments.current import new_seed as new_seed
    from trainlab.experiments.current import output_dir as output_dir
    from trainlab.experiments.current import params as params
    from trainlab.experiments.decorators import param_group as param_group
    from trainlab.experiments.decorators import parameter as parameter
    from trainlab.experiments.definition import Experiment as Experiment
    from trainlab.experiments.definition import experiment as experiment
    from trainlab.experiments.groups import global_entrypoint as global_entrypoint
    from trainlab.experiments.groups import group as group
    from trainlab.experiments.loading import load_experiment as load_experiment
    from trainlab.experiments.parameters import Parameter as Parameter
    from trainlab.experiments.search_space import Search as Search
    from trainlab.experiments.values import Values as Values

# Where each name lives, loaded when it is first touched: a script's `--help` waits for no more than it needs.
_HOMES = {
    "Experiment": "definition",
    "Parameter": "parameters",
    "Search": "search_space",
    "Values": "values",
    "experiment": "definition",
    "global_entrypoint": "groups",
    "group": "groups",
    "is_subprocess": "children",
    "launch_subprocess": "children",
    "load_experiment": "loading",
    "local_rank": "children",
    "new_seed": "current",
    "output_dir": "current",
    "param_group": "decorators",
    "parameter": "decorators",
    "params": "current",
    "run_experiment": "children",
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
