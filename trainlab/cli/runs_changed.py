"""``trainlab runs tag`` and ``trainlab runs rm``: what changes runs, or ends them."""

import argparse
from collections.abc import Sequence

from trainlab.cli.output import write_json, write_lines
from trainlab.cli.places import is_confirmed, require_terminal
from trainlab.cli.run_names import RUN, NamedRuns, add_root
from trainlab.cli.runs_table import write_runs
from trainlab.errors import RunFolderError
from trainlab.runs.contents import RunFiles
from trainlab.runs.listing import RunInfo, find_runs, is_url
from trainlab.runs.removal import remove_run
from trainlab.runs.tags import change_tags, checked_tag
from trainlab.runs.where import filter_of

__all__ = ["add_rm", "add_tag", "with_tags_apart"]

_RM = """\
Remove runs for ever, after asking: each with all that is in its folder, or not at all. A run that is held by a live
process stays. Checkpoints that are kept elsewhere stay, and are named."""
# Stands for tags among the arguments: argparse would take -old for an option.
_TAGS = "--tags"


def with_tags_apart(arguments: Sequence[str]) -> list[str]:
    """Let ``+best`` and ``-old`` be what they are for ``runs tag``.

    Args:
        arguments: What follows ``trainlab runs``.

    Returns:
        The same, with each of them as an option of its own.
    """
    if arguments[:1] != ["tag"]:
        return list(arguments)
    is_tag = [word[:1] == "+" or (word[:1] == "-" and word[1:2] not in ("-", "")) for word in arguments]
    return [f"{_TAGS}={word}" if tags and word != "-h" else word for word, tags in zip(arguments, is_tag, strict=True)]


def add_tag(parser: argparse.ArgumentParser) -> None:
    """Give a parser what ``runs tag`` takes.

    Args:
        parser: It.
    """
    parser.usage = "trainlab runs tag [--root ROOT] [--json] RUN [RUN ...] [+TAG ...] [-TAG ...]"
    parser.description = "Give runs tags (+best) and take tags away (-old); without any, tell which they have."
    parser.add_argument("run_names", metavar="RUN", nargs="+", help=RUN)
    parser.add_argument(_TAGS, action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="write JSON")
    add_root(parser)
    parser.set_defaults(run=_tag)


def add_rm(parser: argparse.ArgumentParser, where_help: str) -> None:
    """Give a parser what ``runs rm`` takes.

    Args:
        parser: It.
        where_help: What is told of ``--where``.
    """
    parser.description = _RM
    parser.add_argument("run_names", metavar="RUN", nargs="*", help=RUN)
    parser.add_argument("--where", metavar="FILTER", help=where_help)
    parser.add_argument("--elsewhere", action="store_true", help="also runs that are said to run where nobody can see")
    parser.add_argument("--damaged", action="store_true", help="also folders whose run.json may be another program's")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_root(parser)
    parser.set_defaults(run=_rm, parser=parser)


def _tag(given: argparse.Namespace) -> int:
    options = dict(given.storage_option)
    add = [checked_tag(word[1:]) for word in given.tags if word[0] == "+"]
    remove = [word[1:] for word in given.tags if word[0] == "-"]
    named = NamedRuns(given.root, options)
    runs = [_run_to_tag(name, given, named) for name in given.run_names]
    tags = {str(run.path): change_tags(run, add, remove, options) if given.tags else run.tags for run in runs}
    if given.json:
        write_json(tags)
    else:
        write_lines(f"{path}  {' '.join(of_run) or 'no tags'}" for path, of_run in tags.items())
    return 0


def _run_to_tag(name: str, given: argparse.Namespace, named: NamedRuns) -> RunInfo:
    try:
        return named.readable(name)
    except RunFolderError as error:
        if name == given.run_names[0]:
            raise
        raise RunFolderError(f"{error} If it is meant as a tag: +{name} gives it, -{name} takes it away.") from None


def _rm(given: argparse.Namespace) -> int:
    if bool(given.run_names) == (given.where is not None):
        given.parser.error("name the runs, or tell them by --where")
    require_terminal(given.parser, given)
    options = dict(given.storage_option)
    runs = _chosen(given, options)
    if not runs:
        write_lines([f"There is nothing to remove in {given.root}."])
        return 0
    write_runs(runs, None if given.where is None else given.root, ("run", "status", "started", "tags"), None)
    if given.dry_run or not (given.yes or is_confirmed(f"Remove {len(runs)} of them for ever?")):
        return 0
    failed = 0
    for run in runs:
        elsewhere = RunFiles(run, options).checkpoints_elsewhere
        try:
            remove_run(run, options, elsewhere=given.elsewhere, damaged=given.damaged)
        except (OSError, RunFolderError) as error:
            failed += 1
            write_lines([f"Not removed: {error}"])
            continue
        if elsewhere:
            write_lines([f"Its checkpoints stay where they are: {elsewhere}"])
    write_lines([f"Removed: {len(runs) - failed}."])
    return 1 if failed else 0


def _chosen(given: argparse.Namespace, options: dict[str, object]) -> list[RunInfo]:
    if given.where is None:
        named = NamedRuns(given.root, options)
        runs = [named.found(name) for name in given.run_names]
        return list({str(run.path): run for run in runs}.values())
    is_meant = filter_of(given.where)
    found = find_runs(given.root, options if is_url(given.root) else None)
    runs = sorted((run for run in found if is_meant(run)), key=lambda run: str(run.path))
    # One inside of another that goes is gone with it.
    paths = {str(run.path) for run in runs}
    return [run for run in runs if not _is_inside(str(run.path), paths)]


def _is_inside(path: str, others: set[str]) -> bool:
    while path := path.rpartition("/")[0]:
        if path in others:
            return True
    return False
