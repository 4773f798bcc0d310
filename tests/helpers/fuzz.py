"""Settings of the tests that draw their inputs with Hypothesis."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

FACTOR = int(os.environ.get("DELTA_TUNE_FUZZ", "0"))
"""How many times as many inputs to draw, other ones in each run; 0 draws the usual ones."""


def cases(count):
    """Settings of a test that draws `count` inputs, the same ones each time unless DELTA_TUNE_FUZZ asks for more."""
    return settings(
        max_examples=count * max(1, FACTOR),
        database=None,
        derandomize=not FACTOR,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if FACTOR else [])],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
