"""A world of rendered objects on procedural grounds, and what is needed to train and judge an image model on it."""
