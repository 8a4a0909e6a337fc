"""Benchmarks. Each compares variants in one run and ends with a line `RESULT key=value ...`."""
