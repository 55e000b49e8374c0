"""A world of rendered objects on procedural grounds, with training and evaluation of an image model on it."""
