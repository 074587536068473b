import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.ranks import run_ranks, start_ranks
from trainlab import distributed
from trainlab.data import to_device
from trainlab.distributed.cpus import Share, cpu_quota, threads_of_rank, usable_cpus
from trainlab.distributed.devices import best_device
from trainlab.errors import InvalidValueError

TWO = "MIG-11111111-aaaa,MIG-22222222-bbbb"
CONTROL_GROUP = Path("/sys/fs/cgroup/cpu")
HAS_CUDA, HAS_MPS = torch.cuda.is_available(), torch.backends.mps.is_available()


def share(cpus: set[int], quota: float | None = None, task: tuple[str, int] | None = None) -> Share:
    return Share(frozenset(cpus), quota, task, None)


@pytest.mark.parametrize(("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_is_cuda_then_mps_then_the_cpu(cuda: bool, mps: bool, best: str) -> None:
    """The fastest kind of device that a machine has is what is trained on."""
    assert best_device(has_cuda=cuda, has_mps=mps) == best


def test_auto_leaves_mps_to_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ranks on a Mac train on its CPUs, since they cannot share its GPU."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert best_device(has_cuda=False, has_mps=True) == "cpu"


def test_the_environment_chooses_where_the_program_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAINLAB_DEVICE decides for a program that names no device, and not for one that does."""
    monkeypatch.setenv("TRAINLAB_DEVICE", "cpu")
    assert distributed.choose_device() == torch.device("cpu")
    monkeypatch.setenv("TRAINLAB_DEVICE", "gpu")
    with pytest.raises(InvalidValueError, match="'gpu' from TRAINLAB_DEVICE is none that torch knows.*'auto', 'cpu'"):
        distributed.choose_device()
    assert distributed.choose_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(HAS_CUDA, reason="there is CUDA")
def test_a_device_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a GPU on a machine without one reads what it has, wherever the wish came from."""
    monkeypatch.setenv("TRAINLAB_DEVICE", "cuda")
    for ask in (distributed.choose_device, distributed.open_ranks):
        with pytest.raises(InvalidValueError, match="no cuda device. Received: 'cuda' from TRAINLAB_DEVICE.*'cpu'"):
            ask()


def test_instances_of_mig_are_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many ranks can be started as the variable lists instances of MIG, of which CUDA would count one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", TWO)
    assert distributed.visible_gpus() == TWO.split(",")
    distributed.check_gpus(2)
    with pytest.raises(
        InvalidValueError, match="Received: 3 ranks.*2 \\(MIG-11111111-aaaa, MIG-22222222-bbbb\\).*at most 2"
    ):
        distributed.check_gpus(3)


def test_hidden_gpus_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty CUDA_VISIBLE_DEVICES leaves no GPU for a rank, and the error shows the variable."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert distributed.visible_gpus() == []
    with pytest.raises(InvalidValueError, match="GPUs: none \\(CUDA_VISIBLE_DEVICES=''\\). Use device='cpu'"):
        distributed.check_gpus(1)


def test_each_rank_is_shown_its_own_instance_of_mig(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process can use one instance alone, so each gets another one before it starts CUDA."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", TWO)
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE", raising=False)
    shown = [distributed.gpu_environment(rank, 2) for rank in range(2)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in shown] == TWO.split(",")
    assert [one["NCCL_MULTI_RANK_GPU_ENABLE"] for one in shown] == ["1", "1"]
    assert distributed.gpu_environment(0, 1) == {}
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "0")
    assert distributed.gpu_environment(1, 2) == {"CUDA_VISIBLE_DEVICES": TWO.split(",")[1]}


@pytest.mark.parametrize("variable", ["0,1", None])
def test_whole_gpus_stay_visible_to_all_ranks(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is hidden from ranks on whole GPUs, whose memory they reach directly."""
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert distributed.gpu_environment(1, 2) == {}


def sees() -> str:
    distributed.choose_device("cpu")
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_a_rank_of_another_launcher_takes_its_own_instance_of_mig() -> None:
    """torchrun and srun show each rank all instances of the node, and each uses another one all the same."""
    assert run_ranks(sees, 2, env={"CUDA_VISIBLE_DEVICES": TWO}) == TWO.split(",")


CONTEXT_ON_FIRST = """
def first_is_taken():
    import ctypes
    driver = ctypes.CDLL("libcuda.so.1")
    flags, active = ctypes.c_uint(), ctypes.c_int()
    driver.cuInit(0)
    assert driver.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)) == 0
    return bool(active.value)
