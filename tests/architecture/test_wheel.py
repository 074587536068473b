"""What somebody gets who installs trainlab."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.architecture import source

BUILD = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of this checkout, built by the backend that pyproject.toml names."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source.ROOT, check=True, capture_output=True)
    (path,) = folder.glob("trainlab-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_is_typed(wheel: zipfile.ZipFile) -> None:
    """Type checkers see trainlab's types in an installed package, those of the lazy names too."""
    assert {"trainlab/py.typed", "trainlab/__init__.pyi"} <= set(wheel.namelist())


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """All of the package is installed, and no tests, examples or docs with it."""
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in files if name.endswith(".py")} == {source.name_of(path) for path in source.files()}
    assert {Path(name).parts[0] for name in files} == {"trainlab"}


def test_the_wheel_carries_its_version_and_licence(wheel: zipfile.ZipFile) -> None:
    """The installed version is the one that the code tells, and the licence text comes along."""
    import trainlab

    folder = f"trainlab-{trainlab.__version__}.dist-info"
    assert wheel.read(f"{folder}/licenses/LICENSE") == (source.ROOT / "LICENSE").read_bytes()
    assert f"\nVersion: {trainlab.__version__}\n" in wheel.read(f"{folder}/METADATA").decode()
