"""A sweep as a user's script has it: ``python script.py OUTPUT_DIR KIND [NUMBER]``."""

import sys

from tests.sweeps.programs import inner, wait
from trainlab.sweeps import run_parameter_sweep

if __name__ == "__main__":
    output_dir, kind, *rest = sys.argv[1:]
    if kind == "inside":
        inner.run({"output_dir": output_dir})
    else:
        numbers = [{"number": number, "obeys": kind != "disobeys"} for number in range(int(rest[0]))]
        print(run_parameter_sweep(wait, numbers, 2, name="waiting", output_dir=output_dir, grace=60.0).text())
