"""What screening found out, as a table: for the plan, the terminal and the report."""

from __future__ import annotations

from delta_tune.console.format import format_duration
from delta_tune.results.screened import ScreenedNetwork, Screening

COLUMNS = ("network", "log-likelihood", "right", "parameters", "forward", "training", "full trial", "")
"""A network's name, the images' mean log-likelihood, the share of them that is classified rightly, the parameters, the
time of an image's forward pass, of its part of a training step, of a full trial, and the verdict."""


def screening_summary(screening: Screening) -> str:
    """What was done, in a sentence without its full stop."""
    count = len(screening.networks)
    names = f"{count} networks" if count > 1 else "one network"
    if not screening.images:
        return names
    return (
        f"{names} by a linear classifier on frozen features, asked about images that it was not fitted to "
        f"({screening.images} of the {screening.of} of train); times on this machine's {screening.device}, of full "
        f"trials of {screening.epochs} epochs"
    )


def screening_table(screening: Screening) -> list[tuple[str, ...]]:
    """Rows of cells, the names of the columns first; columns of which nothing was measured are left out."""
    rows = [_cells(network) for network in screening.networks]
    shown = [column for column in range(len(COLUMNS)) if any(row[column] for row in rows)]
    return [tuple(row[column] for column in shown) for row in (COLUMNS, *rows)]


def screening_lines(screening: Screening) -> list[str]:
    """Lines of the plan."""
    rows = screening_table(screening)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if column in (0, len(widths) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    told = f"Screening {screening_summary(screening)}"
    return [told, *(f"          {line}" for line in (*aligned, *screening.notes))]


def _cells(network: ScreenedNetwork) -> tuple[str, ...]:
    """The cells of `COLUMNS`."""
    return (
        network.label,
        "" if network.likelihood is None else f"{network.likelihood:.3f} ± {network.error or 0:.3f}",
        "" if network.accuracy is None else f"{100 * network.accuracy:.1f} %",
        "" if network.parameters is None else f"{network.parameters / 1e6:.1f} M",
        "" if network.forward_s is None else _milliseconds(network.forward_s),
        "" if network.training_s is None else _milliseconds(network.training_s),
        "" if network.trial_s is None else format_duration(network.trial_s),
        f"{'kept' if network.kept else 'dropped'}{f': {network.verdict}' if network.verdict else ''}",
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
