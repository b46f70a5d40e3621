"""Benchmarks: figures that the README and the report quote, measured on the machine that they are read on."""
