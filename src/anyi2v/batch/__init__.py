"""Jobs from data: one, several prompts of one, or a file of many."""
