"""Metrics over folders of videos of any origin: trajectories, Fréchet and kernel distances. docs/evaluation.md."""
