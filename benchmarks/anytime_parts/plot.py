"""The curves as one SVG picture: a panel for each data set, accuracy on test against time on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from anytime_parts.points import Column, Run, accuracy
from anytime_parts.tables import Groups, clock

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 260, 46, 26, 44, 34
COLORS = ("#0b6bcb", "#c4500a", "#3c8d2f", "#7b4fb5")


def picture(groups: Groups, columns: Sequence[Column], points: Sequence[int]) -> str:
    """SVG.

    Args:
        groups: title of each panel → its runs.
        columns: the arms, in order.
        points: seconds; the axis ends at the last.
    """
    across = min(3, len(groups))
    down = math.ceil(len(groups) / across)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across * WIDTH} {down * HEIGHT + 30}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" '
        f'aria-label="Accuracy on test against time, of the model in hand">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for number, (title, runs) in enumerate(groups.items()):
        x, y = number % across * WIDTH, number // across * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(title, runs, columns, points), "</g>"]
    for number, column in enumerate(columns):
        x = LEFT + number * 180
        parts.append(f'<rect x="{x}" y="{down * HEIGHT + 8}" width="22" height="4" fill="{COLORS[number]}"/>')
        parts.append(f'<text x="{x + 28}" y="{down * HEIGHT + 15}">{escape(column.title)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(title: str, runs: Sequence[Run], columns: Sequence[Column], points: Sequence[int]) -> list[str]:
    """A panel, its corner at the origin."""
    scores = [accuracy(version.right) for run in runs for version in run.versions] or [1.0]
    low, high = math.floor(10 * min(scores)) / 10, math.ceil(10 * max(scores)) / 10
    low = low if low < high else low - 0.1
    first, last = math.log(points[0] / 2), math.log(points[-1])

    def across(seconds: float) -> float:
        share = (math.log(max(seconds, points[0] / 2)) - first) / (last - first)
        return LEFT + min(share, 1.0) * (WIDTH - LEFT - RIGHT)

    def down(score: float) -> float:
        return HEIGHT - BOTTOM - (max(score, low) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="24" font-size="14" fill="#222">{escape(title)}</text>']
    for tenth in range(round(10 * low), round(10 * high) + 1):
        y = down(tenth / 10)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e2e2e2"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{10 * tenth} %</text>')
    for point in points:
        x = across(point)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 12}" text-anchor="middle" fill="#555">{clock(point)}</text>')
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#f0f0f0"/>')
    for color, column in zip(COLORS, columns, strict=False):
        own = [run for run in runs if run.arm == column.arm]
        if column.by_budget:
            ends = [(across(run.ended), down(accuracy(run.versions[-1].right))) for run in own if run.versions]
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>' for x, y in ends]
            continue
        for run in own:
            seen = [version for version in run.versions if version.seconds <= points[-1]]
            if run.budget == points[-1] and seen:
                steps = [(across(each.seconds), down(accuracy(each.right))) for each in seen]
                parts.append(
                    f'<path d="{_stairs(steps)}H{WIDTH - RIGHT}" fill="none" stroke="{color}" stroke-width="2"/>'
                )
    return parts


def _stairs(steps: Iterable[tuple[float, float]]) -> str:
    """Each value until the next."""
    (x, y), *rest = steps
    return f"M{x:.1f} {y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in rest)
