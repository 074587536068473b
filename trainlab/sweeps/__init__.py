"""Many runs of an experiment: sweeps over lists of parameters, and searches. No torch, and no Optuna before a search."""

# Where each name lives, loaded when it is first touched.
_HOMES = {
    "SweepResult": "results",
    "param_matrix": "matrix",
    "run_parameter_sweep": "sweep",
    "search": "search",
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
