"""The source files of trainlab, as the tests of the architecture read them."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "trainlab"


@cache
def files() -> tuple[Path, ...]:
    """Every Python file of the package.

    Returns:
        The paths, sorted.
    """
    return tuple(sorted(PACKAGE.rglob("*.py")))


@cache
def tree(path: Path) -> ast.Module:
    """A file's syntax tree.

    Returns:
        The module node.
    """
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    """A file's place for a message.

    Returns:
        The path below the repository's root.
    """
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """What a file is imported as.

    Returns:
        Its dotted name, such as "trainlab.data.loader".
    """
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def listed_names(path: Path) -> set[str] | None:
    """The names in a file's `__all__`.

    Returns:
        The names; None if it has none that can be read without running it.
    """
    for node in tree(path).body:
        is_list = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
        if (
            is_list
            and isinstance(node.value, ast.List)
            and all(isinstance(one, ast.Constant) for one in node.value.elts)
        ):
            return set(ast.literal_eval(node.value))
    return None


def folder_of(path: Path) -> str:
    """The part of the package that a file belongs to.

    Returns:
        The name of its folder, or of the file itself if it lies at the top: "data", "errors", "__init__".
    """
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> list[tuple[int, str]]:
    """Everything of trainlab that a file imports, wherever in the file it does so.

    Returns:
        Pairs of a line and the dotted name imported, such as (3, "trainlab.data.DataLoader").
    """
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{_origin(path, node)}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == "trainlab"]


def _origin(path: Path, node: ast.ImportFrom) -> str:
    """The absolute name of the module that a `from … import` names."""
    if node.level == 0:
        return node.module or ""
    package = path.relative_to(ROOT).parent.parts
    base = package[: len(package) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])
