"""``trainlab checkpoint verify|show|list|prune``: looks after checkpoints, for a person or as JSON."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainlab.cli.output import local_time, short, size_text, write_json, write_lines, write_table
from trainlab.cli.places import add_storage_options, is_confirmed, require_terminal
from trainlab.cli.subcommands import refuse_unknown
from trainlab.errors import InvalidValueError

if TYPE_CHECKING:
    from trainlab.checkpoint.commands import Found
    from trainlab.checkpoint.pruning import Removal
    from trainlab.schedule import TrainUnit

__all__ = ["main", "parser"]

_DESCRIPTION = """\
Look after checkpoints. A place is a checkpoint, a folder of checkpoints or a run's folder, as a path or as any URL that
fsspec knows."""
_PRUNE = """\
Remove checkpoints that are not needed, after asking. Left as they are: damaged ones, those that are being read, and
those under names that no run gives. A run that is held by a live process is not pruned; in an object store nobody holds
it, so see to it yourself that nothing writes there."""
_STATUS = "The exit status is 0 if all is well, 1 if a checkpoint is damaged or could not be removed, and 2 otherwise."


def main(arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        arguments: What follows ``trainlab checkpoint``.

    Returns:
        The exit status.
    """
    made = parser()
    refuse_unknown(made, arguments, made.get_default("commands"))
    given = made.parse_args(arguments)
    status: int = given.run(given)
    return status


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command, which names those below it as the default of "commands"."""
    made = argparse.ArgumentParser(
        prog="trainlab checkpoint", description=_DESCRIPTION, epilog=_STATUS, allow_abbrev=False
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("place", metavar="PLACE", help="path or URL")
    common.add_argument("--json", action="store_true", help="write JSON")
    add_storage_options(common)
    how: dict[str, Any] = {"parents": [common], "allow_abbrev": False}
    listing = commands.add_parser("list", help="list the checkpoints of a folder or a run", **how)
    listing.add_argument("--verify", action="store_true", help="compare all files with their checksums")
    listing.set_defaults(run=_list)
    commands.add_parser("show", help="tell what a checkpoint holds", **how).set_defaults(run=_show)
    commands.add_parser("verify", help="compare all files with their checksums", **how).set_defaults(run=_verify)
    _add_prune(commands.add_parser("prune", help="remove checkpoints that are not needed", description=_PRUNE, **how))
    made.set_defaults(commands=list(commands.choices))
    return made


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep-last", type=int, metavar="N", help="keep the N newest")
    parser.add_argument("--keep-best", type=int, default=0, metavar="N", help="keep the N best, by --metric")
    parser.add_argument("--metric", metavar="NAME", help="the validation metric that tells which is better")
    parser.add_argument("--larger-is-better", action="store_true", help="a larger value of the metric is better")
    parser.add_argument(
        "--keep-every", type=_period, metavar="batch:N|epoch:N", help="keep the first of each stretch of this length"
    )
    parser.add_argument("--rubbish", action="store_true", help="remove checkpoints that were never finished, too")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(run=_prune, parser=parser)


def _period(text: str) -> "TrainUnit":
    from trainlab.schedule import Batch, Epoch

    found = re.fullmatch(r"(batch|epoch):([1-9][0-9]{0,17})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"not batch:N or epoch:N with N of at least 1: {text!r}")
    return (Batch if found[1] == "batch" else Epoch)(int(found[2]))


def _list(given: argparse.Namespace) -> int:
    from trainlab.checkpoint.commands import find, verified

    place = find(given.place, dict(given.storage_option))
    found = [verified(place.store, one) for one in place.found] if given.verify else place.found
    if given.json:
        write_json({"place": place.store.url, "checkpoints": [one.told for one in found]})
        return 0
    header = ("NAME", "BATCHES", "EPOCHS", "CREATED", "SIZE", "CONDITION", "VALIDATION")
    write_table([header, *map(_row, found)])
    write_lines(one.reason for one in found if one.reason)
    return 0


def _row(found: "Found") -> tuple[str, ...]:
    entry = found.entry
    if entry is None:
        return (found.name, "", "", "", "", found.condition, "")
    metrics = " ".join(f"{name}={short(value)}" for name, value in entry.validation.items())
    counts = (str(entry.batches_trained), str(entry.epochs_trained))
    return (found.name, *counts, local_time(found.created), size_text(found.size), found.condition, metrics)


def _show(given: argparse.Namespace) -> int:
    from trainlab.checkpoint.commands import describe, find

    told = describe(find(given.place, dict(given.storage_option)))
    if given.json:
        write_json(told)
        return 0
    write_lines(
        [
            f"{told['location']}",
            f"created      {local_time(told['created'])}, as number {told['sequence']}",
            f"trial class  {told['trial_class'] or 'none'}",
            f"size         {size_text(told['size'])}",
            f"parameters   {told['parameters']:,}, buffers included",
        ]
    )
    for part in ("progress", "hparams", "exp_conf", "versions"):
        write_lines([part])
        values = told[part] if isinstance(told[part], Mapping) else {"": told[part]}
        write_table([(f"  {name}", short(value)) for name, value in values.items()])
    write_lines(["files"])
    write_table([(f"  {name}", size_text(entry["size"]), entry["checksum"]) for name, entry in told["files"].items()])
    for role, models in told["weights"].items():
        for model, content in models.items():
            write_lines([f"weights {role} {model!r} in {content['file']}"])
            write_table([_tensor_row(key, tensor) for key, tensor in content["tensors"].items()])
    return 0


def _tensor_row(key: str, tensor: Mapping[str, Any]) -> tuple[str, ...]:
    tied = f"the same as {tensor['same_as']}" if "same_as" in tensor else ""
    return (f"  {key}", tensor["dtype"], str(list(tensor["shape"])), tied)


def _verify(given: argparse.Namespace) -> int:
    from trainlab.checkpoint.commands import find, verified

    place = find(given.place, dict(given.storage_option))
    checked = []
    for one in place.found:
        found = verified(place.store, one)
        checked.append(found)
        if not given.json:
            write_lines([f"{found.name}  {found.condition}{found.reason and ': '}{found.reason}"])
            sys.stdout.flush()
    are_whole = all(one.condition in ("whole", "unfinished") for one in checked)
    if given.json:
        write_json({"place": place.store.url, "whole": are_whole, "checkpoints": [one.told for one in checked]})
    if all(one.condition == "unfinished" for one in checked):
        raise InvalidValueError(f"There is no finished checkpoint. Received: {place.store.url}.")
    return 0 if are_whole else 1


def _prune(given: argparse.Namespace) -> int:
    from trainlab.checkpoint.commands import find
    from trainlab.checkpoint.pruning import plan_removal, remove, run_kept_from_starting
    from trainlab.checkpoint.retention import Retention

    _check_prune(given)
    retention = Retention(keep_last=given.keep_last, keep_best=given.keep_best, keep_every=given.keep_every)
    options = dict(given.storage_option)
    with run_kept_from_starting(find(given.place, options).store):
        place = find(given.place, options)
        removal = plan_removal(place, retention, metric=given.metric, smaller_is_better=not given.larger_is_better)
        chosen = [*removal.expired, *(removal.rubbish if given.rubbish else [])]
        if not given.json:
            _write_plan(place.found, removal, chosen, rubbish=given.rubbish)
        if chosen and not given.dry_run and (given.yes or is_confirmed(f"Remove {len(chosen)} of them for ever?")):
            remove(place.store, removal, rubbish=given.rubbish)
    if given.json:
        write_json({"place": place.store.url, "dry_run": given.dry_run, **vars(removal)})
    elif not given.dry_run:
        write_lines(_outcome(removal))
    return 1 if removal.failed else 0


def _check_prune(given: argparse.Namespace) -> None:
    if given.keep_last is None and (given.keep_best or given.keep_every or not given.rubbish):
        given.parser.error("--keep-last is required, unless only --rubbish is to be removed")
    if bool(given.keep_best) != bool(given.metric):
        given.parser.error("--keep-best and --metric go together")
    if given.larger_is_better and not given.metric:
        given.parser.error("--larger-is-better goes with --metric")
    require_terminal(given.parser, given)


def _write_plan(found: "Sequence[Found]", removal: "Removal", chosen: list[str], *, rubbish: bool) -> None:
    rows = []
    for one in found:
        left = removal.left.get(one.name)
        kept = f"left, {left}" if left else "left, see --rubbish" if one.name in removal.rubbish else "keep"
        rows.append(("remove" if one.name in chosen else kept, *_row(one)))
    write_table(rows)


def _outcome(removal: "Removal") -> list[str]:
    lines = [f"Removed: {len(removal.removed)}."]
    lines += [f"{name} is being read, and stays." for name in removal.being_read]
    return lines + [f"{name} could not be removed: {reason}" for name, reason in removal.failed.items()]
