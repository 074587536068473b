"""Helper processes of a run, and experiments that run in a process of their own."""

import json
import signal
from pathlib import Path

import pytest

import trainlab
from tests.experiments.programs import program, record_of, run_of
from trainlab.errors import InvalidTypeError, LaunchError

HEAD = """
import json, os, signal, sys, time
from pathlib import Path
import trainlab
from trainlab.errors import TrainlabError
from trainlab.experiments.children import local_rank

def tell(name, value):
    part = Path(f".{name}.part")
    part.write_text(json.dumps(value))
    part.replace(name)

def who(params):
    return {"rate": params["rate"], "dir": str(trainlab.output_dir), "seeds": [trainlab.new_seed() for _ in range(3)],
            "rank": local_rank(), "name": params.get("name"), "helper": trainlab.is_subprocess(), "pid": os.getpid(),
            "seed": trainlab.params["random_seed"]}
"""
TAIL = """
if __name__ == "__main__":
    train.cli()
"""
HELPERS = f"""{HEAD}
import logging

@trainlab.parameter("name", type=lambda text: f"{{text}}!", default="x!")
@trainlab.parameter("rate", type=float, default=0.5)
@trainlab.experiment
def train(params):
    if trainlab.is_subprocess():
        print("a helper speaks")
        logging.getLogger("trainlab.mine").info("a helper logs")
        return who(params)
    helpers = [trainlab.launch_subprocess(), trainlab.launch_subprocess(rate="0.25")]
    assert [helper.local_rank for helper in helpers] == [1, 2]
    tell("told", [who(params), *[helper.result() for helper in helpers]])
{TAIL}"""


@pytest.fixture(scope="module")
def helped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """Where a run with two helpers was, what it said, and its process."""
    folder = tmp_path_factory.mktemp("helped")
    with program(folder, HELPERS, "--rate", "0.75", "--name", "hey") as started:
        assert started.wait() == 0, started.said()
        return folder, started.said(), started.pid


def test_a_helper_is_of_the_same_run(helped: tuple[Path, str, int]) -> None:
    """A helper has the run's folder, seed, parameters (but for what was overridden) and a log of its own."""
    place, said, _ = helped
    run, first, second = json.loads((place / "told").read_text())
    folder = run_of(place)
    assert [told["dir"] for told in (run, first, second)] == [str(folder)] * 3
    assert run["seeds"] == first["seeds"] == second["seeds"]
    assert run["seed"] == first["seed"] == second["seed"]
    assert [told["rate"] for told in (run, first, second)] == [0.75, 0.75, 0.25]
    assert [(told["rank"], told["helper"]) for told in (run, first, second)] == [(0, False), (1, True), (2, True)]
    assert [told["name"] for told in (run, first, second)] == ["hey!"] * 3
    assert len({told["pid"] for told in (run, first, second)}) == 3
    log = (folder / "log.rank-1.txt").read_text()
    assert "a helper speaks" in log
    assert "a helper logs" in log
    assert (folder / "log.rank-2.txt").exists()
    assert said.count("a helper speaks") == 2


def test_a_helper_leaves_the_record_to_its_run(helped: tuple[Path, str, int]) -> None:
    """run.json and params.yaml are the run's own: no helper adds a start, or changes a parameter."""
    place, _, pid = helped
    record = record_of(place)
    assert [(start["pid"], start["status"]) for start in record["starts"]] == [(pid, "finished")]
    assert record["params"]["rate"] == 0.75
    assert "rate: 0.75" in (run_of(place) / "params.yaml").read_text()


