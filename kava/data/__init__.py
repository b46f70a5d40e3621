"""Text → token ids with a segment per token: rows, templates, token sets."""
