"""Tensor functions without any model."""
