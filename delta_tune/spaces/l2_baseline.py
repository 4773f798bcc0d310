"""Search plain L2 beside a space that lacks it, so that a confirmation has a baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution

from delta_tune.config import BASELINE, METHODS, TrialConfig
from delta_tune.results.tables import StudyTables
from delta_tune.spaces.space import Space, SpaceTrial
from delta_tune.spaces.validation import CheckedSpace, check_space, contains

ARM = "_arm"
"""Helper that names a trial's arm: `SPACE` (or its method, if methods are balanced) or `BASELINE`."""
SPACE = "space"
_RECIPE = {"lr": 0.001, "batch_norm": "frozen", "weight_decay": 1e-4}
_WEIGHT_DECAY = FloatDistribution(1e-5, 1e-2, log=True)
_OF_METHODS = {"regularizer", "co_tuning", "contrast"}
"""Fields that make a method: plain L2 has its own, whatever the space or the user gives the others."""
_SHARED = METHODS[BASELINE].fields - _OF_METHODS - {"weight_decay"}


def lacks_l2_baseline(checked: CheckedSpace) -> bool:
    """Whether the space has no trials of L2; arms are told by the method, so one with further terms counts."""
    return all(proposal.config.regularizer != BASELINE for proposal in checked.drawn)


def add_l2_baseline(checked: CheckedSpace, seed: int) -> CheckedSpace:
    """Alternate between the space and plain L2, each with its own sampler.

    L2 uses the space's ranges and constants for hyperparameters that both have (learning rate, batch norm, …); its
    weight decay is searched from 1e-5 to 1e-2.

    Args:
        checked: a space without plain L2.
        seed: seed of the random draws that check the new space.
    """
    space = checked.space
    # If the space balances methods, L2 becomes one more method; otherwise the whole space is one arm.
    by_method = space.balance == "regularizer"
    arms = (*(checked.choices if by_method else (SPACE,)), BASELINE)
    ranges = _ranges(checked)
    constants = _constants(checked, ranges)
    own_method = {name: value for name, value in space.fixed.items() if name in _OF_METHODS}

    def both(trial: SpaceTrial) -> Mapping[str, Any]:
        arm = trial.suggest_categorical(ARM, arms)
        if arm == BASELINE:
            for name, distribution in ranges.items():
                trial.suggest(name, distribution)
            return {**constants, "regularizer": BASELINE}
        inside = own_method | ({"regularizer": arm} if by_method else {})
        trial.fix(inside)
        return {**(space.function(trial) or {}), **inside}

    def in_arm(point: Mapping[str, Any]) -> dict[str, Any]:
        if not by_method:
            return {ARM: SPACE, **point}
        rest = {name: value for name, value in point.items() if name != "regularizer"}
        return {ARM: point["regularizer"], **rest} if "regularizer" in point else rest

    recipe = {n: v for n, v in _RECIPE.items() if n in ranges and n not in space.fixed and contains(ranges[n], v)}
    joined: Space = dataclasses.replace(
        space,
        function=both,
        fixed={name: value for name, value in space.fixed.items() if name not in own_method},
        start=(*(in_arm(point) for point in checked.points), {ARM: BASELINE, **recipe}),
        balance=ARM,
    )
    return dataclasses.replace(check_space(joined, seed), notes=checked.notes)


Groups = Callable[[StudyTables], dict[int, str]]
"""Trial number → its group in comparisons: its method, or its arm if plain L2 was added."""


def comparison_groups(checked: CheckedSpace) -> Groups:
    """The groups that are compared in a study of this space."""
    arms = _arms(checked)

    def group(tables: StudyTables, number: int) -> str:
        method = proposed_method(tables.params(number), tables.trials[number]["config.regularizer"])
        choices = arms.get(tables.backbone(number) or "", arms[""])
        return method if choices is None else str(arm_of(method, choices))

    return lambda tables: {number: group(tables, number) for number in tables.searched}


def compared(checked: CheckedSpace) -> tuple[str, ...]:
    """The groups that a confirmation compares, by name."""
    found: dict[str, None] = {}
    for space in checked.inner.values() or (checked,):
        by_arm = space.space.balance == ARM
        found |= dict.fromkeys(map(str, space.choices if by_arm else {c.regularizer for c in space.configs}))
    return tuple(found)


def rung_groups(checked: CheckedSpace) -> Callable[[TrialConfig], str]:
    """Configuration → the group within which trials are stopped.

    All trials are one group; methods with a budget of their own have one each, and so has each of several networks.
    """
    spaces = {"": checked, **checked.inner}
    arms, by_method = _arms(checked), {n for n, each in spaces.items() if each.space.balance == "regularizer"}

    def group(config: TrialConfig) -> str:
        label = config.backbone if config.backbone is not None and config.backbone in checked.inner else ""
        choices, found = arms[label], "all"
        if choices is not None:
            found = str(arm_of(config.regularizer, choices))
        elif label in by_method:
            found = config.regularizer
        return found if config.backbone is None else f"{config.backbone}: {found}"

    return group


def turn_of(checked: CheckedSpace, tables: StudyTables, number: int) -> Any:
    """The key of a trial's turn, among `CheckedSpace.turns`; an earlier session may have had others."""
    label, row = tables.backbone(number), tables.trials[number]
    if label is not None and label in checked.inner:
        return label, turn_of(checked.inner[label], tables, number)
    balance = checked.space.balance
    method = proposed_method(tables.params(number), row["config.regularizer"])
    if balance == ARM:
        return arm_of(method, checked.choices)
    return method if balance == "regularizer" else row.get(f"config.{balance}", row.get(f"param.{balance}"))


def _arms(checked: CheckedSpace) -> dict[str, tuple[Any, ...] | None]:
    """Label of each network that takes turns, and "" for all others → the choices of its arms; None if it has none."""
    spaces = {"": checked, **checked.inner}
    return {label: each.choices if each.space.balance == ARM else None for label, each in spaces.items()}


def proposed_method(params: Mapping[str, Any], regularizer: str) -> str:
    """The method that a trial was proposed with; without attention it may run with another.

    Args:
        params: its coordinates.
        regularizer: the method that it runs with.
    """
    proposed = params.get("regularizer")
    return proposed if proposed in METHODS else regularizer


def arm_of(regularizer: str, choices: tuple[Any, ...]) -> Any:
    """The arm of a trial with this method, among `add_l2_baseline`'s choices."""
    return regularizer if regularizer in choices else SPACE


def _ranges(checked: CheckedSpace) -> dict[str, BaseDistribution]:
    found = {n: d for p in checked.drawn for n, d in p.distributions.items() if n in _SHARED}
    return {**found, "weight_decay": _WEIGHT_DECAY}


def _constants(checked: CheckedSpace, ranges: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    values = {name: {getattr(p.config, name) for p in checked.drawn} for name in _SHARED if name not in ranges}
    return {name: next(iter(found)) for name, found in sorted(values.items()) if len(found) == 1}
