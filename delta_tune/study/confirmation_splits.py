"""What `--confirm` trains and scores on: new random splits of train and validation, or their folds."""

from __future__ import annotations

from typing import Literal

import numpy as np

from delta_tune.config import StudyConfig, UserError
from delta_tune.data.dataset import Dataset
from delta_tune.data.resampling import hold_out_folds, resample_splits

ConfirmSplits = Literal["random", "folds"]
_MOST_REPETITIONS = 1001
"""One more than --confirm allows."""


def fresh_seed(seed: int, repetition: int) -> int:
    """A seed that the search did not use."""
    return int(np.random.SeedSequence([seed, repetition, 20190505]).generate_state(1)[0] % 2**31)


def run_seed(seed: int, repetition: int, how: ConfirmSplits, planned: int) -> int:
    """The seed of a repetition's runs; of folds, another for each number of them, for then they are others.

    Args:
        seed: of the study.
        repetition: ≥ 0.
        how: the splits are made.
        planned: repetitions that are asked for.
    """
    return fresh_seed(seed, repetition if how == "random" else planned * _MOST_REPETITIONS + repetition)


def confirmation_data(
    dataset: Dataset, how: ConfirmSplits, planned: int, seed: int, *, count: int | None = None
) -> list[Dataset]:
    """The data of each repetition.

    Args:
        dataset: of the search.
        how: new random splits; or folds, of which each holds out other images.
        planned: repetitions that are asked for; all folds together hold out every image.
        seed: of the study.
        count: repetitions that are needed, the first ones; None for all.

    Raises:
        UserError: groups stand in the way.
    """
    count = planned if count is None else count
    if how == "random":
        return [resample_splits(dataset, run_seed(seed, each, how, planned)) for each in range(count)]
    return hold_out_folds(dataset, planned, run_seed(seed, planned, how, planned))[:count]


def described_splits(count: int, how: ConfirmSplits) -> str:
    """The repetitions in words."""
    if how == "random":
        return f"{count} fresh seeds and splits"
    return f"{count} fresh seeds and folds of train and validation"


def check_confirmation(config: StudyConfig, dataset: Dataset) -> str | None:
    """Refuse repetitions that the data is too small for, before the search.

    Returns:
        A sentence for the plan, if some images are in no fold.

    Raises:
        UserError: says how many there may be.
    """
    if not config.confirm:
        return None
    if config.confirm_splits == "random":
        resample_splits(dataset, fresh_seed(config.seed, 0))
        return None
    folds = confirmation_data(dataset, "folds", config.confirm, config.seed)
    if len(folds) < config.confirm:
        what = "images" if dataset.train.groups is None else "groups"
        raise UserError(
            f"--confirm {config.confirm} with --confirm-splits folds needs as many {what} of train and validation that "
            f"can be held out, but there are only enough for {len(folds)}; give fewer, or --confirm-splits random."
        )
    total = len(dataset.train) + len(dataset.val)
    if kept := total - sum(len(fold.val) for fold in folds):
        return (
            f"Of {total} images, {kept} are in no fold, for no other image or group has their label: every run trains "
            f"on them."
        )
    return None


def split_growth(config: StudyConfig, dataset: Dataset) -> float:
    """Training images of a confirming run / of a trial."""
    if config.confirm_splits == "random" or not config.confirm:
        return 1.0
    return split_sizes(dataset, config.confirm_splits, config.confirm)[0] / len(dataset.train)


def split_sizes(dataset: Dataset, how: ConfirmSplits, planned: int) -> tuple[float, float]:
    """Training and validation images of a repetition, on average.

    Folds share training images as random splits do, so that the same correction of intervals holds for them (Nadeau &
    Bengio 2003; Bouckaert & Frank 2004), with the ratio of their own sizes.
    """
    train, val = len(dataset.train), len(dataset.val)
    if how == "random":
        return train, val
    return (train + val) * (1 - 1 / planned), (train + val) / planned
