"""trainlab: one file trains, validates, reports, checkpoints and resumes.

The public names are loaded when they are first touched (PEP 562), so that
``import trainlab`` costs nothing: no torch, and no package that a program does
not use. Editors and type checkers read ``__init__.pyi``.
"""

__version__ = "0.1.0"

# Where each public name lives. A module that is public itself is its own home.
_HOMES = {
    "Batch": "trainlab.schedule",
    "BetterDataLoader": "trainlab.data",
    "Callback": "trainlab.training",
    "ContextDict": "trainlab.containers",
    "ContextList": "trainlab.containers",
    "ContextObject": "trainlab.containers",
    "Counter": "trainlab.recording",
    "DDPOptions": "trainlab.parallel",
    "DataLoader": "trainlab.data",
    "Epoch": "trainlab.schedule",
    "Experiment": "trainlab.experiments",
    "FSDPOptions": "trainlab.parallel",
    "FitResult": "trainlab.training",
    "LRScheduler": "trainlab.optim",
    "MetricReducer": "trainlab.metrics",
    "Recorder": "trainlab.recording",
    "Reducer": "trainlab.metrics",
    "Retention": "trainlab.checkpoint",
    "Search": "trainlab.experiments",
    "SupervisedTrial": "trainlab.training",
    "TorchWriter": "trainlab.recording",
    "TrainUnit": "trainlab.schedule",
    "Trainer": "trainlab.training",
    "TrainlabError": "trainlab.errors",
    "Trial": "trainlab.training",
    "TrialContext": "trainlab.training",
    "context": "trainlab.containers",
    "distributed": "trainlab.distributed",
    "experiment": "trainlab.experiments",
    "global_entrypoint": "trainlab.experiments",
    "group": "trainlab.experiments",
    "init": "trainlab.training",
    "is_subprocess": "trainlab.experiments",
    "iterate": "trainlab.containers",
    "launch": "trainlab.launch",
    "launch_subprocess": "trainlab.experiments",
    "load_checkpoint": "trainlab.checkpoint",
    "load_trial_from_checkpoint_path": "trainlab.training",
    "load_weights": "trainlab.checkpoint",
    "new_seed": "trainlab.experiments",
    "output_dir": "trainlab.experiments",
    "param_group": "trainlab.experiments",
    "param_matrix": "trainlab.sweeps",
    "parameter": "trainlab.experiments",
    "params": "trainlab.experiments",
    "place_on_correct_device": "trainlab.containers",
    "run_experiment": "trainlab.experiments",
    "run_parameter_sweep": "trainlab.sweeps",
    "samplers": "trainlab.data.samplers",
    "save_checkpoint": "trainlab.checkpoint",
    "search": "trainlab.sweeps",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(home)
    value: object = module if home.endswith(f".{name}") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