"""
LAUNCHER = """
from trainlab import distributed
distributed.choose_device("auto"), distributed.visible_gpus(), distributed.check_gpus(1), distributed.seed_all(7)
print("taken" if first_is_taken() else "free")
"""
SECOND_RANK = """
import torch
import trainlab
with trainlab.init(enable_tensorboard_logging=False, progress=False) as context:
    torch.distributed.all_reduce(torch.ones(1, device=context.device))
    print("rank", context.distributed.rank, "on", context.device, "taken" if first_is_taken() else "free")
"""


@pytest.mark.cuda
def test_asking_for_gpus_takes_none() -> None:
    """A launcher finds out how many GPUs there are and leaves their memory to the ranks."""
    done = subprocess.run(
        [sys.executable, "-c", CONTEXT_ON_FIRST + LAUNCHER], capture_output=True, text=True, check=False
    )
    assert done.stdout == "free\n", done.stderr


@pytest.mark.cuda
def test_a_rank_takes_nothing_of_the_first_gpu(tmp_path: Path) -> None:
    """Rank 1 has its GPU alone: no context of its own lies on the first one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with start_ranks(["-c", CONTEXT_ON_FIRST + SECOND_RANK], 2, env={"TRAINLAB_RUN_DIR": str(tmp_path)}) as ranks:
        assert ranks.wait() == [0, 0], ranks.outputs()
        assert "rank 1 on cuda:1 free" in ranks[1].output()


@pytest.mark.skipif(not HAS_MPS, reason="needs a GPU of Apple")
def test_float64_is_told_on_mps() -> None:
    """An array that MPS has no precision for is an error, and not left on the CPU with a warning."""
    import numpy as np

    with pytest.raises(TypeError, match="float64"):
        to_device(np.zeros(3), "mps")


# --- threads


@pytest.mark.parametrize(
    ("own", "others", "threads"),
    [
        (share({*range(16)}), [share({*range(16)})] * 3, 4),
        (share({*range(16)}), [share({*range(16)})] * 4, 3),
        (share({0, 1}), [share({0, 1})] * 7, 1),
        (share({0, 1, 2, 3}), [share({4, 5}), share({6, 7})], 4),
        (share({*range(8)}, quota=4.0), [share({*range(8)}, quota=4.0)], 2),
        (share({*range(8)}, quota=0.5), [], 1),
        (share({*range(8)}, task=("a", 4)), [share({*range(8)}, task=("b", 4))], 4),
        (share({*range(64)}, task=("a", 4)), [share({*range(64)}, task=("b", 4))], 4),
        (share({*range(8)}, task=("a", 8)), [share({*range(8)}, task=("a", 8))] * 3, 2),
        (share({0, 1}, task=("a", 4)), [], 2),
    ],
    ids=[
        "shared evenly",
        "rounded down",
        "one at least",
        "own CPUs are not shared",
        "within the container's limit",
        "a limit below one",
        "tasks of SLURM have what they were given",
        "also where SLURM binds nothing",
        "ranks in one task share what it was given",
        "no more than may be run on",
    ],
)
def test_ranks_share_the_cpus_that_they_really_share(own: Share, others: list[Share], threads: int) -> None:
    """As many threads run as there are CPUs, however they were handed out."""
    assert threads_of_rank(own, [own, *others]) == threads


UNSET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
ANEW = """
import json, os
os.environ.pop("OMP_NUM_THREADS"), os.environ.pop("MKL_NUM_THREADS", None)
from tests.launch.test_devices import opens
print(json.dumps(opens()))
"""


