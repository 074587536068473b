"""The Python code of README.md and the documentation runs as it stands, from the top of each document to its end."""

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

import trainlab

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_code_of_a_document_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who copies the code blocks of a document one after the other gets what the document says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()]).parse(path)
    for example in document.examples():
        example.evaluate()


def test_every_public_name_is_in_the_reference() -> None:
    """Whoever looks up a name of `trainlab` finds it in the reference's first table."""
    table = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("What follows")[0]
    assert sorted(re.findall(r"^\| .*?`(\w+)", table, re.MULTILINE)) == sorted(trainlab.__all__)


def test_every_part_is_in_the_reference() -> None:
    """The reference tells of each part of trainlab, whatever is added later."""
    parts = {path.parent.name for path in (ROOT / "trainlab").glob("*/__init__.py")} - {"cli", "compat"}
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert {*parts, "errors"} == set(re.findall(r"automodule:: trainlab\.(\w+)$", reference, re.MULTILINE))


def test_every_page_is_in_the_table_of_contents() -> None:
    """No page is there that a reader cannot find."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages == set(re.findall(r"^(\w+)$", index, re.MULTILINE))
