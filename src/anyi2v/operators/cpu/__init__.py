"""CPU implementations that use PyTorch's oneDNN, or keep intermediate results within the cache.

For layers with frozen weights, the backward pass saves at most the input.

`python -m benchmarks.operators_gain` measures the gain of each. On an Intel processor, where MKL is at no disadvantage,
all of them together save 5 % of the CPU time of micro's job (three rounds: 4.6 to 5.6 %), the convolutions alone 4 %
(-0.6 to 5.4 %); the others save less than the measurement's spread of about 5 %.
"""
