"""init: opens a run and gives its context."""

import contextlib
import functools
import itertools
import logging
import operator
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from trainlab import __version__
from trainlab.distributed import DistributedContext, Failure, choose_device, launched, note, open_ranks, seed_all
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.parallel import DDPOptions, FSDPOptions, make_parallel
from trainlab.precision import Precision
from trainlab.recording import LineDisplay
from trainlab.runs import JoinedFolder, RunFolder
from trainlab.runs.current import CurrentRun, current_run
from trainlab.runs.lent_folder import LentFolder
from trainlab.runs.masking import Masking
from trainlab.runs.run_record import folder_of_program
from trainlab.runs.surroundings import record_surroundings
from trainlab.runs.yaml_text import masked
from trainlab.storage import open_store
from trainlab.training.agreement import check_given
from trainlab.training.context import TrialContext
from trainlab.training.session import Session
from trainlab.training.signals import EarlySignals

__all__ = ["init", "open_context", "versions"]

logger = logging.getLogger("trainlab.training")

_runs = itertools.count()

UNEVEN = ("scale", "drop", "pad")


def init(
    *,
    hparams: Mapping[str, Any] | None = None,
    exp_conf: Mapping[str, Any] | None = None,
    distributed: DistributedContext | None = None,
    aggregation_frequency: int = 1,
    name: str | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    precision: str = "fp32",
    device: str | torch.device | None = None,
    enable_tensorboard_logging: bool = True,
    progress: bool = True,
    uneven: str = "scale",
    checkpoint_storage: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    parallel: str = "auto",
    parallel_options: DDPOptions | FSDPOptions | None = None,
) -> TrialContext:
    """Open a run, new or continued, and return its context.

    Use it in a ``with`` block, or as a plain call (a notebook): then the run is closed at exit.
    All random generators are seeded here. Where the environment says that this process is one of several (torchrun,
    SLURM), they find each other here, and train together; the same call is made on each.
    In the main function of an experiment the first call without ``run_dir`` opens the experiment's own run, with its
    folder, parameters and seed; a second one gets a folder in ``runs`` of that folder.

    Args:
        hparams: the hyperparameters by name. Default none; in an experiment its parameters, as plain data and without
            secrets.
        exp_conf: a configuration of your own, for ``get_experiment_config``. Default none.
        distributed: who this process is among several. Default: found out from the environment.
        aggregation_frequency: optimizers step at every so-manieth batch, on summed gradients. Default 1.
        name: the run's name, for its folder ``runs/<name>/…``. Default: the script's name, or the experiment's.
        run_dir: the run's folder exactly, or any URL that fsspec knows (``s3://bucket/runs/a``); if it holds a run,
            that run is continued. Default: the environment variable TRAINLAB_RUN_DIR, or a new folder; where a launch
            starts its processes again, or SLURM a batch job, the folder that they had before. With TRAINLAB_RESUME=1 in
            the environment ``fit`` goes on from the newest checkpoint of a continued run by itself.
        seed: the run's seed, an int ≥ 0. Default: that of the run in ``run_dir``, the environment variable
            TRAINLAB_SEED, or 0; in an experiment its ``random_seed``.
        precision: "fp32", "bf16" or "fp16". Default "fp32".
        device: where to train. Default: the environment variable TRAINLAB_DEVICE, or CUDA, then MPS, then the CPU; the
            CPU in an experiment with ``--no-cuda``.
        enable_tensorboard_logging: whether trainlab writes its own TensorBoard series. Default True.
        progress: whether to show a progress bar, or lines where there is no terminal. Default True.
        uneven: how several ranks treat a batch that they cannot share evenly: "scale", "drop" or "pad".
        checkpoint_storage: where checkpoints go, a folder or any URL that fsspec knows; of this run alone.
            Default: where those of the run in ``run_dir`` are, else ``checkpoints`` in its folder.
        storage_options: what the file system of the URLs asks for (keys, endpoints), as fsspec has it. Default none.
        parallel: how several ranks share a model: "ddp" (each has all of it), "fsdp" (each has a part of it), or
            "auto", which is "ddp" where there are several. Default "auto".
        parallel_options: a ``trainlab.DDPOptions`` or a ``trainlab.FSDPOptions``. Default: the defaults of these.

    Returns:
        The context, to be given to the Trial and to the Trainer.

    Raises:
        InvalidValueError: an argument cannot be used.
        InvalidTypeError: an argument has the wrong type.
        RunFolderError: the folder is held by another process, or is no run's.
        DistributedError: the other processes cannot be reached, or fail.
    """
    return open_context(
        TrialContext,
        hparams=hparams,
        exp_conf=exp_conf,
        distributed=distributed,
        aggregation_frequency=aggregation_frequency,
        name=name,
        run_dir=run_dir,
        seed=seed,
        precision=precision,
        device=device,
        enable_tensorboard_logging=enable_tensorboard_logging,
        progress=progress,
        uneven=uneven,
        checkpoint_storage=checkpoint_storage,
        storage_options=storage_options,
        parallel=parallel,
        parallel_options=parallel_options,
    )


