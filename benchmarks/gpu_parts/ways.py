"""Choices of the trainer against others: half precision, channels last, pinned copies, the source's maps computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from delta_tune.models.backbones import build_target
from delta_tune.models.devices import autocast, to_device
from delta_tune.models.feature_maps import feature_maps
from gpu_parts.bench import Bench, median, ratios
from gpu_parts.record import Section


def ways(bench: Bench, section: Section) -> None:
    """Each choice and its alternatives, in turns; ratios are to what the trainer does, named first."""
    for what, alternatives in (
        ("a step", _steps(bench)),
        ("a batch's copy", _copies(bench)),
        ("source's maps", _maps(bench)),
    ):
        times = bench.in_turns(alternatives, repeats=1 if bench.simulated else 10)
        chosen = next(iter(alternatives))
        for name, against in ratios(times, chosen).items():
            section.row(of=what, way=name, ms=1000 * median(times[name]), times_ours=median(against))


def _steps(bench: Bench) -> dict[str, Callable[[], None]]:
    size, device = bench.sizes.image_size, bench.device
    images = torch.rand(bench.sizes.batch_size, 3, size, size, device=device)
    labels = torch.zeros(bench.sizes.batch_size, dtype=torch.long, device=device)

    def step_of(*, half: bool = True, last: bool = True) -> Callable[[], None]:
        memory_format = torch.channels_last if last else torch.contiguous_format
        model = build_target(bench.task.backbone, len(bench.task.dataset.classes), torch.Generator().manual_seed(0))
        model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
        inputs = images.contiguous(memory_format=memory_format)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

        def step() -> None:
            with autocast(device) if half else nullcontext():
                loss = F.cross_entropy(model(inputs).float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return step

    return {
        "half precision, channels last": step_of(),
        "float32 (TF32)": step_of(half=False),
        "contiguous": step_of(last=False),
    }


def _copies(bench: Bench) -> dict[str, Callable[[], Tensor]]:
    side = bench.task.backbone.preprocessing.stored_size
    shape = (bench.sizes.batch_size, side, side, 3)
    pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    return {
        "pinned": lambda: to_device(pixels, bench.device),
        "pageable": lambda: torch.from_numpy(pixels).to(bench.device),
    }


def _maps(bench: Bench) -> dict[str, Callable[[], object]]:
    layers, size = bench.task.backbone.layers, bench.sizes.image_size
    source = bench.task.source_model(bench.device, layers)
    images = torch.rand(bench.sizes.batch_size, 3, size, size, device=bench.device)
    images = images.contiguous(memory_format=torch.channels_last)

    def forward() -> dict[str, Tensor]:
        with torch.no_grad(), autocast(bench.device), feature_maps(source, layers, stop=True) as maps:
            return dict(maps.run(images))

    held = [each.cpu() for each in forward().values()]
    pinned = [each if bench.simulated else each.pin_memory() for each in held]
    return {
        "computed": forward,
        "fetched from the host": lambda: [each.to(bench.device, non_blocking=True) for each in pinned],
    }
