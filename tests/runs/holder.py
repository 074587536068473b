"""Holds a run's folder until its standard input ends: ``python -m tests.runs.holder DIR``."""

import os
import sys

from trainlab.runs import RunFolder

if __name__ == "__main__":
    folder = RunFolder.open(name="held", run_dir=sys.argv[1])
    if "fork" in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            print(os.getpid(), flush=True)
            sys.stdin.read()
            os._exit(0)
    else:
        print(os.getpid(), flush=True)
    sys.stdin.read()
