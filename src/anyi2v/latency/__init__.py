"""Where the time of a job goes, on the user's own machine and backbone: `anyi2v bench stages` and `scaling`."""
