"""Attempts on the package: malformed settings and hostile files, for `benchmarks/robustness.py`."""
