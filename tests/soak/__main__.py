"""Any number of kills and corruptions: ``python -m tests.soak --kills 1000 --corruptions 1000 --seed 7``.

The exit status is 1 if anything was lost or any corruption not detected.
"""

import argparse
import os
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.soak.soaking import Soak


def main(arguments: list[str]) -> int:
    """Kill and corrupt as often as the arguments say.

    Args:
        arguments: those of the command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many times a process is killed (100)")
    parser.add_argument("--corruptions", type=int, default=100, help="how many checkpoints are damaged (100)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of all choices (0); the instants of kills are the machine's"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at the same time (one a core)")
    parser.add_argument(
        "--only", type=_one, metavar="KIND:NUMBER", help="one run with its kills, or one corruption, once more"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), options.kills, options.corruptions, options.seed, only=options.only)
        with ThreadPoolExecutor(options.jobs) as pool:
            workers = [pool.submit(soak.work) for _ in range(options.jobs)]
        for worker in workers:
            if (error := worker.exception()) is not None:
                traceback.print_exception(error)
                return 1
    print(soak.totals.text())
    return 1 if soak.totals.is_bad else 0


def _one(text: str) -> tuple[str, int]:
    kind, _, number = text.partition(":")
    if kind not in ("kill", "corruption") or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"kill:NUMBER or corruption:NUMBER, and not {text!r}")
    return kind, int(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
