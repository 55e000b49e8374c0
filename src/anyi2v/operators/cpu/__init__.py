"""Implementations for CPUs: by oneDNN, which PyTorch brings, and in forms whose intermediate results fit a cache.

Of layers with frozen weights the backward pass keeps the input at most.
"""
