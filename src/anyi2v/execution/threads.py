"""How many threads compute, and how they wait for each other. Free of torch, which reads the latter when imported."""

import os
import sys

MAX_THREADS = 1024
"""Most that a user may ask for: it keeps a typing error from starting millions."""

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables by which users choose for themselves."""


def wait_passively() -> None:
    """Lets OpenMP's threads sleep while they wait, for programs to call before torch is imported.

    By default they try again and again, and on a machine with other work take the processor from the very thread that
    they wait for. Results are the same. Does nothing once torch is there, or where the user has set a policy.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
