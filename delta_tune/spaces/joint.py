"""One space of several networks: first which one, then what is searched for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from optuna.distributions import CategoricalDistribution

from delta_tune.spaces.space import Proposal, Space, SpaceTrial
from delta_tune.spaces.validation import BACKBONE, CheckedSpace


def chooses_backbone(checked: CheckedSpace) -> bool:
    """Whether the space, or what the user has fixed, says of itself which network a trial has."""
    return any(proposal.config.backbone is not None for proposal in checked.drawn)


def join_spaces(inner: Mapping[str, CheckedSpace]) -> CheckedSpace:
    """The space that first suggests `backbone`, then what that network's own space suggests.

    Networks take turns, and within each the choices of what its space balances. Their starting points take turns too.

    Args:
        inner: label → the space of that network, the network that was screened best first; ≥ 2.
    """
    labels = tuple(inner)
    among = CategoricalDistribution(labels)
    first = inner[labels[0]].space

    def both(trial: SpaceTrial) -> Mapping[str, Any]:
        space = inner[trial.suggest(BACKBONE, among)].space
        trial.fix(space.fixed)
        fixed = {name: value for name, value in space.fixed.items() if not name.startswith("_")}
        return {**(space.function(trial) or {}), **fixed}

    def of(label: str, proposal: Proposal) -> Proposal:
        return Proposal(
            config=dataclasses.replace(proposal.config, backbone=label),
            params={BACKBONE: label, **proposal.params},
            helpers=proposal.helpers,
            distributions={BACKBONE: among, **proposal.distributions},
        )

    points = {label: [{BACKBONE: label, **point} for point in each.points] for label, each in inner.items()}
    in_turn = [point for row in zip_longest(*points.values()) for point in row if point is not None]
    texts = dict.fromkeys(each.space.source for each in inner.values())
    space = Space(
        name=", ".join(dict.fromkeys(each.space.name for each in inner.values())),
        function=both,
        base=first.base,
        start=tuple(in_turn),
        balance=BACKBONE,
        source="\n".join(texts),
    )
    return CheckedSpace(
        space=space,
        drawn=tuple(of(label, proposal) for label, each in inner.items() for proposal in each.drawn),
        points=tuple(in_turn),
        notes=tuple(dict.fromkeys(note for each in inner.values() for note in each.notes)),
        inner=dict(inner),
    )


def balanced(checked: CheckedSpace) -> str:
    """What gets equal numbers of trials, in words; empty if nothing does."""
    names = [checked.space.balance, *(each.space.balance for each in checked.inner.values())]
    return " and ".join(dict.fromkeys(name for name in names if name))
