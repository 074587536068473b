"""Which part of trainlab may know which: read from the source, so that nothing has to run."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

from tests.architecture import source

# The layers of the design, bottom first. A folder imports from its own layer or from one below.
LAYERS = (
    {"schedule"},
    {"distributed", "runs", "storage"},
    {"launch"},
    {"checkpoint", "containers", "data", "metrics", "optim", "parallel", "precision", "recording"},
    {"training"},
    {"callbacks", "compat"},
    {"experiments"},
    {"sweeps"},
    {"cli"},
)
LAYER = {folder: number for number, folders in enumerate(LAYERS) for folder in folders}
EVERYWHERE = "errors"


def imported_folders(path: Path) -> list[tuple[int, str]]:
    """The other folders that a file imports from, each with the line."""
    own = source.folder_of(path)
    found = [(line, name.split(".")[1]) for line, name in source.imports(path) if "." in name]
    return [(line, folder) for line, folder in found if folder in LAYER and folder != own]


def test_every_folder_has_its_layer() -> None:
    """No part of the package stands outside the layers."""
    parts = {source.folder_of(path) for path in source.files()}
    assert parts <= {*LAYER, EVERYWHERE, "__init__", "__main__"}


def test_imports_go_only_downwards_or_sideways() -> None:
    """A folder never needs one of a higher layer, so the lower ones can be used and read alone."""
    upwards = [
        f"{source.name_of(path)}:{line} imports {folder}"
        for path in source.files()
        if (own := source.folder_of(path)) in LAYER
        for line, folder in imported_folders(path)
        if LAYER[folder] > LAYER[own]
    ]
    assert not upwards


def test_no_folders_import_each_other() -> None:
    """Folders can be read one after the other: there is no circle among them."""
    graph: dict[str, set[str]] = {}
    for path in source.files():
        graph.setdefault(source.folder_of(path), set()).update(folder for _, folder in imported_folders(path))
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"these folders import each other: {' -> '.join(error.args[1])}")


def test_errors_need_nothing() -> None:
    """Anything may import the errors, since they import nothing of trainlab."""
    assert source.imports(source.PACKAGE / "errors.py") == []


def test_no_file_goes_through_the_packages_face() -> None:
    """Inside, a name comes from the folder it lives in and never from `trainlab` itself, whose names are for users."""
    allowed = {*LAYER, EVERYWHERE, "__version__"}
    through = [
        f"{source.name_of(path)}:{line} imports {name}"
        for path in source.files()
        for line, name in source.imports(path)
        if "." not in name or name.split(".")[1] not in allowed
    ]
    assert not through


def test_no_file_imports_a_private_name_of_another_folder() -> None:
    """A name with an underscore can be changed by reading one folder."""
    private = [
        f"{source.name_of(path)}:{line} imports {name}"
        for path in source.files()
        for line, name in source.imports(path)
        if name.split(".")[1:2] != [source.folder_of(path)] and re.search(r"\._(?!_)", name)
    ]
    assert not private


def test_the_schedule_is_pure_python() -> None:
    """What is due when can be worked out without torch or numpy."""
    assert not _imports_of({"torch", "numpy"}, {"schedule"})


def test_the_command_line_loads_no_torch() -> None:
    """A command line answers without loading torch."""
    assert not _imports_of({"torch"}, {"runs", "experiments", "sweeps", "cli"})


def test_the_core_does_not_know_compat() -> None:
    """What is done for the sake of other libraries' code stays in its own folder."""
    knowing = [
        f"{source.name_of(path)}:{number}: {line.strip()}"
        for path in source.files()
        if source.folder_of(path) not in {"cli", "compat"}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"(?<!tensorboard\.)\bcompat\b", line, re.IGNORECASE)
    ]
    assert not knowing


def test_nothing_is_printed() -> None:
    """The library speaks through logging and through the display, and leaves standard output to the program."""
    prints = [
        f"{source.name_of(path)}:{node.lineno}"
        for path in source.files()
        for node in ast.walk(source.tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not prints


def _imports_of(packages: set[str], folders: set[str]) -> list[str]:
    """The lines in `folders` that import one of `packages` when they are loaded."""
    return [
        f"{source.name_of(path)}:{node.lineno}"
        for path in source.files()
        if source.folder_of(path) in folders
        for node in source.tree(path).body
        for name in _named(node)
        if name.split(".")[0] in packages
    ]


def _named(node: ast.stmt) -> list[str]:
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
