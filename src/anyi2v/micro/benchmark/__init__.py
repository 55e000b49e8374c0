"""Benchmark with ground truth: cases, measures, tables."""
