"""What a run leaves on disk after each epoch, so that it can be continued: never a state that is half old, half new."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from delta_tune.filesystem.atomic import atomic_write
from delta_tune.results.layout import BEST_FILE, RECORD_FILE


class Checkpoint:
    """The folder of one run: weights and optimizer after its last epoch, a record that names them, the best weights.

    Where a run scores an average of its weights, that is kept beside them, and the best weights are the average's.
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
    def written(self, epoch: int) -> Iterator[None]:
        """Within it another thread writes the state after `epoch`, which must not change; afterwards it is on disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self._write_state, epoch)
            yield
            writing.result()

    def keep_best(self, epoch: int) -> None:
        """The state of that epoch, which was written last, is the best so far."""
        with atomic_write(self.folder / BEST_FILE) as partial:
            partial.unlink(missing_ok=True)
            try:
                os.link(self._files(epoch)[-1], partial)
            except OSError:  # a file system without links
                shutil.copyfile(self._files(epoch)[-1], partial)

    def save(self, epoch: int, record: Mapping[str, Any]) -> None:
        """From here on the run continues after `epoch`; earlier states go."""
        with atomic_write(self.folder / RECORD_FILE) as partial:
            partial.write_text(json.dumps({**record, "epoch": epoch}))
        for pattern in ("weights-*", "optimizer-*", "average-*"):
            for file in self.folder.glob(pattern):
                if file not in self._files(epoch):
                    file.unlink()

    def record(self) -> dict[str, Any] | None:
        """What `save` was given last; None where there is nothing to continue."""
        file = self.folder / RECORD_FILE
        if not file.exists():
            return None
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def load(self, epoch: int, device: torch.device) -> None:
        """Bring model, optimizer and scaler to the state after `epoch`."""
        optimizer, weights, *average = self._files(epoch)
        self._model.load_state_dict(safetensors.torch.load_file(weights, device=str(device)))
        if self._average is not None:
            self._average.module.load_state_dict(safetensors.torch.load_file(average[0], device=str(device)))
            self._average.n_averaged.fill_(1)  # at 0 the next update would begin anew
        state = torch.load(optimizer, map_location=device, weights_only=True)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

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


def last_weights(folder: Path) -> Path:
    """The weights that were scored after a run's last epoch."""
    epoch = json.loads((folder / RECORD_FILE).read_text())["epoch"]
    average = folder / f"average-{epoch}.safetensors"
    return average if average.exists() else folder / f"weights-{epoch}.safetensors"
