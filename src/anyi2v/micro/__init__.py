"""A synthetic world, a small backbone trained on it, and benchmarks with ground truth."""

import sys

from anyi2v.execution.threads import wait_passively

if sys.argv[:1] == ["-m"]:  # `python -m` is locating a module of this package: torch is not imported yet
    wait_passively()
