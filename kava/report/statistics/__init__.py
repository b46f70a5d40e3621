"""Intervals and tests for arms that answered the same questions; computed by SciPy and statsmodels."""
