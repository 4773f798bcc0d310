"""Check a search space before the study: run its branches and random draws, replay its starting points."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from delta_tune.config import TrialConfig, UserError, did_you_mean
from delta_tune.spaces.space import Answer, Proposal, Space

BACKBONE = "backbone"
"""The hyperparameter that names the network."""
NUM_RANDOM_DRAWS = 200
MAX_BRANCHES = 1000


@dataclass(frozen=True, kw_only=True)
class CheckedSpace:
    """A space that passed the checks, with the points to try first."""

    space: Space
    drawn: tuple[Proposal, ...]
    points: tuple[dict[str, Any], ...]
    """Coordinates of START, or of the library default where that leaves nothing."""
    notes: tuple[str, ...]
    """Messages for the plan: which points are left out, and why."""
    inner: Mapping[str, CheckedSpace] = dataclasses.field(default_factory=dict)
    """Label → the space of that network, if the networks of a study take turns; else empty."""

    @property
    def configs(self) -> list[TrialConfig]:
        """Configurations of all its branches and of random draws, which stand for what its trials may be."""
        return [proposal.config for proposal in self.drawn]

    @property
    def first(self) -> Proposal:
        """The first starting point, with random values for what it leaves open."""
        point: dict[str, Any] = self.points[0] if self.points else {}
        rest = random_answers(np.random.default_rng(0))
        return self.space.propose(lambda name, among: point[name] if name in point else rest(name, among))

    @property
    def usual_batch_size(self) -> int:
        """That of the first starting point; the median of the space's, if there is none or it leaves that open."""
        first = self.first
        if self.points and ("batch_size" in self.points[0] or "batch_size" not in first.distributions):
            return first.config.batch_size
        return statistics.median_low(config.batch_size for config in self.configs)

    def of(self, backbone: str | None) -> CheckedSpace:
        """The space in which trials of this network are searched."""
        return self.inner.get(backbone or "", self)

    def only(self, backbone: str | None, *, default: bool) -> CheckedSpace:
        """This space, drawn from for one network only.

        Args:
            backbone: the network's label.
            default: whether trials that name no network have it.
        """
        names = (backbone, None) if default else (backbone,)
        kept = tuple(proposal for proposal in self.drawn if proposal.config.backbone in names)
        return dataclasses.replace(self.of(backbone), drawn=kept)

    @property
    def turns(self) -> dict[Any, dict[str, Any]]:
        """What takes turns, each with as many trials: a key → the values that all its trials have."""
        if self.inner:
            return {
                (label, key): {BACKBONE: label, **values}
                for label, space in self.inner.items()
                for key, values in space.turns.items()
            }
        if self.space.balance is None:
            return {None: {}}
        return {choice: {self.space.balance: choice} for choice in self.choices}

    @property
    def choices(self) -> tuple[Any, ...]:
        """The choices of the balanced hyperparameter."""
        assert self.space.balance is not None
        distribution = self.drawn[0].distributions[self.space.balance]
        assert isinstance(distribution, CategoricalDistribution)
        return tuple(distribution.choices)


def check_space(space: Space, seed: int) -> CheckedSpace:
    """Run the space over its categorical branches and random draws, and replay each starting point.

    Raises:
        UserError: an unknown name, a value outside its range or choices, a name in a branch a point does not reach.
    """
    rng = np.random.default_rng(seed)
    drawn = [*_branches(space, rng), *(space.propose(random_answers(rng)) for _ in range(NUM_RANDOM_DRAWS))]
    for proposal in drawn:
        if proposal.config.method.fits_head:
            raise UserError(
                f"regularizer {proposal.config.regularizer} in {space.name} is the first trial of every study; give "
                f"the space another method."
            )
    if space.balance is not None and not all(
        isinstance(p.distributions.get(space.balance), CategoricalDistribution) for p in drawn
    ):
        raise UserError(
            f"BALANCE in {space.name} must name a categorical that is always suggested, not {space.balance!r}."
        )
    for name in space.fixed:
        if name.startswith("_") and not any(name in p.helpers for p in drawn):
            raise UserError(f"--set {name}: the space {space.name} has no such helper.")
    points: list[dict[str, Any]] = []
    notes: list[str] = []
    for point in space.start:
        if contradicted := space.contradicted(point):
            names = ", ".join(contradicted)
            notes.append(f"The starting point {point} is left out: {names} is fixed to another value.")
            continue
        point = {k: v for k, v in point.items() if k not in space.fixed}
        _check_point(space, point, drawn, rng)
        if point not in points:
            points.append(point)
    if not points:
        default = _default_point(space)
        if isinstance(default, str):
            notes.append(default)
        else:
            points = [default]
    return CheckedSpace(space=space, drawn=tuple(drawn), points=tuple(points), notes=tuple(notes))


