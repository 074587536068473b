"""Functions that become experiments: parameters, a command line, a run folder. No torch before a run begins."""

# Where each name lives, loaded when it is first touched: a script's `--help` waits for no more than it needs.
_HOMES = {
    "Experiment": "definition",
    "Parameter": "parameter",
    "Search": "search_space",
    "Values": "values",
    "experiment": "definition",
    "global_entrypoint": "definition",
    "group": "definition",
    "is_subprocess": "children",
    "launch_subprocess": "children",
    "load_experiment": "loading",
    "new_seed": "current",
    "output_dir": "current",
    "param_group": "definition",
    "parameter": "definition",
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
