"""Thread limits and OpenMP's wait policy; does not import torch, which reads the policy on import."""

import os
import sys

MAX_THREADS = 1024
"""Maximum number of threads that a user may request, so that a typing error does not start millions."""

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables with which users choose their own policy."""


def wait_passively() -> None:
    """Make OpenMP threads sleep while they wait; must be called before torch is imported.

    By default they spin, and on a busy machine take processor time from the very thread they wait for. Results do not
    change. Does nothing if torch is already imported or the user has set a policy.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
