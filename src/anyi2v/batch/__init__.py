"""Jobs from requests: single jobs, several prompts, or a file of many jobs."""
