"""Benchmark with ground truth: cases, metrics and tables."""
