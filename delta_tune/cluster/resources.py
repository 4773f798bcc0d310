"""What one trial gets, and how many may run at a time as nodes come and go."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from delta_tune.cluster.failures import ExternalFailure
from delta_tune.cluster.gpu_sharing import Footprint, cpus_of_sharer, gpu_share, trials_per_gpu, whole_units
from delta_tune.cluster.nodes import Cluster, Node, alive_nodes
from delta_tune.cluster.trial_device import Device, device_with_gpus, device_without_gpus
from delta_tune.config import StudyConfig, UserError
from delta_tune.console.format import format_count
from delta_tune.models.device_check import Accelerator

CHECK_INTERVAL_S = 2.0
LOOK_S = 1.0
NODE_WAIT_S = 600.0
"""An autoscaler takes minutes to start a GPU machine."""
BUSY_S = 5.0
"""If there is no room for a trial within this time at the start, others use it."""
IDLE_S = 30.0
"""The same while the study runs, when processes of trials must start first."""
AHEAD = 0.1


class Capacity:
    """The limit on concurrent trials, and how long no node has had room.

    Ray Tune fixes its limit at the start of a run, so nodes that join later would stay idle. This limit is what fits on
    the current nodes. If `most` allows more, a tenth more trials (at least one) are proposed ahead, because an
    autoscaler adds nodes only for waiting trials.

    Args:
        resources: what one trial gets, and `most`.
        say: prints a sentence when no node has room any more, and when one has again.
        nodes: returns the current nodes.
        clock: returns seconds.
        runs: returns whether a trial runs.
    """

    def __init__(
        self,
        resources: Resources,
        say: Callable[[str], None],
        nodes: Callable[[], Iterable[Node]] = alive_nodes,
        clock: Callable[[], float] = time.monotonic,
        runs: Callable[[], bool] = lambda: True,
    ) -> None:
        self._resources, self._say, self._nodes, self._clock, self._runs = resources, say, nodes, clock, runs
        self._checked_at = self._ran_at = clock()
        self._idle = False
        self._fit = trials_that_fit(resources, nodes())
        self._none_since: float | None = None
        self.history = [(time.time(), self._fit)]
        """(seconds since 1970, trials that fit from then on)."""

    @property
    def limit(self) -> int:
        """How many trials may be proposed and unfinished."""
        self._check_nodes()
        most = self._resources.most
        if most is None:
            return max(1, self._fit)
        return min(most, self._fit + max(1, math.ceil(AHEAD * self._fit)))

    @property
    def slots(self) -> int:
        """How many trials fitted at the last check; costs nothing."""
        fit = self.history[-1][1]
        return fit if self._resources.most is None else min(fit, self._resources.most)

    @property
    def out_of_room(self) -> str | None:
        """A sentence once no node has had room, or no trial could run, for `NODE_WAIT_S`; else None."""
        self._check_nodes()
        now, request, minutes = self._clock(), describe_request(self._resources), f"{NODE_WAIT_S / 60:g} minutes"
        if self._none_since is not None and now - self._none_since >= NODE_WAIT_S:
            return f"no node of the cluster had room for {request} for {minutes}"
        if now - self._ran_at >= NODE_WAIT_S:
            return f"others used what the cluster has, and {request} could not start for {minutes}"
        return None

    def _check_nodes(self) -> None:
        now = self._clock()
        if now - self._checked_at < CHECK_INTERVAL_S:
            return
        self._checked_at = now
        resources = self._resources
        self._fit = trials_that_fit(resources, self._nodes())
        if self._fit == 0 and self._none_since is None:
            self._none_since = now
            minutes = f"{NODE_WAIT_S / 60:g} minutes"
            self._say(f"No node has room for {describe_request(resources)} any more; waiting up to {minutes}.")
        elif self._fit > 0:
            self._none_since = None
            known = self.history[-1][1]
            if self._fit != known:
                self.history.append((time.time(), self._fit))
                self._say(f"The cluster now has room for {self._fit} trials at a time (before: {known}).")
        self._check_trials(now)

    def _check_trials(self, now: float) -> None:
        """Whether trials run: the nodes' resources may be in use by others, which Tune waits for without a word."""
        if self._fit == 0 or self._runs():
            self._ran_at, self._idle = now, False
        elif now - self._ran_at >= IDLE_S and not self._idle:
            self._idle = True
            self._say(
                f"No trial has run for {now - self._ran_at:.0f} s: what {describe_request(self._resources)} needs is "
                f"in use by others; waiting up to {NODE_WAIT_S / 60:g} minutes."
            )


