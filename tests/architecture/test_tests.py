"""What holds for the tests themselves."""

import ast
from pathlib import Path

import pytest

from tests.architecture import source

TESTS = sorted((source.ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=source.name_of)
def test_every_test_makes_its_claim(path: Path) -> None:
    """Whoever reads a failure reads one sentence that tells what a user can no longer rely on."""
    functions = [node for node in ast.walk(source.tree(path)) if isinstance(node, ast.FunctionDef)]
    tests = [node for node in functions if node.name.startswith("test_")]
    assert not [node.name for node in tests if not (ast.get_docstring(node) or "").rstrip().endswith(".")]


@pytest.mark.parametrize("path", TESTS, ids=source.name_of)
def test_nothing_is_mocked_and_nothing_waits_by_sleeping(path: Path) -> None:
    """The tests use real parts, and wait for what they wait for."""
    named = {name for node in ast.walk(source.tree(path)) for name in _imported(node)}
    assert not named & {"mock", "unittest", "pytest_mock"}
    calls = [node.func for node in ast.walk(source.tree(path)) if isinstance(node, ast.Call)]
    assert not [f"line {call.lineno}" for call in calls if ast.unparse(call) in {"time.sleep", "sleep"}]


def _imported(node: ast.AST) -> set[str]:
    """The first and last parts of the names that an import statement brings."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0], *(alias.name for alias in node.names)}
    return set()
