"""Ranks on two hosts: network namespaces with a link between them, which is made, cut and removed here."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.ranks import start_ranks
from tests.training import faults
from tests.training.outcomes import PATIENT, Outcome

LINK = "trainlab0"
ADDRESSES = ("10.213.7.1", "10.213.7.2")


class Hosts(list[str]):
    """The names of the namespaces, the chief's first."""

    def train(self, run_dir: Path, *args: faults.Fault, heartbeat: float = 250.0) -> Outcome:
        """Train with one rank on each."""
        env = {
            **PATIENT,
            "TRAINLAB_HEARTBEAT_TIMEOUT": str(heartbeat),
            "GLOO_SOCKET_IFNAME": LINK,
            "MASTER_ADDR": ADDRESSES[0],
        }
        with start_ranks(faults.train_on_host, 2, str(run_dir), list(self), *args, env=env, nodes=2) as ranks:
            return Outcome(ranks, run_dir)

    def mend(self) -> None:
        """Let the link be up, as at the beginning."""
        for host in self:
            _ip("-n", host, "link", "set", LINK, "up")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two hosts with a link between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root can make network namespaces, with `ip` of iproute2")
    names = Hosts(f"trainlab-{os.getpid()}-{letter}" for letter in "ab")
    try:
        for name in names:
            if not _ip("netns", "add", name, check=False):
                pytest.skip("network namespaces cannot be made here")
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", names[0], "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", LINK)
        names.mend()
        yield names
    finally:
        for name in names:
            _ip("netns", "delete", name, check=False)


def _ip(*arguments: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)
    return done.returncode == 0


def test_training_on_two_hosts(hosts: Hosts, tmp_path: Path) -> None:
    """Ranks on two hosts, which see each other over one network alone, train together."""
    found = hosts.train(tmp_path / "run")
    assert found.statuses == [0, 0], found.outputs
    assert found.results[0]["weights"] == found.results[1]["weights"]
    assert found.checkpoints() == [16, 20]


def test_an_error_on_another_host(hosts: Hosts, tmp_path: Path) -> None:
    """An exception on one host ends the ranks of the other, too."""
    found = hosts.train(tmp_path / "run", ("train_batch", 1, 6, "raise"))
    found.check_failed(1, "ValueError: boom in train_batch", "train at batch 5")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "time", "checkpoints"),
    [("train_batch", 10, [4, 8]), ("state_dict", 4, [4, 8])],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_link_that_is_cut(
    hosts: Hosts, tmp_path: Path, rank: int, place: str, time: int, checkpoints: list[int]
) -> None:
    """After the link is cut each side ends within the limit and says that it has lost the other; a resume goes on."""
    try:
        found = hosts.train(tmp_path / "run", (place, rank, time, "cut the link"), heartbeat=6)
    finally:
        hosts.mend()
    assert all(found.statuses), found.outputs
    # The phase may be an earlier one, for all is over in a second. Whoever ends first is seen to be gone by the other,
    # for these hosts are one machine.
    for one, output in enumerate(found.outputs):
        assert re.search(rf"Rank {1 - one} of 2 (froze|died) in ", output), found.outputs
    assert any("froze" in output and "or its host or network is gone" in output for output in found.outputs)
    assert found.status() == "failed"
    resumed = hosts.train(tmp_path / "run")
    assert resumed.statuses == [0, 0] and resumed.results[0]["trained"][0] == checkpoints[-1], resumed.outputs
    assert resumed.checkpoints() == [16, 20]
