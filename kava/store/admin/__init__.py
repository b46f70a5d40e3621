"""What there is in a cache folder, who uses it, whether it is intact, and what may go."""