def open_context(
    context_class: type[TrialContext],
    *,
    hparams: Mapping[str, Any] | None,
    exp_conf: Mapping[str, Any] | None,
    distributed: DistributedContext | None,
    aggregation_frequency: int,
    name: str | None,
    run_dir: str | os.PathLike[str] | None,
    seed: int | None,
    precision: str,
    device: str | torch.device | None,
    enable_tensorboard_logging: bool,
    progress: bool,
    uneven: str,
    checkpoint_storage: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    parallel: str = "auto",
    parallel_options: DDPOptions | FSDPOptions | None = None,
) -> TrialContext:
    """Open a run whose context is of a given class; the arguments are those of ``init``.

    Args:
        context_class: TrialContext or a subclass.
        hparams: see ``init``.
        exp_conf: see ``init``.
        distributed: see ``init``.
        aggregation_frequency: see ``init``.
        name: see ``init``.
        run_dir: see ``init``.
        seed: see ``init``.
        precision: see ``init``.
        device: see ``init``.
        enable_tensorboard_logging: see ``init``.
        progress: see ``init``.
        uneven: see ``init``.
        checkpoint_storage: see ``init``.
        storage_options: see ``init``.
        parallel: see ``init``.
        parallel_options: see ``init``.

    Returns:
        The context.
    """
    run = current_run()
    if run is not None:
        hparams = run.hparams if hparams is None else hparams
        seed = run.random_seed if seed is None else seed
        device = "cpu" if device is None and not run.uses_gpus else device
    default_seed = _seed_of_environment() if seed is None else _checked_seed(seed)
    _check_types(hparams=hparams, exp_conf=exp_conf, distributed=distributed, run_dir=run_dir)
    _check_aggregation(aggregation_frequency)
    _check_choices(name=name, uneven=uneven, progress=progress, enable_tensorboard_logging=enable_tensorboard_logging)
    lender = run if run is not None and run_dir is None and run.can_lend_folder else None
    if run_dir is None and lender is None:
        run_dir = os.environ.get("TRAINLAB_RUN_DIR") or None
    _check_storage(checkpoint_storage, storage_options, run_dir)
    device = choose_device(device)
    with contextlib.ExitStack() as undone:
        signals = EarlySignals()
        undone.callback(signals.close)
        is_ours = distributed is None
        if distributed is None:
            distributed = undone.enter_context(open_ranks(device))
        with distributed.guard():
            distributed.phase("open")
            chosen = Precision(precision, _device_of_rank(device))
            folder, told = _open_folder(
                distributed,
                name=_default_name(run) if name is None else name,
                run_dir=run_dir,
                root="runs" if run is None else run.output_dir / "runs",
                lender=lender,
                masking=Masking() if run is None else run.masking,
                storage_options=storage_options if _is_url(run_dir) else None,
                seed=seed,
                default_seed=default_seed,
                checkpoint_storage=checkpoint_storage,
                given={
                    "precision": precision,
                    "device type": device.type,
                    "aggregation_frequency": aggregation_frequency,
                    "uneven": uneven,
                    "parallel": parallel,
                    "parallel_options": repr(parallel_options),
                },
            )
            undone.callback(folder.close)
            seed, checkpoint_storage = told["seed"], told["checkpoint_storage"]
            assert seed is not None  # the chief chose one; kept for the type checker
            session = Session(
                folder,
                distributed=distributed,
                progress=progress,
                enable_tensorboard_logging=enable_tensorboard_logging,
                checkpoint_storage=checkpoint_storage,
                storage_options=storage_options,
                signals=signals,
            )
            undone.callback(session.close)
            context = context_class(
                hparams=hparams,
                exp_conf=exp_conf,
                distributed=distributed,
                seed=seed,
                aggregation_frequency=aggregation_frequency,
                precision=chosen,
                uneven=uneven,
                session=session,
                parallel=make_parallel(parallel, parallel_options, distributed, chosen.device),
            )
            _write_params(folder, lender, hparams, {"seed": seed, "precision": precision})
            if lender is None and distributed.is_chief:
                folder.write_record(git=record_surroundings(folder_of_program(), folder.path))
            storage = None if checkpoint_storage is None else session.checkpoints.url
            folder.write_record(
                seed=seed,
                device=str(chosen.device),
                ranks=distributed.size,
                threads=torch.get_num_threads(),
                versions=versions(),
                checkpoint_storage=storage,
                status="running",
            )
            folder.push()
            context.closes_distributed, context.run_number = is_ours, told["number"]
            if run is not None and run.folder is not None:
                run.at_end.push(lambda kind, error, traceback: context.close(error))
                run.is_trained = run.is_trained or lender is not None
            distributed.watchdog.on_failure(functools.partial(_note_failure, context))
            if distributed.size > 1:
                logger.info("CPU threads of this rank: %d.", torch.get_num_threads())
            note("run", {"folder": str(folder.place)})
        undone.pop_all()
    seed_all(seed)  # the same on all ranks, for their models are to begin alike; they part when training begins
    return context


