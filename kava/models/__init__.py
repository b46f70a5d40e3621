"""A language model: its files on disk, loading and quantising it, and reading its keys and values."""
