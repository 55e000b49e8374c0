"""Metrics over folders of videos of any origin: motion, Fréchet and kernel distances. See docs/evaluation.md."""
