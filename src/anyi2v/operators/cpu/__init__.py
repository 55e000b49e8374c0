"""Implementations for CPUs: by oneDNN, which PyTorch brings, and in forms whose intermediate results fit a cache.

Of layers with frozen weights the backward pass keeps the input at most.

What each gains of a job: `python -m benchmarks.operators_gain`. On an Intel processor, where MKL is at no disadvantage,
all of them together gain 5 % of the CPU time of micro's job (three rounds: 4.6 to 5.6 %), the convolutions alone 4 %
(-0.6 to 5.4 %); what the others gain there is less than the measurement's spread of some 5 %.
"""
