"""The teacher's KV: capture → codec → store."""
