"""An exponential moving average of a network's weights, updated after every step."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage(AveragedModel):
    """An exponential average of a network's weights and buffers, without the waits that `AveragedModel` has on a GPU.

    `update_parameters` copies its counter to the device each time, for which the host waits, and averages integer
    buffers one by one. `update` averages all floats by one foreach operator. Integers, the counters of batch norms,
    are not read in eval mode: on a GPU they are copied, on the CPU averaged as `update_parameters` does.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """`decay` ∈ [0, 1): the share of the old average that each update keeps."""
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(model, multi_avg_fn=average, use_buffers=True)
        self._average = average
        self._pairs = tuple(zip(_floats_and_integers(self.module), _floats_and_integers(model), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's weights and buffers; the first call copies them."""
        for average, now in self._pairs:
            if not average:
                continue
            averaged = average[0].is_floating_point() or average[0].device.type == "cpu"
            if averaged and self.n_averaged > 0:
                self._average(average, now, self.n_averaged)
            else:
                torch._foreach_copy_(average, now)
        self.n_averaged += 1


def _floats_and_integers(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    tensors = [t.detach() for t in itertools.chain(model.parameters(), model.buffers())]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
