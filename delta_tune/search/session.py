"""Resources and helpers shared by all phases of one session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from delta_tune.cluster.measuring import Measuring
from delta_tune.cluster.nodes import is_only_node
from delta_tune.cluster.resources import Resources
from delta_tune.console.progress import Progress
from delta_tune.results.layout import CHECKPOINTS
from delta_tune.results.mirror import Mirror


@dataclass(frozen=True, kw_only=True)
class Session:
    """One session on a Ray cluster.

    Attributes:
        resources: what one trial gets.
        measuring: where things are measured.
        progress: prints to the user.
        mirror: mirror of the study's folder, if `--out` is an address.
    """

    resources: Resources
    measuring: Measuring
    progress: Progress
    mirror: Mirror | None = None

    def checkpoints(self, folder: Path) -> str:
        """Folder or address of the checkpoints of the study in `folder`, or of its confirmation."""
        if self.mirror is None:
            return str(folder / CHECKPOINTS)
        return "/".join([self.mirror.address, *folder.relative_to(self.mirror.folder).parts, CHECKPOINTS])


def start_session(resources: Resources, progress: Progress, mirror: Mirror | None = None) -> Session:
    """Start a session with these resources."""
    here = resources.device == "cpu" and is_only_node()
    measuring = Measuring(resources, progress.say, progress.bar, here=here)
    return Session(resources=resources, measuring=measuring, progress=progress, mirror=mirror)