def trials_that_fit(resources: Resources, nodes: Iterable[Node]) -> int:
    """How many trials fit on `nodes` at a time."""
    return sum(node.slots(resources.cpus_per_trial, resources.gpus_per_trial) for node in nodes)


def describe_request(resources: Resources) -> str:
    """What one trial needs, in words."""
    return f"a trial with {resources.for_one_trial}"


def wait_for_resources(resources: Resources, say: Callable[[str], None]) -> None:
    """Wait until a trial has room: if no node has it, ask the cluster for one; if others use it, until it is free.

    Raises:
        ExternalFailure: there was no room in time.
    """
    request, minutes = describe_request(resources), f"{NODE_WAIT_S / 60:g} minutes"
    bundle = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    group = placement_group([{name: amount for name, amount in bundle.items() if amount}])
    try:
        if trials_that_fit(resources, alive_nodes()):
            if _ready(group, BUSY_S):
                return
            say(f"All room for {request} on {resources.where} is in use by others; waiting up to {minutes}.")
        else:
            say(f"No node has room for {request} yet; requesting one and waiting up to {minutes}.")
        if _ready(group, NODE_WAIT_S):
            return
        if trials_that_fit(resources, alive_nodes()):
            raise ExternalFailure(
                f"others have used what {request} needs of {resources.where} for {minutes}; end what uses it, or ask "
                f"for less with --gpus-per-trial or --cpus-per-trial"
            )
        raise ExternalFailure(
            f"no node with room for {request} came within {minutes}, and {resources.where} has none; start one, check "
            f"`ray status` for its autoscaler's messages, or ask for less with --gpus-per-trial or --cpus-per-trial"
        )
    finally:
        remove_placement_group(group)


def _ready(group: PlacementGroup, seconds: float) -> bool:
    """Whether the group is placed within that time; in steps, because Ray's waiting cannot be interrupted."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if group.wait(min(LOOK_S, left)):
            return True
    return False


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets, and how many run at a time.

    Attributes:
        cpus_per_trial: logical CPUs.
        gpus_per_trial: GPUs: 0, 1 or a fraction.
        slots: concurrent trials on the cluster as it is at the start of the study.
        device: type of the device that a trial trains on: `cpu`, `cuda`, `xpu` or `mps`.
        most: upper bound of concurrent trials, however the cluster grows; None for no bound.
        where: the cluster in words.
        why: sentences for the plan: the device, and how GPUs are shared.
        accelerators: the GPUs, one of each kind that was asked.
    """

    cpus_per_trial: float
    gpus_per_trial: float
    slots: int
    device: str = "cpu"
    most: int | None = None
    where: str = "this machine"
    why: tuple[str, ...] = ()
    accelerators: tuple[Accelerator, ...] = ()

    @property
    def threads(self) -> int:
        """Torch threads per trial."""
        return max(1, int(self.cpus_per_trial))

    @property
    def for_one_trial(self) -> str:
        """What one trial gets, in words."""
        gpus = f" and {format_count(self.gpus_per_trial, 'GPU')}" if self.gpus_per_trial else ""
        return f"{format_count(self.cpus_per_trial, 'CPU')}{gpus}"


