"""A run on disk: what is saved after each epoch, so that the run can be resumed from a state that is never half new.

First the weights and the optimizer are written, under names of their epoch, then `resume.json`, which names the epoch.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import BaseModel, Field
from torch import nn
from torch.optim.swa_utils import AveragedModel

from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.untrusted import Number, Scalar, Text, read_json, refusing
from delta_tune.models.backbones import load_state
from delta_tune.results.columns import check_epochs
from delta_tune.results.layout import BEST_FILE, RESUME_FILE

ADVICE = "remove the folder that it lies in, and the run begins anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """Where a run resumes: the content of its `resume.json`."""

    config: dict[str, Any]
    """`TrialConfig.record()` of the run."""
    rows: list[dict[str, Any]]
    """Of the epochs so far, as in `TrialResult.epochs`."""
    first_loss: float | None
    """Training loss of the first batch."""
    best_epoch: int | None
    epoch: int
    """The last epoch, whose state lies in the same folder."""


class ResumeContent(BaseModel):
    """What `resume.json` must have; each row is checked as one of `epochs.parquet`."""

    config: dict[Text, Scalar]
    rows: Annotated[list[dict[Text, Scalar]], Field(min_length=1)]
    first_loss: Number | None
    best_epoch: Annotated[int, Field(ge=1)] | None
    epoch: int


def read_resume_point(folder: Path) -> ResumePoint | None:
    """Where the run in `folder` resumes; None if there is nothing to resume.

    Raises:
        UserError: its `resume.json` is damaged.
    """
    file = folder / RESUME_FILE
    if not file.exists():
        return None
    with refusing(file, ADVICE):
        found = read_json(file, ResumeContent, finite=False)
        check_epochs([{"trial_id": "", **row} for row in found["rows"]])
        count = len(found["rows"])
        if found["epoch"] != count or [row["epoch"] for row in found["rows"]] != list(range(1, count + 1)):
            raise ValueError("its rows are not those of the epochs 1, 2, 3 and so on")
        if (found["best_epoch"] or 1) > count:
            raise ValueError("the best epoch is one that it has not")
        return ResumePoint(**{each.name: found[each.name] for each in fields(ResumePoint)})


def last_weights(folder: Path) -> Path:
    """The weights that were scored after the last epoch of the run in `folder`."""
    point = read_resume_point(folder)
    assert point is not None, f"{folder} holds no run"
    average = folder / f"average-{point.epoch}.safetensors"
    return average if average.exists() else folder / f"weights-{point.epoch}.safetensors"


class Checkpoint:
    """Writes the folder of one run: weights and optimizer after its last epoch, its resume point, its best weights.

    If the run scores an average of its weights, the average is saved too, and the best weights are the average's.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        average: AveragedModel | None = None,
    ) -> None:
        self.folder = folder
        self._model, self._optimizer, self._scaler, self._average = model, optimizer, scaler, average

    @contextmanager
    def writing(self, epoch: int) -> Iterator[None]:
        """Write the state after `epoch` in another thread while the block runs, which must leave that state alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self._write_state, epoch)
            yield
            writing.result()

    def save_best(self, epoch: int) -> None:
        """Save the weights of that epoch, whose state was written last, as the best so far."""
        with atomic_write(self.folder / BEST_FILE) as partial:
            partial.unlink(missing_ok=True)
            try:
                os.link(self._files(epoch)[-1], partial)
            except OSError:  # a file system without links
                shutil.copyfile(self._files(epoch)[-1], partial)

    def save(self, point: ResumePoint) -> None:
        """Make this where the run resumes, and delete the states of earlier epochs."""
        with atomic_write(self.folder / RESUME_FILE) as partial:
            partial.write_text(json.dumps(asdict(point)))
        for pattern in ("weights-*", "optimizer-*", "average-*"):
            for file in self.folder.glob(pattern):
                if file not in self._files(point.epoch):
                    file.unlink()

    def load(self, epoch: int, device: torch.device) -> None:
        """Bring model, optimizer and scaler to the state after `epoch`.

        Raises:
            UserError: a file is damaged, or another run's.
        """
        optimizer, weights, *average = self._files(epoch)
        _load_weights(self._model, weights, device)
        if self._average is not None:
            _load_weights(self._average.module, average[0], device)
            self._average.n_averaged.fill_(1)  # at 0 the next update would begin anew
        with refusing(optimizer, ADVICE):
            try:
                with warnings.catch_warnings():  # a pickle of another kind warns before it fails
                    warnings.simplefilter("ignore")
                    state = torch.load(optimizer, map_location=device, weights_only=True)
                self._optimizer.load_state_dict(state["optimizer"])
                if state["scaler"]:  # a device that needs no scaling leaves none
                    self._scaler.load_state_dict(state["scaler"])
            except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(next(iter(str(error).splitlines()), type(error).__name__)) from error

    def _files(self, epoch: int) -> list[Path]:
        """The optimizer's, the weights', the average's if there is one: the last is what was scored."""
        names = [f"optimizer-{epoch}.pt", f"weights-{epoch}.safetensors"]
        names += [] if self._average is None else [f"average-{epoch}.safetensors"]
        return [self.folder / name for name in names]

    def _write_state(self, epoch: int) -> None:
        optimizer, *weights = self._files(epoch)
        networks = [self._model] if self._average is None else [self._model, self._average.module]
        for file, network in zip(weights, networks, strict=True):
            with atomic_write(file) as partial:
                safetensors.torch.save_file({k: v.contiguous() for k, v in network.state_dict().items()}, partial)
        # An open file, because torch's own does not tell why it cannot be written.
        with atomic_write(optimizer) as partial, partial.open("wb") as opened:
            torch.save({"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}, opened)


def _load_weights(network: nn.Module, file: Path, device: torch.device) -> None:
    with refusing(file, ADVICE):
        try:
            load_state(network, safetensors.torch.load_file(file, device=str(device)))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise ValueError(str(error).splitlines()[0]) from error
