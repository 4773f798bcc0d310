"""The sections of `benchmarks/gpu.py`, a module for each question."""
