"""What a study found out about several backbones before it chose among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
