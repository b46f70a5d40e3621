"""The teacher's KV: capture → select → codec → store."""
