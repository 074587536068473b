import re
from pathlib import Path

import pytest

from tests.cli.programs import trainlab
from trainlab.cli.launch import parse
from trainlab.launch.platform import Platform

SCRIPT = "import sys; print(__name__, sys.argv[1:]); sys.exit(7 if 'fail' in sys.argv else 0)"
# A value for each option, and options that it asks for.
GIVEN: dict[str, tuple[list[str], object]] = {
    "device": (["cpu"], "cpu"),
    "processes": (["4"], 4),
    "nodes": (["1:2", "--master-addr", "a"], "1:2"),
    "cpus_per_task": (["2"], 2),
    "ipc_groups": (["[[0,1],[2,3]]"], [[0, 1], [2, 3]]),
    "timeout": (["1.5"], 1.5),
    "max_restarts": (["0"], 0),
    "seed": (["7"], 7),
    "log_dir": (["logs"], Path("logs")),
    "grace": (["5"], 5.0),
    "node_rank": (["1", "--nodes", "2", "--master-addr", "a"], 1),
    "master_addr": (["host", "--nodes", "2"], "host"),
    "master_port": (["29501", "--nodes", "2", "--master-addr", "a"], 29501),
    "run_id": (["mine"], "mine"),
    "executor": (["local"], "local"),
    "name": (["digits"], "digits"),
    "folder": (["runs/a"], Path("runs/a")),
    "mem": (["16"], "16"),
    "time": (["1-12:00:00"], "1-12:00:00"),
    "gpus_per_node": (["8"], 8),
    "setup": (["module load a", "--setup", "module load b"], ["module load a", "module load b"]),
    "array_parallelism": (["2"], 2),
    "signal_lead": (["120"], 120),
    "max_requeues": (["3"], 3),
    "extra": (["mail-type=END", "--extra", "comment=a=b"], {"mail-type": "END", "comment": "a=b"}),
}
OF_SLURM = list(Platform.model_fields)[list(Platform.model_fields).index("executor") :]
SWITCHES = {"requeue", "wait"}


@pytest.mark.parametrize("name", [name for name in Platform.model_fields if name not in SWITCHES])
def test_every_option_of_the_platform_can_be_given(name: str) -> None:
    """Whatever Platform takes can be said on the command line, and arrives as what it is."""
    words, value = GIVEN.get(name, (["text"], "text"))
    device = ["--device", "slurm"] if name in OF_SLURM else []
    platform, target, argv = parse([*device, f"--{name.replace('_', '-')}", *words, "script.py"])
    found = getattr(platform, name)
    assert (list(found) if name == "setup" else found) == value
    assert (target, argv) == ({"script": "script.py"}, [])


def test_switches_take_no_value() -> None:
    """What follows a switch is the script."""
    platform, target, _ = parse(["--device", "slurm", "--wait", "--no-requeue", "script.py"])
    assert (platform.wait, platform.requeue, target) == (True, False, {"script": "script.py"})
    assert parse(["--device", "slurm", "--requeue", "script.py", "--wait"])[1:] == ({"script": "script.py"}, ["--wait"])


def test_nothing_given_is_the_platforms_own_choice() -> None:
    """A plain `trainlab launch script.py` is what `launch` does without options."""
    assert parse(["script.py"])[0] == Platform()


@pytest.mark.parametrize(
    ("words", "target", "argv"),
    [
        (["s.py", "--processes", "9"], {"script": "s.py"}, ["--processes", "9"]),
        (["s.py", "--", "-m", "a"], {"script": "s.py"}, ["--", "-m", "a"]),
        (["s.py", "--help"], {"script": "s.py"}, ["--help"]),
        (["s.py", "-m", "a"], {"script": "s.py"}, ["-m", "a"]),
        (["-m", "a.b", "--device", "cpu", "s.py"], {"module": "a.b"}, ["--device", "cpu", "s.py"]),
        (["-ma.b", "--"], {"module": "a.b"}, ["--"]),
        (["--processes=2", "--", "-odd.py", "--", "-h"], {"script": "-odd.py"}, ["--", "-h"]),
        (["--processes", "2", "s.py"], {"script": "s.py"}, []),
    ],
)
def test_everything_after_the_script_is_its_own(words: list[str], target: dict[str, str], argv: list[str]) -> None:
    """A script's options reach it untouched, also those that look like ours and two dashes alone."""
    assert parse(words)[1:] == (target, argv)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--procesess", "2", "s.py"], "unrecognized arguments: --procesess"),
        (["--process", "2", "s.py"], "unrecognized arguments: --process"),
        (["--processes", "two", "s.py"], "--processes: invalid int value: 'two'"),
        (["--device", "gpu", "s.py"], "invalid choice: 'gpu'"),
        (["--ipc-groups", "0,1", "s.py"], "not lists of ranks such as [[0,1],[2,3]]: '0,1'"),
        (["--device", "slurm", "--extra", "qos", "s.py"], "not KEY=VALUE: 'qos'"),
        (["--processes", "2"], "there is nothing to run"),
        (["-m"], "-m: expected one argument"),
        (["--processes"], "--processes: expected one argument"),
        (["--processes", "0", "s.py"], "processes should be greater than or equal to 1. Received: 0."),
        (["--partition", "a", "s.py"], "device='slurm'"),
    ],
)
def test_a_wrong_line_ends_with_status_2(words: list[str], said: str) -> None:
    """A mistake on the command line is told in words, without a traceback, and nothing is run."""
    done = trainlab("launch", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_explains_every_option() -> None:
    """`trainlab launch --help` says of each option what Platform's own documentation says."""
    text = " ".join(trainlab("launch", "--help").stdout.split())
    assert all(re.search(rf"--{name.replace('_', '-')}[ ,]", text) for name in Platform.model_fields)
    assert "--max-restarts N how often all ranks are started again after a rank or a node was lost. Default 3." in text
    assert all(f"--{name.replace('_', '-')} --" not in text for name in Platform.model_fields)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["script", "module"])
def test_a_script_runs_as_the_program(form: str, tmp_path: Path) -> None:
    """A script and a module run as with `python`: as `__main__`, with their arguments and their exit status."""
    (tmp_path / "program.py").write_text(SCRIPT)
    words = [str(tmp_path / "program.py")] if form == "script" else ["-m", "program"]
    before = f"cd {tmp_path}"
    done = trainlab("launch", "--device", "cpu", *words, "--seed", "3", before=before)
    assert (done.returncode, done.stdout) == (0, "__main__ ['--seed', '3']\n"), done.stderr
    assert trainlab("launch", "--device", "cpu", *words, "fail", before=before).returncode == 7
