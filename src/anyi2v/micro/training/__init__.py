"""Training of the micro backbones."""