FAILS = f"""{HEAD}
@trainlab.parameter("rate", type=float, default=0.5)
@trainlab.experiment
def train(params):
    if trainlab.is_subprocess():
        if params["rate"] == 3:
            sys.exit(3)
        raise ValueError(f"no rate {{params['rate']}}")
    awaited, exits, forgotten = (trainlab.launch_subprocess(rate=rate) for rate in (1, 3, 2))
    told = []
    for helper in (awaited, exits):
        try:
            helper.result()
        except trainlab.launch.RankFailedError as error:
            told.append([str(error), error.exitcode, error.traceback, helper.exitcode, helper.error])
    while forgotten.is_alive():
        time.sleep(0.01)
    tell("told", told)
{TAIL}"""


def test_the_error_of_a_helper_is_seen(tmp_path: Path) -> None:
    """A helper's error reaches who asks for its result, with traceback and exit status; else the run's log has it."""
    with program(tmp_path, FAILS) as started:
        assert started.wait() == 0, started.said()
        failed, exited = json.loads(started.wait_for("told"))
    message, status, traceback, exitcode, error = failed
    assert message.startswith("The process of helper 1 of train")
    assert message.endswith("ValueError: no rate 1.0")
    assert status == exitcode == 1
    assert "in train" in traceback
    assert traceback == error
    assert exited[1] == exited[3] == 3
    log = (run_of(tmp_path) / "log.txt").read_text()
    assert "helper 3 of train ended with status 1, and nobody waited for it" in log
    assert "ValueError: no rate 2.0" in log
    assert "no rate 1.0" not in log
    assert "no rate 1.0" in (run_of(tmp_path) / "log.rank-1.txt").read_text()


REFUSED = f"""{HEAD}
def refused(**overrides):
    try:
        trainlab.launch_subprocess(**overrides)
    except TrainlabError as error:
        return str(error)

@trainlab.parameter("rate", type=float, default=0.5, allowed_values=[0.5, 1.0])
@trainlab.experiment
def train(params):
    if trainlab.is_subprocess():
        return refused()
    tell("told", [refused(rte=1), refused(rate=7), refused(random_seed=1), refused(output_dir="x"),
                  trainlab.launch_subprocess().result()])

if __name__ == "__main__":
    tell("outside", refused())
    train.cli()
"""


def test_what_cannot_be_launched_is_refused(tmp_path: Path) -> None:
    """Overrides that are unknown or wrong, another seed, a helper's helper and one of no run are errors that say so."""
    with program(tmp_path, REFUSED) as started:
        assert started.wait() == 0, started.said()
        unknown, wrong, seed, folder, inside = json.loads(started.wait_for("told"))
        outside = json.loads(started.wait_for("outside"))
    assert "rte" in unknown
    assert "rate" in unknown
    assert "7" in wrong
    assert "Received: ['random_seed']" in seed
    assert "trainlab.run_experiment()" in folder
    assert "trainlab.is_subprocess()" in inside
    assert "trainlab.run_experiment()" in outside


STAYS = f"""{HEAD}
@trainlab.experiment
def train(params):
    if trainlab.is_subprocess():
        number = local_rank()
        if number == 2:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            tell(f"helper-{{number}}", os.getpid())
            while True:
                time.sleep(0.01)
        finally:
            tell(f"ended-{{number}}", True)
    trainlab.launch_subprocess()
    if "stubborn" in os.environ:
        trainlab.experiments.children._GRACE = 5.0
        trainlab.launch_subprocess()
        while not Path("helper-2").exists():
            time.sleep(0.01)
    while not Path("helper-1").exists():
        time.sleep(0.01)
    if "waits" in os.environ:
        signal.pause()
{TAIL}"""


def test_a_helper_ends_with_its_run(tmp_path: Path) -> None:
    """When the main function returns, helpers that still run are ended, in good order, and are no failure."""
    with program(tmp_path, STAYS) as started:
        assert started.wait() == 0, started.said()
        assert not started.left()
    assert (tmp_path / "ended-1").exists()
    assert record_of(tmp_path)["status"] == "finished"
    assert "ERROR" not in (run_of(tmp_path) / "log.txt").read_text()


