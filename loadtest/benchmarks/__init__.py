"""Benchmarks of one question each: the variants compared in one run, and a last line `RESULT key=value ...`."""
