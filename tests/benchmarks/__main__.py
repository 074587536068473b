"""`python -m tests.benchmarks`: the table of speeds."""

from tests.benchmarks.bench import main

main()
