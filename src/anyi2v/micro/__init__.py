"""A synthetic world, a small backbone trained on it, and measurements with ground truth."""
