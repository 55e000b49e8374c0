"""Reading and writing of checkpoints, and reading of LoRA and textual inversion files."""
