"""What everything that a study computes in one session has in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from delta_tune.attention.measurement import Runner
from delta_tune.cluster.attention_workers import ray_runner
from delta_tune.cluster.resources import Resources
from delta_tune.console.progress import Progress
from delta_tune.results.layout import CHECKPOINTS
from delta_tune.results.mirror import Mirror


@dataclass(frozen=True, kw_only=True)
class Session:
    """One session on a Ray cluster.

    Attributes:
        resources: of a trial.
        runner: computes attention on the cluster.
        progress: what the user is told.
        mirror: of the study's folder, where that is kept at an address.
    """

    resources: Resources
    runner: Runner
    progress: Progress
    mirror: Mirror | None = None

    def checkpoints(self, folder: Path) -> str:
        """Where trials of the study in `folder`, or of its confirmation, leave what they are continued from."""
        if self.mirror is None:
            return str(folder / CHECKPOINTS)
        return "/".join([self.mirror.address, *folder.relative_to(self.mirror.folder).parts, CHECKPOINTS])

    @property
    def device(self) -> str:
        """Where the driver computes: it may sit on a node without a GPU."""
        return self.resources.device if torch.cuda.is_available() else "cpu"


def start_session(resources: Resources, progress: Progress, mirror: Mirror | None = None) -> Session:
    """A session with these resources."""
    runner = ray_runner(
        cpus=resources.cpus_per_trial,
        gpus=resources.gpus_per_trial,
        slots=resources.slots,
        threads=resources.threads,
        device=resources.device,
        bar=progress.bar,
    )
    return Session(resources=resources, runner=runner, progress=progress, mirror=mirror)
