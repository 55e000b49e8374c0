"""Implementations for GPUs: Triton kernels of what PyTorch computes there in several passes over memory.

Functions of tensors whose backward pass keeps the inputs only; weights are frozen, so no gradient goes to them.
Imported where a tensor lies on a GPU: not every installation of PyTorch brings Triton.
"""
