"""Bounds on what a step asks of a GPU, and the page's tables, whose ratios must be what was asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # programs, not a package
from step_counts import count_step

TINY = "timm:test_resnet"


@pytest.fixture(scope="module")
def l2():
    return count_step(TINY, "l2", fused=True)


@pytest.mark.parametrize(
    ("method", "fused", "more_launches"),
    [("l2 + average", True, 6), ("l2_sp", True, 40), ("delta, delta_uniform", True, 40)],
)
def test_a_step_takes_few_launches_more_than_l2s_and_no_wait(l2, method, fused, more_launches):
    step = count_step(TINY, method, fused=fused)
    assert step.waits == l2.waits == 0
    assert step.launches <= l2.launches + more_launches
