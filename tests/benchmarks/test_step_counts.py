"""What a step asks of a GPU: the page's table of the tests' network, counted again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # programs, not a package
from step_counts import METHODS, ROOT, table

pytestmark = pytest.mark.slow

NET = "timm:test_resnet"


@pytest.fixture(scope="module")
def counted():
    """The lines of the table, counted now."""
    return table(NET).splitlines()


@pytest.fixture(scope="module")
def page():
    """The lines of the page."""
    return (ROOT / "docs" / "explanation" / "performance.md").read_text().splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_pages_table_is_what_is_counted(counted, page):
    begin = page.index(counted[0])
    assert page[begin : begin + len(counted)] == counted


@pytest.mark.parametrize(
    ("method", "more_launches"), [("l2", 0), ("l2 + average", 6), ("l2_sp", 40), ("delta, delta_uniform", 40)]
)
def test_a_step_takes_few_launches_more_than_l2s_and_never_waits(counted, method, more_launches):
    steps = {name: (int(launches), waits) for name, launches, _, waits, *_ in map(cells, counted[2:])}
    assert steps[method][0] <= steps["l2"][0] + more_launches
    assert steps[method][1] == "0"


@pytest.mark.parametrize("net", ["resnet50", "tf_efficientnet_lite0"])
def test_the_pages_ratios_are_within_what_was_asked(page, net):
    begin = next(i for i, line in enumerate(page) if line.startswith(f"| {net},"))
    ratios = {cells(line)[0]: float(cells(line)[2]) for line in page[begin + 2 : begin + 2 + len(METHODS)]}
    assert ratios["l2_sp"] <= 1.1
    assert ratios["delta, delta_uniform"] <= 1.25
