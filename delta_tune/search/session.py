"""Resources and helpers shared by all phases of one session."""

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
        resources: what one trial gets.
        runner: computes attention on the cluster.
        progress: prints to the user.
        mirror: mirror of the study's folder, if `--out` is an address.
    """

    resources: Resources
    runner: Runner
    progress: Progress
    mirror: Mirror | None = None

    def checkpoints(self, folder: Path) -> str:
        """Folder or address of the checkpoints of the study in `folder`, or of its confirmation."""
        if self.mirror is None:
            return str(folder / CHECKPOINTS)
        return "/".join([self.mirror.address, *folder.relative_to(self.mirror.folder).parts, CHECKPOINTS])

    @property
    def device(self) -> str:
        """The driver's device: its node may lack a GPU."""
        return self.resources.device if torch.cuda.is_available() else "cpu"


def start_session(resources: Resources, progress: Progress, mirror: Mirror | None = None) -> Session:
    """Start a session with these resources."""
    runner = ray_runner(
        cpus=resources.cpus_per_trial,
        gpus=resources.gpus_per_trial,
        slots=resources.slots,
        threads=resources.threads,
        device=resources.device,
        bar=progress.bar,
    )
    return Session(resources=resources, runner=runner, progress=progress, mirror=mirror)