def find_gpus(config: StudyConfig, cluster: Cluster, say: Callable[[str], None] | None) -> tuple[Cluster, Device]:
    """The cluster with a GPU that is free for a trial, if trials are to have one, and the device of trials.

    Args:
        config: the settings.
        cluster: the nodes as they are.
        say: prints what is waited for; None does not wait for a node that an autoscaler is to add.

    Raises:
        UserError: there is no GPU and none can come, or torch cannot use those that there are.
        ExternalFailure: no GPU was free, or none answered, in time.
    """
    asked = config.gpus_per_trial
    if asked == 0 or (cluster.gpus < 1 and (asked is None or (asked == "auto" and not cluster.may_grow))):
        return cluster, device_without_gpus(cluster, asked_for_cpus=asked == 0)
    share = whole_units(asked) if isinstance(asked, float | int) else 1.0
    least = config.cpus_per_trial or cpus_of_sharer(cluster.cpus_per_gpu, share)
    if not _may_come(config, cluster):
        cluster.slots(least, share)
    if cluster.gpus == 0 and say is None:
        if asked == "auto":
            raise UserError(
                "--gpus-per-trial auto measures a trial on a GPU, and no node with one is up; start one, or give "
                "--gpus-per-trial 1 or a fraction of 1."
            )
        return cluster, Device(type="cuda", why="trains on GPUs that are still to come, and were not asked")
    first = Resources(cpus_per_trial=least, gpus_per_trial=share, slots=1, where=str(cluster))
    wait_for_resources(first, say or (lambda text: None))
    if cluster.gpus == 0:
        cluster = dataclasses.replace(cluster, nodes=alive_nodes())
    return cluster, device_with_gpus(share, cluster.where)


def _may_come(config: StudyConfig, cluster: Cluster) -> bool:
    """Whether an autoscaler may add the nodes that trials need: the user says how many trials to grow to."""
    return cluster.may_grow and config.max_concurrent_trials is not None


def allocate(
    config: StudyConfig, cluster: Cluster, num_trials: int, device: Device, measure: Callable[[], Footprint]
) -> Resources:
    """Decide what one trial gets.

    Args:
        config: the settings.
        cluster: the nodes.
        num_trials: of the study.
        device: what trials train on.
        measure: called to find out how many trials share a GPU (`auto`).

    Raises:
        UserError: a trial needs more than any node has.
    """
    gpus, why = _share_of_trial(config, cluster, device, measure)
    cpus, most = config.cpus_per_trial, config.max_concurrent_trials
    if device.type == "mps":  # Ray does not count it, and trials on it would only take turns
        cpus, most = cpus or max(1.0, cluster.cpus), most or 1
    elif cpus is None:
        cpus = cpus_of_sharer(cluster.cpus_per_gpu, gpus) if gpus else 1.0
    try:
        slots = min(cluster.slots(cpus, gpus), num_trials)
    except UserError:
        if not _may_come(config, cluster):
            raise
        slots = 1  # `wait_for_resources` asks for a node before the study begins
    return Resources(
        cpus_per_trial=cpus,
        gpus_per_trial=gpus,
        slots=slots if most is None else min(slots, most),
        device=device.type,
        most=most,
        where=str(cluster),
        why=(device.why, *why),
        accelerators=device.accelerators,
    )


def _share_of_trial(
    config: StudyConfig, cluster: Cluster, device: Device, measure: Callable[[], Footprint]
) -> tuple[float, tuple[str, ...]]:
    """The GPUs of one trial, and how they were decided, in sentences."""
    asked = config.gpus_per_trial
    if isinstance(asked, float | int):
        return whole_units(asked), ()
    if cluster.gpus < 1:
        return 0.0, ()
    if asked is None and device.type != "cuda":
        return 1.0, ()  # only CUDA says what a trial needs
    footprint = measure()
    return gpu_share(trials_per_gpu(footprint, cluster.cpus_per_gpu, config.cpus_per_trial or 1)), (footprint.sentence,)
