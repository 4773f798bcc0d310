"""What a study found out about several backbones before it chose among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = ("network", "log-likelihood", "right", "parameters", "forward", "training", "full trial", "")
"""Of the table: a network's name, the images' mean log-likelihood, the share of them that is classified rightly, the
parameters, the time of an image's forward pass, of its part of a training step, of a full trial, and the verdict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreenedNetwork:
    """One candidate; what is None was not measured."""

    label: str
    """Its name among the candidates."""
    model: str
    weights: str | None
    """As the user gave them."""
    kept: bool
    verdict: str
    """Why it is kept or dropped."""
    image_size: int | None = None
    parameters: int | None = None
    """Without the head."""
    forward_s: float | None = None
    """Seconds of an image's forward pass."""
    training_s: float | None = None
    """Seconds of an image's part of a training step."""
    trial_s: float | None = None
    """Seconds of a full trial."""
    likelihood: float | None = None
    """Mean log-likelihood of the images, in nats."""
    error: float | None = None
    """Its standard error."""
    accuracy: float | None = None
    """Share of the images that is classified rightly."""

    def cells(self) -> tuple[str, ...]:
        """The cells of `COLUMNS`."""
        return (
            self.label,
            "" if self.likelihood is None else f"{self.likelihood:.3f} ± {self.error or 0:.3f}",
            "" if self.accuracy is None else f"{100 * self.accuracy:.1f} %",
            "" if self.parameters is None else f"{self.parameters / 1e6:.1f} M",
            "" if self.forward_s is None else _milliseconds(self.forward_s),
            "" if self.training_s is None else _milliseconds(self.training_s),
            "" if self.trial_s is None else _duration(self.trial_s),
            f"{'kept' if self.kept else 'dropped'}{f': {self.verdict}' if self.verdict else ''}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Screening:
    """The result: the candidates by rank, the kept ones first."""

    networks: tuple[ScreenedNetwork, ...]
    images: int
    """Training images that were looked at; 0 if no pass was needed."""
    of: int
    """Training images that there are."""
    epochs: int
    """Of a full trial."""
    device: str
    """On which the seconds were measured."""
    notes: tuple[str, ...] = ()
    """Sentences."""

    @property
    def kept(self) -> tuple[ScreenedNetwork, ...]:
        """Those that the study goes on with, the best first."""
        return tuple(network for network in self.networks if network.kept)

    def summary(self) -> str:
        """What was done, in a sentence."""
        names = f"{len(self.networks)} networks" if len(self.networks) > 1 else "one network"
        if not self.images:
            return names
        return (
            f"{names} by a linear classifier on frozen features, asked about images that it was not fitted to "
            f"({self.images} of the {self.of} of train); times on this machine's {self.device}, of full trials of "
            f"{self.epochs} epochs"
        )

    def table(self) -> list[tuple[str, ...]]:
        """Rows of cells, the names of the columns first."""
        return [COLUMNS, *(network.cells() for network in self.networks)]

    def lines(self) -> list[str]:
        """Lines of the plan."""
        rows = self.table()
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        aligned = [
            "  ".join(
                cell.ljust(width) if column in (0, len(COLUMNS) - 1) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return [f"Screening {self.summary()}", *(f"          {line}" for line in (*aligned, *self.notes))]

    def content(self) -> dict[str, Any]:
        """For `study.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Screening:
        """What `content` returned."""
        networks = tuple(ScreenedNetwork(**_known(ScreenedNetwork, each)) for each in content["networks"])
        return cls(**(_known(cls, content) | {"networks": networks, "notes": tuple(content.get("notes", ()))}))


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in content.items() if name in names}


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def names_of(networks: Sequence[ScreenedNetwork]) -> str:
    """Their names in words."""
    return " and ".join(network.label for network in networks)
