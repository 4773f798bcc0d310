"""A run on disk: what is saved now and then, so that the run can be resumed from a state that is never half new.

First the weights and the optimizer are written, under names of their epoch, and the best weights, under the name of
theirs; then `resume.json`, which names both epochs.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.untrusted import Number, Scalar, Text, read_json, refusing
from delta_tune.models.backbones import load_state
from delta_tune.results.columns import check_epochs
from delta_tune.results.layout import BEST_FILE, RESUME_FILE

INTERVAL_S = 30.0
"""Seconds of training after which a run is saved again, at the end of the epoch: what a crash loses of its work."""
SHORTEST_S, SAVING_SHARE = 2.0, 0.05
"""It is saved more often, every `SHORTEST_S`, as long as that takes at most this share of its time."""
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


def best_weights(folder: Path, point: ResumePoint) -> Path:
    """The weights of the best epoch of the unfinished run in `folder`."""
    best = folder / f"best-{point.best_epoch}.safetensors"
    return best if best.exists() else folder / BEST_FILE  # an earlier version's


class Checkpoint:
    """Saves one run to its folder, from a copy and in a thread of its own, while the run goes on; a context manager.

    If the run scores an average of its weights, the average is saved too, and the best weights are the average's.

    Args:
        folder: the run's.
        model: what is trained.
        optimizer: its optimizer.
        scaler: its gradient scaler.
        average: the average of its weights, if there is one.
        source_head: what is trained beside the model and is no part of it, if there is such a thing.
        saved: called in that thread with the epoch once it is on disk; the run is not saved again until it returns.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        average: AveragedModel | None = None,
        saved: Callable[[int], None] | None = None,
        source_head: nn.Module | None = None,
    ) -> None:
        self.folder = folder
        self._model, self._optimizer, self._scaler, self._average = model, optimizer, scaler, average
        self._saved, self._source_head = saved, source_head
        self._thread = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        self._saved_at, self._save_seconds = time.monotonic(), 0.0
        self._best_epoch: int | None = None  # whose weights are in the folder

    @property
    def due(self) -> bool:
        """Whether the last save is over, and began long enough ago.

        Raises:
            Exception: the last save failed.
        """
        if self._saving is not None and self._saving.done():
            self.wait()
        interval = min(INTERVAL_S, max(SHORTEST_S, self._save_seconds / SAVING_SHARE))
        return self._saving is None and time.monotonic() - self._saved_at >= interval

    def save(self, point: ResumePoint, best: Mapping[str, Tensor] | None, *, final: bool = False) -> None:
        """Copy the state now, and make it where the run resumes from while the run goes on.

        Args:
            point: the state's.
            best: weights of its best epoch on the CPU, which nobody changes; None if they are in the folder.
            final: whether the run is over: its best weights get the name that they are known by.
        """
        self.wait()
        self._saved_at = time.monotonic()
        networks = [self._model] if self._average is None else [self._model, self._average.module]
        if best is not None and point.best_epoch == point.epoch:  # a copy of the last of them
            weights = [*(cpu_copy(network.state_dict()) for network in networks[:-1]), best]
        else:
            weights = [cpu_copy(network.state_dict()) for network in networks]
        beside = {} if self._source_head is None else {"source_head": self._source_head.state_dict()}
        state = cpu_copy({"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict(), **beside})
        content = json.dumps(asdict(point))
        self._saving = self._thread.submit(self._write, point, content, weights, state, best, final)

    def wait(self) -> None:
        """Wait for a save that is on its way.

        Raises:
            Exception: it failed.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for a save that is on its way, whatever comes of it."""
        self._thread.shutdown()

    def keep_best(self, epoch: int, best: Mapping[str, Tensor] | None) -> None:
        """Give the weights of the best epoch the name that they are known by; `best` is as in `save`."""
        self.wait()
        self._write_best(epoch, best, None)
        _link(self._best_file(epoch), self.folder / BEST_FILE)

    def load(self, point: ResumePoint, device: torch.device) -> None:
        """Bring model, optimizer and scaler to the state of `point`.

        Raises:
            UserError: a file is missing, damaged, or another run's.
        """
        optimizer, weights, *average = self._files(point.epoch)
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
                if self._source_head is not None:
                    self._source_head.load_state_dict(state["source_head"])
            except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(next(iter(str(error).splitlines()), type(error).__name__)) from error
        self._best_epoch = point.best_epoch
        if point.best_epoch is not None and not (best := self._best_file(point.best_epoch)).exists():
            with refusing(best, ADVICE):
                (self.folder / BEST_FILE).replace(best)  # an earlier version's

    def _files(self, epoch: int) -> list[Path]:
        """The optimizer's, the weights', the average's if there is one: the last is what was scored."""
        names = [f"optimizer-{epoch}.pt", f"weights-{epoch}.safetensors"]
        names += [] if self._average is None else [f"average-{epoch}.safetensors"]
        return [self.folder / name for name in names]

    def _best_file(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}.safetensors"

    def _write(
        self,
        point: ResumePoint,
        content: str,
        weights: list[Mapping[str, Tensor]],
        state: dict[str, Any],
        best: Mapping[str, Tensor] | None,
        final: bool,
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        optimizer, *files = kept = self._files(point.epoch)
        for file, tensors in zip(files, weights, strict=True):
            save_weights(tensors, file)
        # An open file, because torch's own does not tell why it cannot be written.
        with atomic_write(optimizer) as partial, partial.open("wb") as opened:
            torch.save(state, opened)
        if point.best_epoch is not None:
            self._write_best(point.best_epoch, best, files[-1] if point.best_epoch == point.epoch else None)
            kept.append(self._best_file(point.best_epoch))
        with atomic_write(self.folder / RESUME_FILE) as partial:
            partial.write_text(content)
        for pattern in ("weights-*", "optimizer-*", "average-*", "best-*"):
            for file in self.folder.glob(pattern):
                if file not in kept:
                    file.unlink()
        if final and point.best_epoch is not None:
            _link(self._best_file(point.best_epoch), self.folder / BEST_FILE)
        if self._saved is not None:
            self._saved(point.epoch)
        self._save_seconds = time.monotonic() - self._saved_at

    def _write_best(self, epoch: int, best: Mapping[str, Tensor] | None, same: Path | None) -> None:
        """Write the best weights, unless they are there; `same` is a file that holds them."""
        if epoch == self._best_epoch:
            return
        if same is not None:
            _link(same, self._best_file(epoch))
        else:
            assert best is not None, f"the weights of epoch {epoch} are neither in memory nor in {self.folder}"
            self.folder.mkdir(parents=True, exist_ok=True)
            save_weights(best, self._best_file(epoch))
        self._best_epoch = epoch


def cpu_copy(value: Any) -> Any:
    """A copy on the CPU of the tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: cpu_copy(each) for name, each in value.items()}
    return [cpu_copy(each) for each in value] if isinstance(value, list) else value


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write a network's tensors to a safetensors file, atomically."""
    with atomic_write(file) as partial:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial)


def _link(file: Path, name: Path) -> None:
    """Give a file a second name."""
    with atomic_write(name) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(file, partial)
        except OSError:  # a file system without links
            shutil.copyfile(file, partial)


def _load_weights(network: nn.Module, file: Path, device: torch.device) -> None:
    with refusing(file, ADVICE):
        try:
            load_state(network, safetensors.torch.load_file(file, device=str(device)))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise ValueError(str(error).splitlines()[0]) from error
