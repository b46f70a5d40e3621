"""The page: numbers, charts and their library in one file that loads nothing."""
