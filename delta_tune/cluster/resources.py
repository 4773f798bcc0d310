"""How many trials may run at a time, as nodes come and go."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ray.util.placement_group import placement_group, remove_placement_group

from delta_tune.cluster.gpu_sharing import Footprint, gpu_share, trials_per_gpu
from delta_tune.cluster.nodes import Cluster, Node, alive_nodes
from delta_tune.config import StudyConfig, UserError

LOOK_S = 2.0
NODE_WAIT_S = 600.0
"""An autoscaler takes minutes for a machine with a GPU."""
AHEAD = 0.1


class Capacity:
    """The limit on concurrent trials, and for how long none has fitted.

    Ray Tune fixes its own limit at the start of a run, so that nodes which join stay idle. Here the limit is what fits
    on the nodes of the moment. Where more are allowed by `most`, a tenth of them, one at least, is proposed ahead:
    an autoscaler adds nodes for trials that wait, and for nothing else.

    Args:
        resources: of a trial, and `most`.
        say: told when no node has room any more, and when one has again.
        nodes: the cluster's, to be asked again and again.
        clock: seconds.
    """

    def __init__(
        self,
        resources: Resources,
        say: Callable[[str], None],
        nodes: Callable[[], Iterable[Node]] = alive_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resources, self._say, self._nodes, self._clock = resources, say, nodes, clock
        self._looked = clock()
        self._fit = trials_that_fit(resources, nodes())
        self._none_since: float | None = None
        self.history = [(time.time(), self._fit)]
        """Since when (seconds since 1970) how many trials fitted at a time."""

    @property
    def limit(self) -> int:
        """Trials that may be proposed and not be over."""
        self._look()
        most = self._resources.most
        if most is None:
            return max(1, self._fit)
        return min(most, self._fit + max(1, math.ceil(AHEAD * self._fit)))

    @property
    def slots(self) -> int:
        """Trials that ran at a time when it was last looked; costs nothing."""
        fit = self.history[-1][1]
        return fit if self._resources.most is None else min(fit, self._resources.most)

    @property
    def gone(self) -> str | None:
        """What to tell, once no node has had room for so long that none will."""
        self._look()
        if self._none_since is None or self._clock() - self._none_since < NODE_WAIT_S:
            return None
        return f"no node of the cluster has had room for {describe_request(self._resources)} for {NODE_WAIT_S / 60:g} minutes"

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        resources = self._resources
        self._fit = trials_that_fit(resources, self._nodes())
        if self._fit == 0 and self._none_since is None:
            self._none_since = now
            minutes = f"{NODE_WAIT_S / 60:g} minutes"
            self._say(f"No node has room for {describe_request(resources)} any more; waiting up to {minutes} for one.")
        elif self._fit > 0:
            self._none_since = None
            known = self.history[-1][1]
            if self._fit != known:
                self.history.append((time.time(), self._fit))
                self._say(f"The cluster has room for {self._fit} trials at a time now, it had for {known}.")


def trials_that_fit(resources: Resources, nodes: Iterable[Node]) -> int:
    """Trials that fit on these nodes at a time."""
    return sum(node.slots(resources.cpus_per_trial, resources.gpus_per_trial) for node in nodes)


def describe_request(resources: Resources) -> str:
    """The resources of a trial in words."""
    gpus = f" and {resources.gpus_per_trial:g} GPUs" if resources.gpus_per_trial else ""
    return f"a trial with {resources.cpus_per_trial:g} CPUs{gpus}"


def wait_for_resources(resources: Resources, say: Callable[[str], None]) -> None:
    """Ask the cluster for what a trial needs, where no node has it yet.

    Raises:
        UserError: none came in time.
    """
    if trials_that_fit(resources, alive_nodes()):
        return
    minutes = f"{NODE_WAIT_S / 60:g} minutes"
    say(f"No node has room for {describe_request(resources)} yet; asking for one, and waiting up to {minutes}.")
    bundle = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    asked = placement_group([{name: many for name, many in bundle.items() if many}])
    try:
        if not asked.wait(NODE_WAIT_S):
            raise UserError(
                f"No node with room for {describe_request(resources)} came within {minutes}, and {resources.where} has none; "
                f"start one, look at `ray status` for what its autoscaler says, or ask for less with "
                f"--gpus-per-trial or --cpus-per-trial."
            )
    finally:
        remove_placement_group(asked)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets, and how many run at a time.

    Attributes:
        cpus_per_trial: logical CPUs.
        gpus_per_trial: GPUs; below 1 a part of one.
        slots: trials at a time, on the cluster as it is when the study begins.
        most: trials at a time at the most, however the cluster grows; None for no limit.
        where: the cluster in words.
        why: how the GPUs were shared out, where it was measured.
    """

    cpus_per_trial: float
    gpus_per_trial: float
    slots: int
    most: int | None = None
    where: str = "this machine"
    why: str = ""

    @property
    def threads(self) -> int:
        """Torch threads of a trial."""
        return max(1, int(self.cpus_per_trial))

    @property
    def device(self) -> str:
        """Where a trial trains."""
        return "cuda" if self.gpus_per_trial > 0 else "cpu"


def allocate(config: StudyConfig, cluster: Cluster, num_trials: int, measure: Callable[[], Footprint]) -> Resources:
    """The resources of one trial; `measure` is asked where it is to be found out how many share a GPU.

    Raises:
        UserError: more than the cluster has.
    """
    gpus, why = config.gpus_per_trial, ""
    if gpus == "auto" and cluster.gpus >= 1:
        footprint = measure()
        gpus = gpu_share(trials_per_gpu(footprint, cluster.cpus / cluster.gpus, config.cpus_per_trial))
        why = footprint.sentence
    elif gpus is None or gpus == "auto":
        gpus = 1.0 if cluster.gpus >= 1 else 0.0
    most = config.max_concurrent_trials
    try:
        slots = min(cluster.slots(config.cpus_per_trial, gpus), num_trials)
    except UserError:
        if not (cluster.may_grow and most):
            raise
        slots = 1  # nodes are asked for before the study begins
    return Resources(
        cpus_per_trial=config.cpus_per_trial,
        gpus_per_trial=gpus,
        slots=slots if most is None else min(slots, most),
        most=most,
        where=str(cluster),
        why=why,
    )
