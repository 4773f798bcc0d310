"""What the runs found, as tables for people and as figures for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from anytime_parts.points import OURS, Cell, Column, Run, accuracy, cell, difference, early_lead, leads

Groups = Mapping[str, Sequence[Run]]
"""Data set → its runs."""


def clock(seconds: float) -> str:
    """15 s, 4 min."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:g} min"


def in_short(run: Run) -> str:
    """A line on a run that has ended."""
    text = f"{run.data}, {run.arm}, seed {run.seed}, {clock(run.budget)}: "
    if run.versions:
        ends = (run.versions[0], run.versions[-1])
        first, last = (f"at {each.seconds:.1f} s ({100 * accuracy(each.right):.1f} %)" for each in ends)
        text += f"{len(run.versions)} models, the first {first}, the last {last}"
    else:
        text += f"no model ({run.last_lines[-1][:160] if run.last_lines else 'it said nothing'})"
    return f"{text}; ended at {run.ended:.1f} s, exit status {run.exit_status}"


def table(runs: Sequence[Run], columns: Sequence[Column], points: Sequence[int]) -> list[str]:
    """Markdown: accuracy on test by point and column, with the difference of ours to each other arm."""
    titles = " | ".join(column.title for column in columns)
    lines = [f"| | {titles} |", "|---" * (len(columns) + 1) + "|"]
    for point in points:
        ours = cell(runs, OURS, point, points[-1]) if OURS in columns else None
        texts = [
            _text(cell(runs, column, point, points[-1]), None if column.arm == OURS.arm else ours) for column in columns
        ]
        lines.append(f"| {clock(point)} | {' | '.join(texts)} |")
    return lines


def _text(cell: Cell | None, ours: Cell | None) -> str:
    """A cell of the table.

    Args:
        cell: what it shows.
        ours: what it is compared with.
    """
    if cell is None:
        return ""
    text = f"{100 * cell.accuracy:.1f}"
    if not cell.models:
        text = f"none, {text}"
    elif cell.models < len(cell.right):
        text += f" (none in {len(cell.right) - cell.models} runs)"
    if cell.ended is not None:
        text += f", at {cell.ended:.0f} s"
    if ours is not None:
        text += f" (ours {_signed(difference(ours.right, cell.right))})"
    return text


def _signed(lead: tuple[float, float]) -> str:
    """+4.1 ± 2.0, in points."""
    return f"{100 * lead[0]:+.1f} ± {100 * lead[1]:.1f}"


def page(groups: Groups, columns: Sequence[Column], points: Sequence[int]) -> list[str]:
    """The tables of all data sets as Markdown, and how ours stands to each other arm."""
    lines: list[str] = []
    for data, runs in groups.items():
        lines += [f"### {data}", "", _about(runs), "", *table(runs, columns, points), ""]
    for other in _others(columns):
        by_data = {data: leads(runs, other, points) for data, runs in groups.items()}
        for data, found in by_data.items():
            if found:
                point = min(found, key=lambda point: found[point][0])
                lines.append(f"{data}: the least lead over {other.arm} is {_signed(found[point])}, at {clock(point)}.")
        if (median := early_lead(by_data.values())) is not None:
            lines.append(f"The median lead over {other.arm} at the points up to 4 min is {100 * median:+.1f} points.")
    return lines


def _about(runs: Sequence[Run]) -> str:
    """What was run, in one sentence."""
    facts, seeds = runs[0].facts, sorted({run.seed for run in runs})
    commits = ", ".join(sorted({run.facts["commit"] for run in runs}))
    before, after = (max(run.facts["load"][moment] for run in runs) for moment in (0, 1))
    return (
        f"{runs[0].model}, {runs[0].image_size} px; {facts['train']} images for training, {facts['val']} for "
        f"validation, {facts['test']} for testing; seeds {seeds}; {facts['cpus']} CPUs; load up to {before:.1f} before "
        f"a run and {after:.1f} after it; commit {commits}."
    )


def _others(columns: Sequence[Column]) -> list[Column]:
    """The columns that ours is compared with."""
    return [column for column in columns if column.arm != OURS.arm] if OURS in columns else []


def figures(groups: Groups, columns: Sequence[Column], points: Sequence[int]) -> dict[str, Any]:
    """The same for programs: every run with all its models, watched or with a point as its budget; and the leads."""
    told = {}
    for data, runs in groups.items():
        by_arm = {other.arm: leads(runs, other, points) for other in _others(columns)}
        told[data] = {
            "leads": {
                arm: [
                    {"seconds": point, "lead": lead, "standard_error": error} for point, (lead, error) in found.items()
                ]
                for arm, found in by_arm.items()
            },
            "runs": [dataclasses.asdict(run) for run in runs],
        }
    return {"points": list(points), "data": told}
