"""What can be checked here: `nox` runs the default sessions, `nox -s NAME` one, `nox -l` lists them all.

Arguments after `--` go to pytest: `nox -s tests -- -k resume`.
"""

import re
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
CONSTRAINTS = "constraints.txt"
EVERYTHING = ("-m", "slow or not slow")
# Extras for those who work on trainlab.
OURS = {"dev", "docs", "lint", "test"}


def install(session: nox.Session, *extras: str) -> None:
    """Installs this checkout, with `extras`, in the versions of constraints.txt."""
    session.install("-c", CONSTRAINTS, "-e", f".[{','.join(extras)}]")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, imports, docstrings and format."""
    session.install("-c", CONSTRAINTS, "ruff")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types of the whole package."""
    install(session, "lint")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, every warning an error; it lies in docs/_build afterwards."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, the slow ones too."""
    install(session, "test")
    session.run("pytest", *EVERYTHING, *session.posargs)


@nox.session
@nox.parametrize("torch", ["constraints", "lowest"])
def lowest(session: nox.Session, torch: str) -> None:
    """The tests on the lowest version of each dependency; "constraints" takes torch as constraints.txt has it."""
    pins = lowest_versions()
    if torch == "constraints":
        pins["torch"] = pinned("torch")
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    session.install("-c", str(constraints), "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Each example, as its test runs it."""
    install(session, "test")
    session.run("pytest", "tests/examples", *EVERYTHING, *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """The table of speeds, against a raw loop and whichever of its peers are installed beside it."""
    install(session, "test")
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


def lowest_versions() -> dict[str, str]:
    """The lower bound of each dependency that pyproject.toml names, those of the extras for users included.

    Returns:
        The version by the name of the package.
    """
    project = nox.project.load_toml(ROOT / "pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in extras if name not in OURS for line in extras[name])]
    bounds = (re.fullmatch(r"([\w-]+)>=([\w.]+)", line) for line in lines)
    return {bound[1]: bound[2] for bound in bounds if bound}


def pinned(name: str) -> str:
    """The version that constraints.txt gives a package.

    Returns:
        The version, such as "1.2.3".
    """
    pin = re.search(rf"^{re.escape(name)}==(\S+)$", (ROOT / CONSTRAINTS).read_text(), re.MULTILINE)
    if pin is None:
        raise KeyError(f"constraints.txt does not name {name}")
    return pin[1]
