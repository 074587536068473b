"""What lies inside of lists, dicts and models that are one parameter: secrets, masks, and keys that are no fields."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

import trainlab
from trainlab.errors import InvalidValueError
from trainlab.experiments import Experiment


class Server(BaseModel):
    """A server."""

    host: str = "h"
    login: SecretStr = SecretStr("")
    port: int = 1


class Account(BaseModel):
    """An account."""

    user: str = ""
    password: str = ""


class Config(BaseModel):
    """What a run connects to."""

    servers: list[Server] = []
    creds: dict[str, SecretStr] = {}
    dbs: list[Account] = []
    headers: dict[str, str] = {}
    one: Account | int = 0
    secrets_by: dict[str, dict[str, Any]] = Field({}, json_schema_extra={"envvar": "SECRETS_BY"})


@trainlab.experiment
def connect(config: Config) -> None:
    """Fail, and tell everything."""
    logins = [server.login.get_secret_value() for server in config.servers]
    creds = [value.get_secret_value() for value in config.creds.values()]
    raise ValueError(f"{logins} {creds} {config.dbs} {config.headers} {config.secrets_by}")


@trainlab.parameter("db", dict[str, Any])
@trainlab.experiment
def plain(params: dict[str, Any]) -> None:
    """Fail, and tell everything."""
    raise ValueError(f"{params}")


LINES = {
    "servers": (connect, "[{host: a, login: sekret01}]"),
    "creds": (connect, "{a: sekret01}"),
    "dbs": (connect, "[{user: joe, password: sekret01}]"),
    "headers": (connect, "Authorization=sekret01"),
    "secrets-by": (connect, "{a: {api_key: [x, sekret01]}}"),
    "db": (plain, "{password: sekret01, user: joe}"),
}


@pytest.mark.parametrize("option", LINES)
def test_a_nested_secret_reaches_no_file(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret in a list or a dict is in no file of a run: neither its command line, nor its error, nor its log."""
    experiment, text = LINES[option]
    argv = ["--output-dir", str(tmp_path), f"--{option}", text]
    monkeypatch.setattr(sys, "argv", ["program.py", *argv])
    with pytest.raises(ValueError, match="sekret01"):
        experiment.cli(argv, exit_on_error=False)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"run.json", "log.txt", "params.yaml"} <= {file.name for file in files}
    assert [file.name for file in files if "sekret01" in file.read_text(errors="replace")] == []


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("servers", "[{login: sekret01, port: x}]"),
        ("creds", "{a: sekret01, b: [1]}"),
        ("dbs", "[{password: sekret01, user: [1]}]"),
        ("dbs", "[{password: sekret01, user: joe"),
        ("headers", "{api_key: sekret01, b: [1]}"),
    ],
)
def test_a_wrong_value_shows_no_nested_secret(option: str, text: str) -> None:
    """The error about a value that cannot be used shows neither a secret inside of it nor the beginning of one."""
    with pytest.raises(InvalidValueError) as caught:
        connect.read(argv=[f"--{option}", text], environ={})
    assert "sekr" not in str(caught.value)


def test_a_secret_is_masked_before_a_value_is_cut() -> None:
    """The error about a long value does not end with the first letters of a secret."""
    with pytest.raises(InvalidValueError) as caught:
        connect.read({"servers": [{"host": "h" * 172, "login": "sekret01", "port": "x"}]}, environ={})
    assert "servers[0].port must be" in str(caught.value)
    assert "sek" not in str(caught.value)


def _with_file(experiment: Experiment, content: Any, folder: Path, *argv: str) -> Any:
    file = folder / "params.json"
    file.write_text(json.dumps(content))
    return experiment.read(argv=["--params-file", str(file), *argv], environ={})


@pytest.mark.parametrize(
    ("content", "place", "instead"),
    [
        ({"servers": [{"login": "***"}]}, "servers[0].login", ("--servers", "[]")),
        ({"headers": {"a": "b", "api_key": "***"}}, "headers.api_key", ("--headers", "a=b")),
    ],
)
def test_a_masked_nested_secret_is_no_value(content: Any, place: str, instead: Any, tmp_path: Path) -> None:
    """A file with *** inside of a value is refused, with its place and option, unless the whole value is given anew."""
    with pytest.raises(InvalidValueError) as caught:
        _with_file(connect, content, tmp_path)
    assert str(caught.value).startswith(f"{place} is a secret that was not recorded (it is '***' in the params file ")
    assert f"give {instead[0]} as a whole." in str(caught.value)
    assert _with_file(connect, content, tmp_path, *instead).model is not None


class Stage(BaseModel):
    """A stage."""

    size: int = 1
    name_: str = Field("", alias="name")


class Open(BaseModel):
    """Says itself what becomes of other keys."""

    model_config = ConfigDict(extra="ignore")


class Older(BaseModel):
    """Takes an older name, too."""

    size: int = 1

    @model_validator(mode="before")
    @classmethod
    def renamed(cls, data: Any) -> Any:
        """Take it."""
        return {"size": data.get("sise", 1), **data} if isinstance(data, dict) else data


class Net(BaseModel):
    """Stages in several places."""

    stages: list[Stage] = []
    u: Stage | int = 0
    by_name: dict[str, list[Stage]] = {}
    open: list[Open] = []
    older: list[Older] = []


@trainlab.experiment
def build(config: Net) -> None:
    """Build."""


@trainlab.parameter("stages", list[Stage])
@trainlab.experiment
def build_plain(params: dict[str, Any]) -> None:
    """Build."""


@pytest.mark.parametrize(
    ("experiment", "line", "told"),
    [
        (build, "--stages=[{size: 3, nme: x}]", "stages[0] has no 'nme'. Did you mean name? It can have: size, name."),
        (build, "--u={a: 5}", "u has no 'a'. It can have: size, name."),
        (build, "--by-name={a: [{size: 1}, {b: 1}]}", "by_name.a[1] has no 'b'."),
        (build_plain, "--stages=[{siez: 3}]", "stages[0] has no 'siez'. Did you mean size?"),
    ],
)
def test_a_key_that_is_no_field_is_an_error_wherever_it_stands(experiment: Experiment, line: str, told: str) -> None:
    """A misspelt key in a list, a dict or a union of models is told with its place, and is not dropped."""
    with pytest.raises(InvalidValueError) as caught:
        experiment.read(argv=[line], environ={})
    assert told in str(caught.value)


def test_models_that_take_other_keys_may_have_them() -> None:
    """Aliases, `extra="ignore"` and validators that look at keys first are no errors."""
    argv = ["--stages=[{size: 3, name: x}]", "--open=[{a: 1}]", "--older=[{sise: 4}]"]
    model: Any = build.read(argv=argv, environ={}).model
    assert (model.stages[0].name_, model.older[0].size) == ("x", 4)


@pytest.mark.parametrize("experiment", [build, build_plain])
def test_an_error_in_a_list_names_the_field(experiment: Experiment) -> None:
    """What is wrong inside of a list of models is told with the item and the field."""
    with pytest.raises(InvalidValueError, match=r"--stages: stages\[1\]\.size must be a whole number\."):
        experiment.read(argv=["--stages=[{size: 3}, {size: x}]"], environ={})


def test_a_seed_fits_into_64_bits() -> None:
    """A seed that no generator takes is refused at once."""
    assert build.read(argv=[f"--random-seed={2**63 - 1}"], environ={}).params["random_seed"] == 2**63 - 1
    with pytest.raises(InvalidValueError, match="--random-seed: must be below"):
        build.read(argv=[f"--random-seed={2**63}"], environ={})
