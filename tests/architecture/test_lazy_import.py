"""`import trainlab` costs nothing, and each name brings only what it needs: looked at in processes of their own."""

import subprocess
import sys

import pytest

HEAVY = {"fsspec", "numpy", "optuna", "pydantic", "pydantic_settings", "rich", "safetensors", "tensorboard", "torch"}


def loaded_by(code: str) -> set[str]:
    """The top-level packages and trainlab's own modules that a fresh process has loaded after `code` and not before."""
    program = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    modules = done.stdout.split()
    return {name if name.split(".")[0] == "trainlab" else name.split(".")[0] for name in modules}


def test_the_package_alone_loads_nothing() -> None:
    """`import trainlab` loads one file and no package, not even torch."""
    assert loaded_by("import trainlab") == {"trainlab"}


def test_looking_around_loads_nothing() -> None:
    """Completion in a shell (`dir`) and the version are free as well."""
    assert loaded_by("import trainlab; dir(trainlab); trainlab.__version__") == {"trainlab"}


def test_units_load_no_torch() -> None:
    """A period can be written down without torch."""
    loaded = loaded_by("import trainlab; trainlab.Batch, trainlab.Epoch, trainlab.TrainlabError")
    assert "trainlab.schedule" in loaded
    assert not loaded & HEAVY


def test_an_experiment_can_be_written_down_without_torch() -> None:
    """A script that imports what experiments are made of tells its options without waiting for torch."""
    loaded = loaded_by("from trainlab import context, experiment, group, output_dir, parameter, params, search, Search")
    assert {"trainlab.experiments", "trainlab.containers"} <= loaded
    assert not loaded & {"numpy", "optuna", "rich", "tensorboard", "torch"}


def test_the_trainer_brings_torch_and_no_recording() -> None:
    """The first touch of `Trainer` brings torch and what the loop needs; bars, boards and searches wait for use."""
    loaded = loaded_by("import trainlab; trainlab.Trainer")
    assert {"torch", "trainlab.training"} <= loaded
    assert not loaded & {"optuna", "pydantic_settings", "rich", "tensorboard"}
    assert not {name for name in loaded if name.startswith("trainlab.compat")}


@pytest.mark.parametrize("name", ["Batchh", "_HOME", "compat_mode"])
def test_a_name_that_is_not_there_is_an_attribute_error(name: str) -> None:
    """A misspelt name fails like any other module's, so `hasattr` and `getattr` with a default work."""
    import trainlab

    with pytest.raises(AttributeError, match=f"module 'trainlab' has no attribute '{name}'"):
        getattr(trainlab, name)


def test_a_name_is_looked_up_once() -> None:
    """After its first touch a name is the package's own attribute, so that later ones cost nothing."""
    import trainlab

    batch = trainlab.Batch
    assert vars(trainlab)["Batch"] is batch


def test_a_star_import_gives_every_public_name() -> None:
    """`from trainlab import *` in a notebook works, lazy or not."""
    program = "from trainlab import *\nimport trainlab\nassert set(trainlab.__all__) <= set(globals())"
    subprocess.run([sys.executable, "-c", program], check=True)