def random_answers(rng: np.random.Generator) -> Answer:
    """Answers drawn uniformly, or log-uniformly if the distribution says so."""

    def answer(name: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[rng.integers(len(distribution.choices))]
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, high = float(distribution.low), float(distribution.high)
        value = np.exp(rng.uniform(np.log(low), np.log(high))) if distribution.log else rng.uniform(low, high)
        if distribution.step is not None and not distribution.log:
            value = low + round((value - low) / distribution.step) * distribution.step
        value = min(max(value, low), high)
        return round(value) if isinstance(distribution, IntDistribution) else float(value)

    return answer


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether `value` could have been drawn from `distribution`."""
    if isinstance(distribution, CategoricalDistribution):
        return any(
            value is choice or (type(value) is type(choice) and value == choice) for choice in distribution.choices
        )
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not distribution.low <= value <= distribution.high:
        return False
    if isinstance(distribution, IntDistribution) and value != int(value):
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step and not distribution.log else 0
    return abs(steps - round(steps)) < 1e-8


def _branches(space: Space, rng: np.random.Generator) -> Iterator[Proposal]:
    """One proposal per combination of categorical answers, depth first."""
    open_prefixes: list[tuple[int, ...]] = [()]
    for _ in range(MAX_BRANCHES):
        if not open_prefixes:
            return
        walk = _Walk(open_prefixes.pop(), random_answers(rng))
        yield space.propose(walk)
        open_prefixes += walk.turns


class _Walk:
    """Answers along one path: a prefix of choices, then always the first choice. Records the branches not taken."""

    def __init__(self, prefix: tuple[int, ...], fallback: Answer) -> None:
        self._prefix, self._fallback = prefix, fallback
        self._taken: list[int] = []
        self.turns: list[tuple[int, ...]] = []

    def __call__(self, name: str, distribution: BaseDistribution) -> Any:
        if not isinstance(distribution, CategoricalDistribution):
            return self._fallback(name, distribution)
        if len(self._taken) < len(self._prefix):
            self._taken.append(self._prefix[len(self._taken)])
        else:
            self.turns += [(*self._taken, other) for other in range(len(distribution.choices) - 1, 0, -1)]
            self._taken.append(0)
        return distribution.choices[self._taken[-1]]


class _OutsideSpace(UserError):
    """A point has no value, or one outside the distribution."""


def _default_point(space: Space) -> dict[str, Any] | str:
    """The library's default in this space's coordinates, or a sentence why the space cannot express it."""
    method = space.fixed.get("regularizer", space.base.regularizer)
    return point_at(space, dataclasses.replace(space.base, regularizer=method).resolved(), "The library default")


def point_at(space: Space, values: Mapping[str, Any], what: str) -> dict[str, Any] | str:
    """`values` in the space's coordinates, or a sentence why the space cannot express `what`."""

    def answer(name: str, distribution: BaseDistribution) -> Any:
        value = values.get(name)
        if name not in values or not contains(distribution, value):
            raise _OutsideSpace(name if name not in values else f"{name}={value}")
        return value

    try:
        return space.propose(answer).params
    except _OutsideSpace as outside:
        return f"{what} is left out: {space.name} cannot express {outside}."


def _check_point(space: Space, point: dict[str, Any], drawn: list[Proposal], rng: np.random.Generator) -> None:
    names = {name for p in drawn for name in p.distributions}
    for name in point:
        if name not in names:
            raise UserError(
                f"The starting point {point} fixes {name!r}, which {space.name} never "
                f"suggests{did_you_mean(name, names)}; it suggests {', '.join(sorted(names))}."
            )
    rest = random_answers(rng)

    def answer(name: str, distribution: BaseDistribution) -> Any:
        if name not in point:
            return rest(name, distribution)
        if not contains(distribution, point[name]):
            raise UserError(
                f"The starting point {point} of {space.name} has {name}={point[name]!r}, outside of {distribution}."
            )
        return point[name]

    # Values that the point leaves open may decide the branch, so it is replayed several times.
    asked = {name for _ in range(20) for name in space.propose(answer).params}
    missed = sorted(point.keys() - asked)
    if missed:
        raise UserError(
            f"The starting point {point} of {space.name} fixes {', '.join(missed)}, "
            f"in a branch that the point does not reach; leave it out or change the branch."
        )
