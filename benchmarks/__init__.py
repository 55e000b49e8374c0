"""Measurements and comparisons outside the product: each module is a program, `python -m benchmarks.x`."""

from anyi2v.execution.threads import wait_passively

wait_passively()  # the modules are programs that import torch after this
