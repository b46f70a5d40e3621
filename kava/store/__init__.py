"""The teacher's KV on disk: a Zarr store of coded arrays, with a manifest that vouches for every byte."""
