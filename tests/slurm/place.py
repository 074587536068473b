"""What a process of the tests tells about its place: ``python -m tests.slurm.place NAME`` prints one line of JSON."""

import json
import logging
import os
import sys

import torch

from trainlab.distributed import open_ranks


def main(name: str) -> None:
    warned: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("trainlab").addHandler(handler)
    try:
        with open_ranks(torch.device("cpu")) as ranks:
            numbers = (ranks.rank, ranks.size, ranks.local_rank, ranks.local_size, ranks.cross_rank, ranks.cross_size)
            met = ranks.allgather(os.environ.get("SLURMD_NODENAME"))
            told = {"numbers": numbers, "met": met, "warned": warned}
    except ValueError as error:
        told = {"error": str(error)}
    os.write(1, f"{json.dumps({'name': name, **told})}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1])
