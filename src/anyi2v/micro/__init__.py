"""A synthetic world, a small backbone trained on it, and measurements with ground truth."""

import sys

from anyi2v.execution.threads import wait_passively

if sys.argv[:1] == ["-m"]:  # Python is looking for a module of this package to run it: torch is not imported yet
    wait_passively()
