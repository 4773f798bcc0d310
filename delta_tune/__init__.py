"""DELTA fine-tuning as a Ray-distributed hyperparameter search (arXiv 1901.09229)."""

from __future__ import annotations
