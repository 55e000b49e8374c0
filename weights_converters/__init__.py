"""Foreign checkpoint layouts, read and written as ours."""
