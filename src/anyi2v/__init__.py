"""AnyI2V: animate any conditional image along drawn trajectories."""
