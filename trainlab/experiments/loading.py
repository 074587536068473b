"""Find an experiment by the file or the module that defines it."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from trainlab.errors import InvalidValueError, did_you_mean
from trainlab.experiments.definition import Experiment
from trainlab.experiments.groups import ExperimentGroup

__all__ = ["experiments_of", "load", "load_experiment", "load_module", "pick", "split_place"]


def load_experiment(place: str) -> Experiment:
    """Load the file or the module that defines an experiment; what stands under its ``__main__`` does not run.

    Args:
        place: "train.py" with one experiment, "train.py:name", "train.py:group/name" or "package.module:name".

    Returns:
        The experiment.

    Raises:
        InvalidValueError: there is no such file, module or experiment, or several and none is named.
    """
    return pick(*load(place), place)


def load(place: str) -> tuple[dict[str, Experiment], str]:
    """Load a file or a module.

    Args:
        place: as for ``load_experiment``.

    Returns:
        Its experiments by their path, and the name that the place asks for, "" for none.

    Raises:
        InvalidValueError: there is no such file or module.
    """
    where, name = split_place(place)
    return experiments_of(load_module(where)), name


def pick(found: Mapping[str, Experiment], name: str, place: str) -> Experiment:
    """The experiment that a place asks for.

    Args:
        found: those of its module by their path.
        name: the path that is asked for, "" for the only one.
        place: for the error.

    Returns:
        The experiment.

    Raises:
        InvalidValueError: there is none, or several and none is named.
    """
    where, _ = split_place(place)
    if not name and len(found) == 1:
        return next(iter(found.values()))
    if name in found:
        return found[name]
    if not found:
        raise InvalidValueError(f"{where} defines no experiment. Received: {place!r}.")
    problem = f"{where} defines no experiment {name!r}.{did_you_mean(name, found)}" if name else "Which experiment?"
    raise InvalidValueError(
        f"{problem} Name one of {', '.join(found)}, as in {where}:{next(iter(found))}. Received: {place!r}."
    )


def split_place(place: str) -> tuple[str, str]:
    """The file or module, and the experiment's name in it.

    Args:
        place: "train.py:name".

    Returns:
        Both; "" for no name.
    """
    where, separator, name = place.rpartition(":")
    # A colon may stand in a path: C:\\train.py
    if not separator or "\\" in name or name.endswith(".py"):
        return place, ""
    return where, name


def load_module(where: str) -> ModuleType:
    """Load a file as a module under its stem, with its folder in front of ``sys.path``; or import a module.

    Args:
        where: "train.py" or "package.module".

    Returns:
        The module.

    Raises:
        InvalidValueError: there is none.
    """
    path = Path(where)
    if path.suffix == ".py" or path.is_file():
        return _of_file(path)
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if not _is_module(where):
        raise InvalidValueError(f"There is no file and no module {where!r}. Name one, as in train.py:name.")
    return importlib.import_module(where)


def _is_module(name: str) -> bool:
    if not name or name.startswith("."):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        # A package around it may lack a module itself, which is an error of its own.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return False
        raise


def _of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidValueError(f"There is no file {path}. Received: {str(path)!r}.")
    path = path.resolve()
    if _is_ours(sys.modules["__main__"]):
        return _as_program(path)
    if not path.stem.isidentifier():
        raise InvalidValueError(f"The file of an experiment has a Python name, such as train.py. Received: {path}.")
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        if Path(getattr(loaded, "__file__", None) or "").resolve() == path:
            return loaded
        raise InvalidValueError(
            f"{path} would be the module {path.stem!r}, which is another one already. Rename the file. Received: "
            f"{getattr(loaded, '__file__', loaded)!r}."
        )
    if str(path.parent) in sys.path:
        sys.path.remove(str(path.parent))
    sys.path.insert(0, str(path.parent))
    importlib.invalidate_caches()
    return importlib.import_module(path.stem)


def _is_ours(program: Any) -> bool:
    """Tell whether this process's program is trainlab's command line, or a job's, and not one of the user's."""
    spec = getattr(program, "__spec__", None)
    if spec is not None:
        return spec.name.partition(".")[0] in ("trainlab", "submitit")
    return Path(getattr(program, "__file__", None) or "").stem == "trainlab"


def _as_program(path: Path) -> ModuleType:
    """Load a file in place of this process's program, as the processes do that ``multiprocessing`` starts.

    So its classes have the names in a checkpoint that they have where the file is run itself.
    """
    program = ModuleType("__mp_main__")
    program.__file__ = str(path)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = program
    sys.path.insert(0, str(path.parent))
    exec(compile(path.read_bytes(), str(path), "exec"), program.__dict__)
    return program


def experiments_of(module: ModuleType) -> dict[str, Experiment]:
    """The experiments of a module, by their path: "train", "group/train".

    Args:
        module: the module.

    Returns:
        Those that it defines; if there are none, those that it imports.
    """
    found: dict[str, Experiment] = {}
    for value in vars(module).values():
        found.update(_inside(value))
    own = {path: made for path, made in found.items() if made.__module__ == module.__name__}
    return own or found


def _inside(value: Any) -> dict[str, Experiment]:
    if isinstance(value, Experiment):
        return {value.path: value}
    if not isinstance(value, ExperimentGroup):
        return {}
    return {path: made for child in value.children.values() for path, made in _inside(child).items()}
