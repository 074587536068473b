"""A real SLURM on this machine: munged, slurmctld and three slurmd (the virtual nodes n1, n2 and n3) on loopback.

Partition ``low`` (the default) is preempted by ``high``: its jobs are told by SIGTERM, or by what they asked for with
``--signal``, have 60 s, and are requeued. Those of ``short`` are requeued at once. Nobody else is on n3, which is
``apart``, where a job can wait for its time limit. A job that is requeued waits for
``cred_expire`` before it starts again, of which 5 s is SLURM's minimum. By hand: ``python -m tests.slurm.cluster``
starts one until Ctrl-C.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.distributed.ranks import free_port

CONFIGURATION = """\
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=5
SlurmctldPort={ports[0]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=8
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,requeue_delay=0
SlurmdParameters=config_overrides
JobRequeue=1
InactiveLimit=0
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=4 RealMemory=4000
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=short Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=apart Nodes=n3 MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

NODES = ("n1", "n2", "n3")
# Seconds until what is waited for is taken to be lost.
PATIENCE = 200.0

# What a job is in after it has ended; sbatch's jobs are remembered for MinJobAge.
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")


def missing() -> str | None:
    """Say why no SLURM can be started here; None if one can."""
    absent = [name for name in ("slurmctld", "slurmd", "munged", "sbatch", "setpriv") if shutil.which(name) is None]
    if absent:
        return f"a real SLURM needs {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "only root can start a real SLURM"


class Slurm:
    """A running SLURM, and what is asked of it.

    Attributes:
        folder: of its files, and of the jobs' output.
        env: the environment with which sbatch, srun, scontrol, scancel and squeue find it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        foreign = ("SLURM", "SBATCH", "SUBMITIT")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.env = {**kept, "SLURM_CONF": str(self.conf)}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.output_folder = folder / "output"

    def start(self) -> None:
        """Start it, and wait until both nodes take jobs."""
        for name in ("state", *(f"spool-{node}" for node in NODES), "log", "munge", "output"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        munge = self.folder / "munge"
        munge.chmod(0o711)
        (munge / "munge.key").write_bytes(os.urandom(1024))
        (munge / "munge.key").chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        ports = [free_port() for _ in range(1 + len(NODES))]
        self.conf.write_text(CONFIGURATION.format(folder=self.folder, host=host, ports=ports))
        options = ("key-file", "munge.key"), ("socket", "munge.sock"), ("pid-file", "munged.pid"), ("seed-file", "seed")
        self._daemon("munged", "--foreground", "--force", *(f"--{name}={munge / file}" for name, file in options))
        wait_for((munge / "munge.sock").exists, 60, "munged has no socket")
        self._daemon("slurmctld", "-D", "-c", "-f", str(self.conf))
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node, "-f", str(self.conf))
        wait_for(
            lambda: self._idle_nodes() == str(len(NODES)), 120, f"the nodes did not come up; see {self.folder / 'log'}"
        )

    def stop(self) -> list[str]:
        """Stop it, and the jobs that still run.

        Returns:
            What was left of its processes and had to be killed; normally nothing.
        """
        with suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--user=root")
            with suppress(TimeoutError):
                wait_for(lambda: not self.run("squeue", "-h").stdout, 90, "jobs do not end")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(60)
        with suppress(TimeoutError):  # what the daemons have started ends with them, but not before them
            wait_for(lambda: not self._processes(), 30, "processes do not end")
        left = self._processes()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return [str(process) for process in left]

    def run(self, *command: str, check: bool = False, **options: object) -> "subprocess.CompletedProcess[str]":
        """Run a command of SLURM's, or any other in its environment; give what it wrote."""
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            command, **{"env": self.env, "capture_output": True, "text": True, "timeout": 120, **options}, check=check
        )

    def submit(self, script: str, *options: str, **more: object) -> str:
        """Submit a batch script; its output goes to ``output(job)``.

        Args:
            script: its text; the line ``#!/bin/bash`` may be left out.
            options: of sbatch.
            more: of subprocess.run: ``env``, ``cwd``.

        Returns:
            The job's id.
        """
        text = script if script.startswith("#!") else f"#!/bin/bash\n{script}\n"
        file = str(self.output_folder / "%j.txt")
        if any(option.startswith(("--array", "-a")) for option in options):
            file = str(self.output_folder / "%A_%a.txt")
        done = self.run("sbatch", "--parsable", "--open-mode=append", "-o", file, *options, input=text, **more)
        if done.returncode:
            raise RuntimeError(f"sbatch failed: {done.stderr}")
        return done.stdout.strip().split(";")[0]

    def show(self, job: str) -> dict[str, str]:
        """Give what ``scontrol show job`` says, by name."""
        text = self.run("scontrol", "-o", "show", "job", job, check=True).stdout.splitlines()[0]
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def state(self, job: str) -> str:
        """Give the state of a job, or of an array's task (``7_1``): PENDING, RUNNING, COMPLETED and so on."""
        return self.show(job)["JobState"]

    def wait(self, job: str, states: str | Iterable[str] = ENDED, timeout: float = PATIENCE) -> str:
        """Wait until a job is in one of the states.

        Args:
            job: its id.
            states: default: those in which a job has ended.
            timeout: in seconds.

        Returns:
            The state.
        """
        wanted = (states,) if isinstance(states, str) else tuple(states)
        end = time.monotonic() + timeout
        while (state := self.state(job)) not in wanted:
            if time.monotonic() > end:
                self.run("scancel", job)
                raise TimeoutError(f"job {job} is {state}, not {wanted}, after {timeout} s: {self.output(job)}")
            time.sleep(0.1)
        return state

    def wait_for_output(self, job: str, text: str, timeout: float = PATIENCE) -> str:
        """Wait until a job has written a text, and give all that it wrote."""
        try:
            wait_for(lambda: text in self.output(job), timeout, lambda: f"{text!r} is not in: {self.output(job)}")
        except TimeoutError:
            self.run("scancel", job)
            raise
        return self.output(job)

    def output(self, job: str) -> str:
        """Give what a job wrote to its output and error so far, over all of its starts."""
        file = self.output_folder / f"{job}.txt"
        return file.read_text(errors="replace") if file.exists() else ""

    def cancel(self, job: str, *options: str) -> None:
        """Cancel a job, or with ``--signal=…`` send it a signal."""
        self.run("scancel", *options, job, check=True)

    def _daemon(self, *command: str) -> None:
        log = (self.folder / "log" / f"daemon-{len(self._daemons)}.txt").open("wb")
        with log:  # they end with this process, however it ends
            full = ["setpriv", "--pdeathsig", "TERM", *command]
            self._daemons.append(subprocess.Popen(full, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _idle_nodes(self) -> str:
        for daemon in self._daemons:
            if daemon.poll() is not None:
                raise RuntimeError(f"{daemon.args} ended with {daemon.returncode}; see {self.folder / 'log'}")
        return self.run("sinfo", "-h", "-p", "low,apart", "-t", "idle", "-o", "%D").stdout.strip()

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(self.conf) and process.pid != os.getpid():
                    found.append(process)
        return found


@contextmanager
def running() -> Iterator[Slurm]:
    """Start one in a temporary folder, and stop it; nothing of it is left, or it is an error."""
    # Short: the path of munge's socket is limited.
    place = Path(tempfile.mkdtemp(prefix="slurm-"))
    place.chmod(0o755)
    started = Slurm(place / "d")
    try:
        started.start()
        yield started
    finally:
        left = started.stop()
        shutil.rmtree(place, ignore_errors=True)
    assert not left, f"processes were left: {left}"


def wait_for(is_so: Callable[[], bool], seconds: float, otherwise: str | Callable[[], str]) -> None:
    """Wait until something is so; TimeoutError with what is otherwise to be said."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(otherwise() if callable(otherwise) else otherwise)
        time.sleep(0.05)


if __name__ == "__main__":
    cluster = Slurm(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).resolve() / "slurm")
    try:
        cluster.start()
        print(f"export SLURM_CONF={cluster.conf}", flush=True)
        while True:
            time.sleep(60)
    finally:
        cluster.stop()