def _open_folder(
    distributed: DistributedContext,
    *,
    name: str,
    run_dir: str | os.PathLike[str] | None,
    root: str | os.PathLike[str],
    lender: CurrentRun | None,
    masking: Masking,
    storage_options: Mapping[str, Any] | None,
    seed: int | None,
    default_seed: int,
    checkpoint_storage: str | os.PathLike[str] | None,
    given: dict[str, Any],
) -> tuple[RunFolder, dict[str, Any]]:
    """Open the run's folder on the chief, and join it on the other ranks; what the chief chose holds for all."""
    opened: list[RunFolder] = []

    def on_chief() -> dict[str, Any]:
        folder = _own_folder(name, run_dir, root, storage_options, masking) if lender is None else _lent_folder(lender)
        try:
            begun_with = folder.record.get("seed")
            told = {
                "folder": folder.told,
                "number": next(_runs),
                "given": given,
                "seed": begun_with if seed is None and isinstance(begun_with, int) else default_seed,
                "checkpoint_storage": _remembered_storage(folder, checkpoint_storage),
            }
        except BaseException:
            folder.close()
            raise
        opened.append(folder)
        return told

    told = distributed.on_chief(on_chief)
    # A rank that is given no seed takes the chief's.
    check_given(
        {"seed": told["seed"] if seed is None else seed, **given},
        {"seed": told["seed"], **told["given"]},
        distributed.rank,
    )
    if distributed.is_chief:
        return opened[0], told
    if lender is not None:
        return _lent_folder(lender), told
    return JoinedFolder(told["folder"], distributed.rank, masking), told


def _write_params(
    folder: RunFolder, lender: CurrentRun | None, hparams: Mapping[str, Any] | None, more: dict[str, Any]
) -> None:
    """Write what the run is begun with; what one that goes on has of its earlier start stays if none is given now."""
    if hparams is not None or not folder.params_file.exists():
        folder.write_params({"hparams": dict(hparams or {}), **more})
        if lender is None:
            folder.write_record(params=masked(hparams or {}))
    if lender is not None and hparams is not None and hparams is not lender.hparams:
        folder.write_record(hparams=masked(hparams))


def _lent_folder(lender: CurrentRun) -> LentFolder:
    assert lender.folder is not None  # it can lend one; kept for the type checker
    return LentFolder(lender.folder)


def _own_folder(
    name: str,
    run_dir: str | os.PathLike[str] | None,
    root: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None,
    masking: Masking,
) -> RunFolder:
    """Open a folder that nobody has opened before."""
    switch = os.environ.get("TRAINLAB_RESUME") or "0"
    if switch not in ("0", "1"):
        raise InvalidValueError(f"TRAINLAB_RESUME is 0 or 1. Received: {switch!r}.")
    # The launch's folder is for its first run, and not for those of the programs that this one may start.
    of_launch = os.environ.pop("TRAINLAB_LAUNCH_RUN", None) if run_dir is None else None
    launch = launched()
    folder = RunFolder.open(
        name=name,
        run_dir=of_launch or run_dir,
        root=root,
        storage_options=storage_options,
        launch_id=None if launch is None else launch.id,
        attempt=0 if launch is None else launch.attempt,
        is_launchers=bool(of_launch),
        masking=masking,
    )
    folder.resumes = folder.resumes or (switch == "1" and folder.continues)
    return folder


def _note_failure(context: TrialContext, failure: Failure) -> None:
    """Write into the run's log and record what went wrong first; its own rank shows the traceback on the console."""
    ranks = context.distributed
    if not context.session.is_open:
        return
    headline = failure.headline(ranks.size)
    logger.log(logging.ERROR if ranks.is_chief and failure.rank != 0 else logging.INFO, "%s", headline)
    if ranks.is_chief:
        if failure.traceback:
            logger.info("The traceback of rank %d:\n%s", failure.rank, failure.traceback)
        context.session.note_failure(headline)
    elif failure.rank == 0 and failure.kind in ("killed", "frozen", "ended") and _is_first_beside_chief(ranks):
        LineDisplay().say(f"ERROR: {headline}")  # which the chief shows no more


