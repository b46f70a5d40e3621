"""What a person sees of a workflow's run: a line per job, and what failed."""
