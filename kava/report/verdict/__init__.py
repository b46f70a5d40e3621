"""What the declared comparisons show, and how it is said."""
