"""The parts of `benchmarks/selection.py`."""
