"""Whether this machine can run a preset: checks that each end in one line, and say what to do."""
