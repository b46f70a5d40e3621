"""KAVA: distil a large language model's KV cache into a small one, from a compressed store on disk."""
