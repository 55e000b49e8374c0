"""Measurement of a job's time on the user's machine and backbone: `anyi2v bench stages` and `scaling`."""
