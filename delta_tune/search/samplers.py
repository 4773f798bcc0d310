"""Optuna samplers for configurations after the starting points, and which spaces they support."""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings

import optuna
from optuna.distributions import CategoricalDistribution

from delta_tune.config import Sampler, UserError
from delta_tune.spaces.validation import CheckedSpace

WITHOUT_CONDITIONS = ("gp", "cmaes")
"""Samplers that draw conditional hyperparameters independently of all others."""


MOST_GOOD = 50


def tpe_gamma(finished: int) -> int:
    """How many finished trials TPE treats as good: half, at most 50; Optuna's default is a tenth.

    A tenth of a few dozen trials is the ones with the luckiest validation scores. On recorded curves, half reaches the
    target in about half as many epochs (docs/experiments.md, 2026-11-23).
    """
    return min((finished + 1) // 2, MOST_GOOD)


def make_sampler(kind: Sampler, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial. Seeded per trial, so a resumed study draws what the uninterrupted one would have.

    `grid` draws nothing; values that a starting point leaves open are random.
    """
    seed = (seed * 1_000_003 + number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Optuna 6 drops the argument and keeps a tenth; pyproject.toml keeps to 5 until then (optuna v4.9.0's notes).
        warnings.filterwarnings("ignore", "`gamma` has been deprecated", FutureWarning)
        match kind:
            case "tpe":
                return optuna.samplers.TPESampler(
                    multivariate=True, group=True, constant_liar=True, gamma=tpe_gamma, seed=seed
                )
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(
                    seed=seed, consider_pruned_trials=True, warn_independent_sampling=False
                )
        return optuna.samplers.RandomSampler(seed=seed)


def space_for(kind: Sampler, checked: CheckedSpace) -> CheckedSpace:
    """The space as this sampler runs it: `grid` takes the points of START in their order, whatever it balances."""
    if kind != "grid":
        return checked
    return dataclasses.replace(checked, space=dataclasses.replace(checked.space, balance=None), inner={})


def check_sampler(kind: Sampler, checked: CheckedSpace) -> str | None:
    """A note if the sampler does less than users may expect.

    Raises:
        UserError: the sampler does not support this space, needs a missing package, or is `grid` without a point of
            START.
    """
    space = checked.space
    if kind == "grid" and space.unmet:
        values = ", ".join(f"{name}={value}" for name, value in space.unmet.items())
        raise UserError(
            f"--sampler grid runs the points of START alone, but no point of START has {values} in {space.name}; add "
            f"one, or leave --set {', '.join(space.unmet)} out."
        )
    if kind == "grid" and not space.start:
        raise UserError(f"--sampler grid runs the points of START alone, but {space.name} has none; add START = […].")
    if kind == "grid" and all(space.contradicted(point) for point in space.start):
        raise UserError(
            f"--sampler grid runs the points of START alone, but --set contradicts each one of {space.name}; leave "
            f"--set {', '.join(sorted({name for point in space.start for name in space.contradicted(point)}))} out."
        )
    if kind == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise UserError('--sampler cmaes needs the package cmaes; install it with pip install "delta-tune[cmaes]".')
    if kind in WITHOUT_CONDITIONS and (names := conditional_params(checked)):
        raise UserError(
            f"--sampler {kind} cannot draw from {space.name}: not every trial has {', '.join(names)} with the same "
            f"range, and it would draw them as if no other hyperparameter mattered to them; use tpe, or --set what "
            f"decides about them."
        )
    known = {name: each for p in checked.drawn for name, each in p.distributions.items() if name != space.balance}
    categorical = [name for name, each in known.items() if isinstance(each, CategoricalDistribution)]
    if kind == "cmaes" and categorical:
        return f"The sampler cmaes draws {', '.join(sorted(categorical))} at random: it knows numbers only."
    return None


def conditional_params(checked: CheckedSpace) -> list[str]:
    """Hyperparameters that only some trials have or whose range differs, within each balanced choice."""
    balance = checked.space.balance
    seen: dict[object, list[set[tuple[str, str]]]] = {}
    for proposal in checked.drawn:
        choice = proposal.params.get(balance) if balance else None
        seen.setdefault(choice, []).append({(n, repr(d)) for n, d in proposal.distributions.items() if n != balance})
    found: set[str] = set()
    for sets in seen.values():
        found |= {name for each in sets for name, _ in each ^ sets[0]}
    return sorted(found)
