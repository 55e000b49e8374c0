"""GPU implementations, Triton kernels for operators that PyTorch computes in several passes over memory.

The backward pass saves only the inputs; weights are frozen and receive no gradient. The modules are imported only for
tensors on a GPU, because not every installation of PyTorch includes Triton.
"""
