"""Our files of weights, LoRA and textual inversion."""
