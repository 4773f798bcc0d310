"""An inspection on a terminal, or as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from delta_tune.config import visible
from delta_tune.console.format import format_bytes, format_count
from delta_tune.inspection.findings import Finding, quantiles
from delta_tune.inspection.images import KINDS
from delta_tune.inspection.inspection import Inspection
from delta_tune.inspection.labels import LabelReport

MOST_CLASSES = 40
"""With more only the largest and smallest are shown."""
SHOWN = 10
LEAST_SHARE = 0.001
QUANTILES = ("smallest", "5 %", "median", "95 %", "largest")


def print_inspection(inspection: Inspection, found: Sequence[Finding], console: Console) -> None:
    """Print what was found; names are escaped."""
    print_line(console, "Data", _summary(inspection))
    for note in inspection.notes:
        print_line(console, "", note)
    if inspection.images:
        for table in (_class_table(inspection), _size_table(inspection)):
            console.print()
            console.print(table)
        console.print()
        print_line(console, "Files", _files(inspection))
        print_line(console, "Pixels", _pixels(inspection))
    if inspection.labels is None:
        print_line(
            console,
            "Labels",
            "were not looked at: --model NAME (with --weights and --image-size as for a study) finds labels that are "
            "probably wrong and classes that look alike.",
        )
    else:
        print_line(console, "Labels", _accuracy(inspection.labels))
    print_findings(found, console)


def print_findings(found: Sequence[Finding], console: Console) -> None:
    """Print the sentences."""
    console.print()
    for each in found:
        print_line(console, "Serious" if each.level == "serious" else "Advice", each.sentence)
    if not found:
        print_line(console, "Fine", "nothing to mend was found.")


def print_label_report(report: LabelReport, study: str, console: Console) -> None:
    """Print which labels a study suspects."""
    print_line(console, "Study", study)
    print_line(console, "Labels", _accuracy(report))
    if report.suspects:
        table = _table("image", "label", "perhaps", "probability", "of the label")
        for each in report.suspects[:SHOWN]:
            odds = [f"{100 * each.probability:.0f} %", f"{100 * each.probability_of_label:.0f} %"]
            table.add_row(*map(visible, (each.image, each.label, each.suggested)), *odds)
        console.print(table)
        if len(report.suspects) > SHOWN:
            print_line(console, "", f"and {len(report.suspects) - SHOWN} more, which --csv FILE lists.")


def print_line(console: Console, head: str, text: str) -> None:
    """A line that begins with a word, as in a study's plan."""
    if console.is_terminal:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=8)
        grid.add_column()
        grid.add_row(head, Text(visible(text), overflow="fold"))
        console.print(Padding(grid, 0))
    else:
        console.print(Text(f"{head:<8} {visible(text)}"), soft_wrap=True)


def _summary(inspection: Inspection) -> str:
    counts = Counter(image.split for image in inspection.images)
    sizes = ", ".join(
        f"{split} {counts[split]}{' (cut from train)' if split in inspection.cut else ''}"
        for split in inspection.splits
    )
    damaged = f", {format_count(len(inspection.damaged), 'image')} damaged" if inspection.damaged else ""
    return f"{inspection.name}: {len(inspection.classes)} classes, {sizes or 'no image that can be read'}{damaged}"


def _table(first: str, *others: str) -> Table:
    """A table without lines, whose first column is text and whose others are numbers."""
    table = Table(first, *others, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _class_table(inspection: Inspection) -> Table:
    counts = inspection.counts()
    rows = sorted(((name, sum(of.values())) for name, of in counts.items()), key=lambda row: -row[1])
    table = _table("class", *inspection.splits, "all")
    shown = rows if len(rows) <= MOST_CLASSES else [*rows[:SHOWN], None, *rows[-SHOWN:]]
    for row in shown:
        if row is None:
            table.add_row(f"… {len(rows) - 2 * SHOWN} more", *("" for _ in inspection.splits), "")
        else:
            name, total = row
            table.add_row(visible(name), *(str(counts[name][split]) for split in inspection.splits), str(total))
    most, least = rows[0][1], rows[-1][1]
    table.add_row("largest : smallest", *("" for _ in inspection.splits), f"{most / max(1, least):.1f}")
    return table


def _size_table(inspection: Inspection) -> Table:
    images = inspection.images
    table = _table("", *QUANTILES)
    for name, values in (
        ("width, pixels", [image.width for image in images]),
        ("height, pixels", [image.height for image in images]),
    ):
        table.add_row(name, *(f"{value:.0f}" for value in quantiles(values)))
    table.add_row("long side : short side", *(f"{v:.2f}" for v in quantiles([i.aspect_ratio for i in images])))
    if sizes := [image.bytes for image in images if image.bytes is not None]:
        table.add_row("file", *map(format_bytes, quantiles(sizes)))
    return table


def _files(inspection: Inspection) -> str:
    formats = Counter(image.format for image in inspection.images).most_common()
    total = sum(image.bytes or 0 for image in inspection.images)
    said = ", ".join(f"{count} {name if name != 'none' else 'without a file'}" for name, count in formats)
    return f"{said}; {format_bytes(total)} in all" if total else said


def _pixels(inspection: Inspection) -> str:
    counts = Counter(kind for image in inspection.images for kind in image.kinds)
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) or "all in colour, 8 bits, opaque"


def _accuracy(report: LabelReport) -> str:
    share = "" if report.share is None else f" About {100 * report.share:.1f} % of the labels are wrong, by estimate."
    if report.share is not None and report.share < LEAST_SHARE:
        share = " Next to none of the labels seems to be wrong."
    return f"{100 * report.accuracy:.1f} % are predicted by {report.told_by}.{share}"


def as_json(inspection: Inspection, found: Sequence[Finding]) -> dict[str, Any]:
    """All that was found, for programs."""
    images = inspection.images
    return {
        "name": inspection.name,
        "notes": list(inspection.notes),
        "cut_from_train": list(inspection.cut),
        "classes": inspection.counts(),
        "images": len(images),
        "quantiles": {
            "of": [0, 0.05, 0.5, 0.95, 1],
            "width": quantiles([image.width for image in images]),
            "height": quantiles([image.height for image in images]),
            "aspect_ratio": quantiles([image.aspect_ratio for image in images]),
            "bytes": quantiles([image.bytes for image in images if image.bytes is not None]),
        },
        "bytes": sum(image.bytes or 0 for image in images),
        "formats": dict(Counter(image.format for image in images)),
        "kinds": {kind: sum(kind in image.kinds for image in images) for kind in KINDS},
        "damaged": [{"image": name, "reason": reason} for name, reason in inspection.damaged],
        "identical": [
            [{"image": image.name, "split": image.split, "labels": list(image.labels)} for image in group]
            for group in inspection.identical
        ],
        "near_duplicates": [
            {
                "images": [pair.first.name, pair.second.name],
                "splits": [pair.first.split, pair.second.split],
                "labels": [list(pair.first.labels), list(pair.second.labels)],
                "kind": pair.kind,
                "difference": pair.difference,
            }
            for pair in inspection.near
        ],
        "blank": list(inspection.blank),
        "labels": None if inspection.labels is None else dataclasses.asdict(inspection.labels),
        "findings": [dataclasses.asdict(each) for each in found],
    }