def opens(unset: tuple[str, ...] = UNSET, own: int | None = None) -> tuple[int, int, str]:
    """The threads of a rank before and after it was opened, and what was said."""
    for name in unset:
        os.environ.pop(name, None)
    if own is not None:
        torch.set_num_threads(own)
    before = torch.get_num_threads()
    said = io.StringIO()
    logger = logging.getLogger("trainlab.distributed")
    logger.addHandler(logging.StreamHandler(said))
    logger.setLevel(logging.INFO)
    try:
        with distributed.open_ranks(torch.device("cpu")):
            return before, torch.get_num_threads(), said.getvalue()
    except InvalidValueError as error:
        return before, 0, str(error)


def all_cpus() -> int:
    """What torch begins with; ranks that are forked for tests were given one thread."""
    return len(usable_cpus())


def test_ranks_of_a_node_share_its_cpus() -> None:
    """Two ranks run together no more threads than there are CPUs, and the chief says so once."""
    with start_ranks(["-c", ANEW], 2) as ranks:
        assert ranks.wait() == [0, 0], ranks.outputs()
        found = [json.loads(rank.output()) for rank in ranks]
    cpus = all_cpus()
    shared = max(1, int(min(cpus, cpu_quota() or cpus)) // 2)
    assert [after for _, after, _ in found] == [min(before, shared) for before, _, _ in found]
    if found[0][0] > shared:
        assert found[0][2] == f"{shared} thread{'s' * (shared != 1)} a rank: {cpus} CPUs, 2 ranks on this node.\n"
    assert found[1][2] == ""


def test_ranks_on_nodes_of_their_own_share_nothing() -> None:
    """A rank that has its node for itself uses it whole."""
    for before, after, said in run_ranks(opens, 2, UNSET, all_cpus(), nodes=2):
        assert (after, said) == (before, "") or cpu_quota() is not None


@pytest.mark.parametrize("name", UNSET)
def test_threads_that_the_environment_sets_stay(name: str) -> None:
    """Who sets OMP_NUM_THREADS or MKL_NUM_THREADS has what that says, whatever else is asked for."""
    others = tuple({*UNSET} - {name})
    found = run_ranks(opens, 2, others, all_cpus(), env={name: "5", "TRAINLAB_CPUS_PER_TASK": "3"})
    assert found == [(all_cpus(), all_cpus(), "")] * 2


def test_threads_that_the_program_sets_stay() -> None:
    """Who calls torch.set_num_threads before the ranks are opened has what was asked for."""
    own = 3 * (os.cpu_count() or 1) + 1
    assert run_ranks(opens, 2, UNSET, own) == [(own, own, "")] * 2


def test_threads_that_the_launcher_was_asked_for_are_set() -> None:
    """cpus_per_task is the number of a rank's threads, and nonsense in its place is an error on every rank."""
    asked = run_ranks(opens, 2, UNSET, all_cpus(), env={"TRAINLAB_CPUS_PER_TASK": "3"})
    assert [after for _, after, _ in asked] == [3, 3]
    wrong = run_ranks(opens, 2, UNSET, all_cpus(), env=lambda rank: {"TRAINLAB_CPUS_PER_TASK": "many" if rank else "1"})
    assert all("Received: 'many'. On rank 1." in text for _, _, text in wrong)


def test_a_containers_limit_is_found() -> None:
    """The quota of a control group counts for the processes in it, and in those that it holds."""
    outer = CONTROL_GROUP / f"trainlab-{os.getpid()}"
    inner = outer / "inner"
    join = f"open({str(inner / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))"
    ask = "from trainlab.distributed.cpus import cpu_quota; print(cpu_quota())"
    try:
        inner.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"needs root and control groups of version 1: {error}")
    try:
        if not (outer / "cpu.cfs_quota_us").exists():
            pytest.skip("this system limits no CPUs")
        (outer / "cpu.cfs_quota_us").write_text("150000")
        done = subprocess.run([sys.executable, "-c", f"{join}; {ask}"], capture_output=True, text=True, check=False)
        assert done.stdout == "1.5\n", done.stderr
    finally:
        inner.rmdir()
        outer.rmdir()
