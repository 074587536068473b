"""The public names: the same in all places, in order, and explained."""

import ast
import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from types import FunctionType, ModuleType

import pytest

import trainlab
from tests.architecture import source

PACKAGES = [path.parent for path in source.files() if path.name == "__init__.py" and path.parent != source.PACKAGE]
FOLDERS = [".".join(package.relative_to(source.PACKAGE).parts) for package in PACKAGES]
CLASSES = [name for name in trainlab.__all__ if name[0].isupper()]
# A first line that tells the answer needs no second telling ("Return the run's seed.", "Tell whether a run is open."),
# and what only raises has no answer.
NEEDS_NO_RETURNS = re.compile(r"\A(Return|Tell (whether|which|how many)) |^    \w+: always\b", re.MULTILINE)


def documented(thing: object, name: str) -> Iterator[tuple[str, FunctionType]]:
    """The functions that a public name brings: itself, or the public methods that its class defines in trainlab."""
    if inspect.isfunction(thing):
        yield name, thing
    elif inspect.isclass(thing):
        for attribute, value in inspect.getmembers_static(thing):
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if inspect.isfunction(function) and not attribute.startswith("_") and _is_ours(function):
                yield f"{name}.{attribute}", function


def missing_sections(function: FunctionType, doc: str) -> set[str]:
    """The sections that a function's docstring should have and has not; its first line may tell what is returned."""
    if not doc:
        return {"a docstring"}
    signature = inspect.signature(function)
    arguments = [name for name in signature.parameters if name not in {"self", "cls"} and not name.startswith("_")]
    answers = signature.return_annotation not in {None, "None", "NoReturn", "Never", inspect.Signature.empty}
    needed = {"Args"} if arguments else set()
    needed |= {"Returns"} if answers and not NEEDS_NO_RETURNS.search(doc) else set()
    needed |= {"Raises"} if _raises(function) else set()
    doc = re.sub(r"^Yields:", "Returns:", doc, flags=re.MULTILINE)
    return {section for section in needed if not re.search(rf"^{section}:\n", doc, re.MULTILINE)}


def constants_then_classes(name: str) -> tuple[bool, bool, str]:
    """The order of names that the linter asks for: constants, classes, functions, each by the alphabet."""
    return (not name.isupper(), not name[0].isupper(), name)


def test_the_names_are_sorted_and_the_same_in_all_places() -> None:
    """The lazy table, `__all__` and the stub that editors read name the same things, in order."""
    table = list(trainlab._HOMES)
    assert table == sorted(table)
    assert trainlab.__all__ == table
    assert sorted(_stub()) == table


def test_the_stub_says_where_the_names_really_live() -> None:
    """An editor leads to the same place that the name is loaded from."""
    for name, module in _stub().items():
        home = trainlab._HOMES[name]
        assert home in {module, f"{module}.{name}"}


@pytest.mark.parametrize("name", trainlab.__all__)
def test_a_public_name_can_be_imported_and_is_explained(name: str) -> None:
    """Every public name is there and `help` says something about it."""
    thing = getattr(trainlab, name)
    assert isinstance(thing, ModuleType) or thing.__module__.startswith("trainlab.")
    assert inspect.getdoc(thing)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_names_are_sorted_there_and_explained(folder: str) -> None:
    """What a folder offers is one sorted list, each name of it there and explained."""
    module = importlib.import_module(f"trainlab.{folder}")
    assert module.__doc__
    assert list(module.__all__) == sorted(module.__all__, key=constants_then_classes)
    things = {name: getattr(module, name) for name in module.__all__}
    own = {name: thing for name, thing in things.items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    assert not [name for name, thing in own.items() if not thing.__doc__]


def test_a_file_lists_what_others_import_from_it() -> None:
    """Whoever changes a file sees from its `__all__` which of its names others use."""
    lists = {source.module_of(path): source.listed_names(path) for path in source.files()}
    unlisted = [
        f"{source.name_of(path)}:{line} imports {name}"
        for path in source.files()
        for line, name in source.imports(path)
        if name not in lists and (listed := lists.get(name.rpartition(".")[0])) is not None
        if name.rpartition(".")[2] not in listed
    ]
    assert not unlisted


@pytest.mark.parametrize("module", ["trainlab", *(f"trainlab.{folder}" for folder in FOLDERS)])
def test_docstrings_have_their_sections(module: str) -> None:
    """Every public function and method tells its arguments, its answer and the errors that it raises itself."""
    things = {name: getattr(importlib.import_module(module), name) for name in importlib.import_module(module).__all__}
    gaps = [
        f"{where} lacks {', '.join(sorted(missing))}"
        for name, thing in things.items()
        for where, function in documented(thing, name)
        if (missing := missing_sections(function, _doc(thing, function)))
    ]
    assert not gaps


@pytest.mark.parametrize("name", CLASSES)
def test_properties_are_explained(name: str) -> None:
    """Whatever can be read from a public class is explained by `help`."""
    properties = inspect.getmembers_static(getattr(trainlab, name), lambda value: isinstance(value, property))
    assert not [attribute for attribute, value in properties if not attribute.startswith("_") and not value.__doc__]


@pytest.mark.parametrize("name", CLASSES)
def test_classes_tell_the_arguments_they_are_made_with(name: str) -> None:
    """`help` of a class that takes arguments lists them."""
    thing = getattr(trainlab, name)
    if issubclass(thing, (enum.Enum, BaseException)) or not inspect.signature(thing).parameters:
        return
    assert re.search(r"^(Args|Attributes):\n", inspect.getdoc(thing) or "", re.MULTILINE)


def _stub() -> dict[str, str]:
    """The names that the stub exports, each with the module that it is imported from."""
    tree = ast.parse((source.PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname: node.module or "" for node in imports for alias in node.names if alias.asname == alias.name}


def _is_ours(function: FunctionType) -> bool:
    """Was it written here, rather than inherited from a library or made by a decorator?"""
    return function.__module__.startswith("trainlab.") and "<" not in function.__code__.co_filename


def _doc(owner: object, function: FunctionType) -> str:
    """A function's docstring; a method that overrides one of its base classes may leave it to that one."""
    if inspect.isclass(owner):
        return inspect.getdoc(getattr(owner, function.__name__, function)) or ""
    return inspect.getdoc(function) or ""


def _raises(function: FunctionType) -> bool:
    """Does its own body raise an error that is made there (hooks left for the user to write aside)?"""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return any(getattr(call.func, "id", "") != "NotImplementedError" for call in raised)
