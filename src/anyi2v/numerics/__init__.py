"""Tensor functions that do not depend on a model."""
