"""Output of a run on disk: its folder, record, page and pictures."""
