"""The teacher's pass over the data: its KV, scores and signals, shard after shard."""