@pytest.mark.slow
def test_a_helper_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """A helper that ignores the request to end holds its run up for a short time, and no longer."""
    with program(tmp_path, STAYS, stubborn="1") as started:
        assert started.wait() == 0, started.said()
        assert not started.left()
    assert (tmp_path / "ended-1").exists()
    assert not (tmp_path / "ended-2").exists()


def test_a_helper_dies_with_a_killed_run(tmp_path: Path) -> None:
    """After kill -9 of the run's process, no helper is left."""
    with program(tmp_path, STAYS, waits="1") as started:
        helper = int(started.wait_for("helper-1"))
        assert helper in {process.pid for process in started.living()}
        started.send(signal.SIGKILL)
        assert not started.left()


INNER = f"""{HEAD}
@trainlab.parameter("depth", type=int, default=1)
@trainlab.experiment
def inner(params):
    if params["depth"] < 0:
        raise ValueError("too deep")
    return str(trainlab.output_dir), os.getpid(), trainlab.is_subprocess()

@trainlab.experiment
def train(params):
    told = [str(trainlab.output_dir), os.getpid(), *trainlab.run_experiment(inner, {{"depth": 2}})]
    handle = inner.run_in_new_process({{"depth": 3}})
    handle.join()
    told.append(handle.exitcode)
    try:
        trainlab.run_experiment(inner, {{"depth": -1}})
    except trainlab.launch.RankFailedError as error:
        told += [str(error), error.traceback]
    try:
        trainlab.run_experiment(inner, {{"dept": 1}})
    except TrainlabError as error:
        told.append(str(error))
    tell("told", told)

if __name__ == "__main__":
    tell("outside", trainlab.run_experiment(inner))
    train.cli()
"""


def test_an_experiment_runs_within_another_in_a_process_of_its_own(tmp_path: Path) -> None:
    """run_experiment gives what the experiment returned, from another process and folder; its error comes back."""
    with program(tmp_path, INNER) as started:
        assert started.wait() == 0, started.said()
        outer, own, folder, other, helper, status, message, traceback, unknown = json.loads(started.wait_for("told"))
        outside = json.loads(started.wait_for("outside"))
    assert own == started.pid
    assert other != own
    assert outside[1] not in (own, other)
    assert not helper
    assert Path(outer).parent == tmp_path / "runs" / "train"
    assert Path(folder).parent == Path(outside[0]).parent == tmp_path / "runs" / "inner"
    assert status == 0
    assert "ValueError: too deep" in message
    assert "in inner" in traceback
    assert "dept" in unknown
    statuses = [json.loads((path / "run.json").read_text())["status"] for path in (tmp_path / "runs/inner").iterdir()]
    assert sorted(statuses) == ["failed", "finished", "finished", "finished"]


MODEL = f"""{HEAD}
from pydantic import BaseModel

class Optimizer(BaseModel):
    lr: float = 0.1

class Config(BaseModel):
    optimizer: Optimizer = Optimizer()
    path: Path = Path("data")

@trainlab.experiment
def train(config: Config):
    if trainlab.is_subprocess():
        return [config.optimizer.lr, config.path.name, type(config.optimizer).__name__]
    helper = trainlab.launch_subprocess(path="other")
    tell("told", helper.result())
{TAIL}"""


def test_a_helper_gets_the_model_of_its_run(tmp_path: Path) -> None:
    """Where the main function takes a pydantic model, a helper's is that of the run with the overridden field."""
    with program(tmp_path, MODEL, "--optimizer.lr", "0.01") as started:
        assert started.wait() == 0, started.said()
        assert json.loads(started.wait_for("told")) == [0.01, "other", "Optimizer"]