def _is_first_beside_chief(ranks: DistributedContext) -> bool:
    """Tell whether this is the first of its host's ranks, the chief left out."""
    return ranks.local_rank == int(ranks.cross_rank == 0)


def versions() -> dict[str, str]:
    """Return the versions that decide how a run computes, by name."""
    return {
        "trainlab": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def _check_types(*, hparams: Any, exp_conf: Any, distributed: Any, run_dir: Any) -> None:
    for name, value in (("hparams", hparams), ("exp_conf", exp_conf)):
        if value is not None and not isinstance(value, Mapping):
            raise InvalidTypeError(f"{name} must be a dict. Received: {value!r} ({type(value).__qualname__}).")
    if distributed is not None and not isinstance(distributed, DistributedContext):
        raise InvalidTypeError(f"distributed must be a DistributedContext or None. Received: {distributed!r}.")
    if run_dir is not None and not isinstance(run_dir, str | os.PathLike):
        raise InvalidTypeError(f"run_dir must be a path or None. Received: {run_dir!r}.")
    if run_dir is not None and not os.fspath(run_dir):
        raise InvalidValueError("run_dir is empty. Received: ''. Name a folder, or leave it out for a new one.")


def _is_url(place: Any) -> bool:
    return place is not None and "://" in os.fspath(place)


def _check_storage(storage: Any, options: Any, run_dir: Any) -> None:
    if storage is not None and (not isinstance(storage, str | os.PathLike) or not os.fspath(storage)):
        raise InvalidTypeError(f"checkpoint_storage must be a path, a URL or None. Received: {storage!r}.")
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise InvalidTypeError(f"storage_options must be a dict. Received: {type(options).__qualname__}.")
    if options and not _is_url(storage) and not _is_url(run_dir):
        raise InvalidValueError(
            f"storage_options are for URLs, and neither run_dir nor checkpoint_storage is one. Received: "
            f"{sorted(map(str, options))}. Leave them out, or pass a URL such as s3://bucket/runs/a."
        )


def _remembered_storage(folder: RunFolder, given: Any) -> Any:
    """Where the checkpoints are: a run goes on with those that it has, also if nobody says where they are."""
    before = folder.record.get("checkpoint_storage")
    if given is None:
        return before
    place = open_store(given).url if not _is_url(given) else os.fspath(given).rstrip("/")
    had = before or str(folder.checkpoints_place)
    if folder.continues and place != had:
        logger.warning("This run had its checkpoints in %s, and goes on with those in %s.", had, place)
    return given


def _check_aggregation(frequency: Any) -> None:
    if isinstance(frequency, bool) or not isinstance(frequency, int) or frequency < 1:
        raise InvalidValueError(f"aggregation_frequency must be an int of at least 1. Received: {frequency!r}.")


def _default_name(run: CurrentRun | None) -> str:
    if run is not None:  # which a program of another name may have begun: trainlab replay
        return run.experiment.rpartition("/")[2]
    stem = Path(sys.argv[0]).stem
    # "-c" and "-" stand for programs that have no name.
    return "run" if not stem or stem.startswith("-") else stem


def _check_choices(*, name: Any, uneven: Any, **switches: Any) -> None:
    if name is not None and (not isinstance(name, str) or not name or "/" in name or name in (".", "..")):
        raise InvalidValueError(f"name must be text without '/'. Received: {name!r}. Use run_dir for an exact folder.")
    if uneven not in UNEVEN:
        raise InvalidValueError(f"uneven must be one of {', '.join(map(repr, UNEVEN))}. Received: {uneven!r}.")
    for switch, value in switches.items():
        if not isinstance(value, bool):
            raise InvalidTypeError(f"{switch} must be True or False. Received: {value!r}.")


def _seed_of_environment() -> int:
    given = os.environ.get("TRAINLAB_SEED", "0")
    if not given.isdecimal():
        raise InvalidValueError(f"TRAINLAB_SEED must be an int of at least 0. Received: {given!r}.")
    return _checked_seed(int(given))


def _checked_seed(seed: Any) -> int:
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise InvalidValueError(f"seed must be an int from 0 to 2**63 - 1. Received: {seed!r}.")
    return number


def _device_of_rank(device: torch.device) -> torch.device:
    if device == torch.device("cuda"):
        return torch.device("cuda", torch.cuda.current_device())  # which the ranks of a node have shared out
    return device
