"""What everything that a study computes in one session has in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from delta_tune.attention_tasks import ray_runner
from delta_tune.plan import Resources
from delta_tune.probing import Runner
from delta_tune.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Session:
    """One session on a Ray cluster.

    Attributes:
        resources: of a trial.
        runner: computes attention on the cluster.
        progress: what the user is told.
    """

    resources: Resources
    runner: Runner
    progress: Progress

    @property
    def device(self) -> str:
        """Where the driver computes: it may sit on a node without a GPU."""
        return self.resources.device if torch.cuda.is_available() else "cpu"


def begin(resources: Resources, progress: Progress) -> Session:
    """A session with these resources."""
    runner = ray_runner(
        cpus=resources.cpus_per_trial,
        gpus=resources.gpus_per_trial,
        slots=resources.slots,
        threads=resources.threads,
        device=resources.device,
        bar=progress.bar,
    )
    return Session(resources=resources, runner=runner, progress=progress)