NESTED = f"""{HEAD}
from typing import Annotated
from pydantic import AfterValidator, BaseModel

class Optimizer(BaseModel):
    lr: float = 0.1
    momentum: Annotated[float, AfterValidator(lambda value: value / 100)] = 0.5

class Config(BaseModel):
    optimizer: Optimizer = Optimizer()
    top: int | None = 5

def told(config):
    return [config.optimizer.lr, config.optimizer.momentum, config.top, trainlab.params["optimizer"].lr]

@trainlab.experiment
def train(config: Config):
    if trainlab.is_subprocess():
        return told(config)
    overrides = [{{"optimizer.lr": 3}}, {{"optimizer": {{"lr": 4}}}}, {{"top": 6}}]
    helpers = [trainlab.launch_subprocess(**one) for one in overrides]
    tell("told", [helper.result() for helper in helpers])
{TAIL}"""


def test_a_helper_has_the_other_values_of_its_run(tmp_path: Path) -> None:
    """What is overridden, with a nested dict or a dotted name, is all that differs; None stays None."""
    with program(tmp_path, NESTED, "--optimizer.momentum", "80", "--top", "none") as started:
        assert started.wait() == 0, started.said()
        assert json.loads(started.wait_for("told")) == [
            [3.0, 0.8, None, 3.0],
            [4.0, 0.8, None, 4.0],
            [0.1, 0.8, 6, 0.1],
        ]


@pytest.mark.slow
def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    """A script that runs its experiment whenever it is imported starts no endless chain of helpers, but is told why."""
    with program(tmp_path, HELPERS.replace('if __name__ == "__main__":\n    train', "train")) as started:
        assert started.wait() == 1
        assert '`if __name__ == "__main__":`' in started.said()
        assert not started.left()


NOTEBOOK = f"""
exec(compile({HELPERS!r}.replace("train.cli()", "train.run()"), "<cell>", "exec"))
"""


@pytest.mark.slow
def test_a_helper_of_a_notebook_is_sent_whole(tmp_path: Path) -> None:
    """An experiment that exists nowhere but in this process, as in a notebook, has helpers all the same."""
    prompt = "import sys\ndel sys.modules['__main__'].__file__\n"
    with program(tmp_path, prompt + NOTEBOOK) as started:
        assert started.wait() == 0, started.said()
        assert [told["rank"] for told in json.loads(started.wait_for("told"))] == [0, 1, 2]


LEAKS = f"""{HEAD}
import logging

@trainlab.parameter("access_token", default="")
@trainlab.experiment
def train(params):
    if not trainlab.is_subprocess():
        trainlab.launch_subprocess().join()
        return
    logging.getLogger("mine").warning("it is %s", params["access_token"])
    raise ValueError("bad " + params["access_token"])
{TAIL}"""


def test_a_helpers_log_has_no_secrets(tmp_path: Path) -> None:
    """What a helper logs, its error too, is in its log, and the run's secrets are in no log of trainlab's."""
    with program(tmp_path, LEAKS, "--access-token", "sesame-4711") as started:
        started.wait()
    logged = [line for line in (run_of(tmp_path) / "log.rank-1.txt").read_text().splitlines() if " mine: " in line]
    assert logged and logged[0].endswith("it is ***")
    failed = (run_of(tmp_path) / "log.rank-1.txt").read_text().partition("This helper process failed")[2]
    assert "ValueError: bad ***" in failed.partition("Traceback")[2]
    assert "sesame-4711" not in (run_of(tmp_path) / "log.txt").read_text()


def test_only_experiments_that_others_find_run_in_other_processes() -> None:
    """A name, a plain function, and an experiment defined inside of a function are refused with what to do."""

    @trainlab.experiment
    def local(params: dict[str, object]) -> None:
        """Cannot be found."""

    for wrong in ("local", print):
        with pytest.raises(InvalidTypeError, match=r"runs an experiment\. Received: .*@trainlab\.experiment"):
            trainlab.run_experiment(wrong)  # type: ignore[arg-type]
    with pytest.raises(
        LaunchError, match=r"experiment of local cannot be sent.*<locals>\.local\. Define it at the top"
    ):
        trainlab.run_experiment(local)
