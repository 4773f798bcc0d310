"""The networks of a study's trials: what each is called, which of them a trial has, what is searched for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from delta_tune.config import Candidate, TrialConfig, UserError, as_utf8, did_you_mean, labels_of
from delta_tune.models.map_layout import describe_layers
from delta_tune.results.study_identity import BackboneIdentity
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.training.task import Task


def label_tasks(tasks: Sequence[Task], known: Sequence[BackboneIdentity] = ()) -> dict[str, Task]:
    """Label → task, in their order; a study of one network has the model's name.

    Args:
        tasks: of the study's networks, the one that was screened best first; ≥ 1.
        known: the networks of the study that is resumed: files may have moved since, and labels stay.

    Raises:
        UserError: two networks have the same weights.
    """
    if len(tasks) == 1:
        return {tasks[0].backbone.model: tasks[0]}
    former = {each.fingerprints["weights"]: each.label for each in known}
    candidates = [Candidate(task.backbone.model, task.backbone.weights) for task in tasks]
    found: dict[str, Task] = {}
    for label, task in zip(labels_of(candidates), tasks, strict=True):
        label = former.get(task.backbone.fingerprint, as_utf8(label))
        same = [name for name, each in found.items() if each.backbone.fingerprint == task.backbone.fingerprint]
        if same or label in found:
            raise UserError(
                f"--model names {same[0] if same else label} twice: both have the same weights; name another network, "
                f"or one alone."
            )
        found[label] = task
    return found


def layers_of_tokens(tasks: Mapping[str, Task]) -> str:
    """The hooked layers of networks whose channels are those of tokens, in words; empty if there are none."""
    told = []
    for label, task in tasks.items():
        layers, sentence = describe_layers(task.backbone.layers, task.backbone.channels, task.backbone.layouts)
        if sentence:
            told.append(f"{f'{label}: ' if len(tasks) > 1 else ''}{layers}. {sentence}")
    return " ".join(told)


def task_of(tasks: Mapping[str, Task], config: TrialConfig) -> Task:
    """The task that a configuration runs on: the first, if it names no network."""
    return next(iter(tasks.values())) if config.backbone is None else tasks[config.backbone]


def used_tasks(tasks: Mapping[str, Task], checked: CheckedSpace) -> dict[str, Task]:
    """The tasks of the networks that trials of this space have.

    Raises:
        UserError: a trial would have a network that is none of the study's.
    """
    first, named = next(iter(tasks)), {config.backbone for config in checked.configs}
    if strange := sorted(label for label in named if label is not None and label not in tasks):
        raise UserError(
            f"{checked.space.name} has trials of the backbone {strange[0]!r}{did_you_mean(strange[0], tasks)}, but the "
            f"study has {' and '.join(tasks)}; name it alone with --model, or leave its trials out."
        )
    return {label: task for label, task in tasks.items() if label in named or (label == first and None in named)}


def space_of(tasks: Mapping[str, Task], label: str, checked: CheckedSpace) -> CheckedSpace:
    """What is searched for one of the networks: the space, with the configurations that it draws for it."""
    if len(tasks) == 1:
        return checked
    return checked.only(label, default=label == next(iter(tasks)))
