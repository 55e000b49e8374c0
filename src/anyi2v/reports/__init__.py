"""What a run leaves on disk: its folder, record, page and pictures."""
