"""Measurements and comparisons that the product does not need: each module is a program, `python -m benchmarks.x`."""

from anyi2v.execution.threads import wait_passively

wait_passively()  # its modules are programs, which import torch after this
