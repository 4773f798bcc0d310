"""What a step asks of a GPU: the page's table of the tests' network, counted again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # programs, not a package
from step_counts import ROOT, table

NET = "timm:test_resnet"


@pytest.fixture(scope="module")
def counted():
    """The lines of the table, counted now."""
    return table(NET).splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_pages_table_is_what_is_counted(counted):
    lines = (ROOT / "docs" / "explanation" / "performance.md").read_text().splitlines()
    begin = lines.index(counted[0])
    assert lines[begin : begin + len(counted)] == counted


def test_a_step_takes_few_launches_more_than_l2s_and_never_waits(counted):
    base, *others = (cells(line) for line in counted[2:])
    for method, launches, _, waits, *_ in (base, *others):
        assert int(launches) <= int(base[1]) + 40, method
        assert waits == "0", method


@pytest.mark.parametrize(("net", "rows"), [("resnet50", 4), ("tf_efficientnet_lite0", 4)])
def test_the_pages_ratios_are_within_what_was_asked(net, rows):
    lines = (ROOT / "docs" / "explanation" / "performance.md").read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {net},"))
    ratios = {cells(line)[0]: float(cells(line)[2]) for line in lines[begin + 2 : begin + 2 + rows]}
    assert ratios["l2_sp"] <= 1.1
    assert ratios["delta, delta_uniform"] <= 1.25
