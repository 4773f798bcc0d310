"""Which backbones a study goes on with: the one that was named, or those that screening keeps of several."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence

from delta_tune.config import DATA_OPTIONS, SIZES, Candidate, StudyConfig, UserError, candidates_of, labels_of
from delta_tune.console.progress import Progress
from delta_tune.data.cutting import CutData, cut_for_study
from delta_tune.data.training_sample import TrainingSample
from delta_tune.models.availability import at_hand
from delta_tune.models.backbones import Backbone
from delta_tune.results.screened import Screening
from delta_tune.results.study_record import StudyRecord
from delta_tune.study.screening import room_of, screen, this_machine
from delta_tune.training.task import Task

_OF_READING = ("skip_damaged", "drop_duplicates", "resize", "white")
"""Settings of the data that do not matter to `cut_for_study`."""


def choose_backbones(
    config: StudyConfig,
    record: StudyRecord,
    *,
    left_open: Collection[str],
    batch_size: int,
    seconds_left: float | None,
    suits: Callable[[str, Task], None],
    progress: Progress,
) -> tuple[Sequence[Candidate | Backbone], CutData | None]:
    """The backbones of a study, the best first, at most two; several are screened once, which the record notes.

    Args:
        config: the settings.
        record: of the study; it has what an earlier session chose.
        left_open: names of the settings that the time budget decides.
        batch_size: of most trials.
        seconds_left: of the time budget; None if there is none.
        suits: given label and task, raises UserError for a network with which the study cannot do what it is asked to.
        progress: prints to the user.

    Returns:
        The backbones, those that were screened now as they are loaded; and the examples of the data if they had to be
        listed.

    Raises:
        UserError: no backbone can be used, or what was named is not there.
    """
    candidates = candidates_of(config.model, config.weights)
    if len(candidates) == 1:
        return list(candidates), None
    if record.screening is not None:
        return kept_before(record.screening, candidates, config.model), None
    options = {name: getattr(config, name) for name in DATA_OPTIONS if name not in _OF_READING}
    cut = cut_for_study(config.data, seed=config.seed, **options)
    sample = TrainingSample(cut, config.resize, config.white, config.seed)
    machine = this_machine(config)
    steps = math.ceil(len(sample.labels) / batch_size)
    found, kept = screen(
        candidates,
        sample,
        image_size=config.image_size,
        channels=config.channels,
        seed=config.seed,
        room=room_of(config, left_open, steps, machine, seconds_left),
        machine=machine,
        suits=suits,
        progress=progress,
    )
    record.set_screening(found)
    return kept, cut


def kept_before(screening: Screening, candidates: Collection[Candidate], model: str | None) -> list[Candidate]:
    """The candidates that a screening kept, the best first; files are taken from the candidates alone.

    Args:
        screening: of this study, which anybody may have written.
        candidates: that the user names.
        model: `--model`.

    Raises:
        UserError: a network was kept that the user does not name.
    """
    known = dict(zip(labels_of(list(candidates)), candidates, strict=True))
    found = []
    for network in screening.kept:
        candidate = known.get(network.label)
        if (
            candidate is None
            and set(str(model).split(",")) & SIZES.keys()
            and re.fullmatch(r"(timm:)?[\w.]+", network.model)
        ):
            candidate = Candidate(network.model, listed=True)  # of a list of an earlier version
        if candidate is None:
            raise UserError(
                f"study.json has kept the network {network.label!r}, which --model {model} does not name; start a new "
                f"study."
            )
        found.append(at_hand(candidate))
    if not found:
        raise UserError("study.json has kept none of its networks; start a new study.")
    return found
