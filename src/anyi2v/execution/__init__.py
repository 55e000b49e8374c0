"""Execution of whole networks: packed weights, CUDA graphs, memory prediction and clusters."""
