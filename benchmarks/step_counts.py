"""Kernel launches, waits and bytes of a training step of each method, counted on a simulated GPU.

    python benchmarks/step_counts.py [--nets resnet50 timm:tf_efficientnet_lite0]

No GPU is needed and none is timed. `tests/helpers/simulated_gpu.py` counts what `run_trial(device="cuda")` asks of the
device between one optimizer step and the next, in the second epoch; what an operator launches beyond one kernel is not
seen. Convolutions, whose values do not matter here, return zeros. Bytes are those that operators read and write: a part
per image and a part per step, from batches of two sizes. Weights and photos are random.

Counted twice: as on a GPU with Triton and CUDA graphs, where the replay of the source's graph is one launch, and
without both.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from delta_tune.config import TrialConfig
from delta_tune.models import cuda_graph
from delta_tune.models.architectures import build_unfilled
from delta_tune.training import fused_behavior
from delta_tune.training.task import Task, prepare
from delta_tune.training.trial import run_trial

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from helpers.simulated_gpu import Call, SimulatedGPU, by_operator, simulated_gpu  # noqa: E402

NETS = {"timm:test_resnet": 64, "resnet50": 224, "timm:tf_efficientnet_lite0": 224}
METHODS: dict[str, dict[str, Any]] = {
    "l2": {"regularizer": "l2"},
    "l2 + average": {"regularizer": "l2", "average_epochs": 0.5},
    "l2_sp": {"regularizer": "l2_sp"},
    "delta, delta_uniform": {"regularizer": "delta_uniform"},  # they differ in the values of the factors alone
}
BATCH = 32
COUNTED = (2, 4)
"""Sizes of the batches that are counted; bytes at `BATCH` follow from the straight line through both."""
PIXELS = 64
"""Side of the images that are counted: maps of these networks grow with the pixels, exactly at multiples of 32."""


@dataclass(frozen=True)
class Step:
    """What a step asks of the device."""

    launches: int
    waits: int
    bytes_per_image: float
    bytes_besides: float
    """Of the weights: once a step."""

    @property
    def gigabytes(self) -> float:
        """Of a step of `BATCH` images."""
        return (self.bytes_per_image * BATCH + self.bytes_besides) / 1e9


class NoConvolutions(TorchDispatchMode):
    """Convolutions return zeros, of the right shapes and strides, at once."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward):
            return func(*args, **(kwargs or {}))
        result = func(*tree_map_only(torch.Tensor, lambda x: x.to("meta"), args), **(kwargs or {}))
        return tree_map_only(torch.Tensor, lambda x: torch.zeros_like(x, device="cpu"), result)


def count_step(net: str, method: str, *, fused: bool) -> Step:
    """Count a step of a method.

    Args:
        net: as for `--model`.
        method: key of `METHODS`.
        fused: whether the device has Triton and CUDA graphs.
    """
    (launches, waits, small), (_, _, large) = (_counted(task_of(net, size), method, size, fused) for size in COUNTED)
    per_image = (large - small) / (COUNTED[1] - COUNTED[0])
    scale = (NETS[net] / PIXELS) ** 2
    return Step(launches, waits, per_image * scale, small - per_image * COUNTED[0])


def task_of(net: str, batch_size: int) -> Task:
    """Random weights, and photos for three batches."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        for split, count in (("train", 3 * batch_size), ("val", 2)):
            for i in range(count):
                file = Path(folder, "photos", split, "ab"[i % 2], f"{i}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)).save(file)
        torch.manual_seed(0)
        weights = Path(folder, "weights.safetensors")
        empty = build_unfilled(net).state_dict()  # of any values, NaN too
        state = {name: _random(value) for name, value in empty.items()}
        safetensors.torch.save_file(state, weights)
        return prepare(Path(folder, "photos"), net, str(weights), image_size=PIXELS)


def _random(like: torch.Tensor) -> torch.Tensor:
    """Small values, positive for the variances of norms, so that no network overflows."""
    if not like.is_floating_point():
        return torch.zeros_like(like)
    return 0.01 * torch.randn(like.shape) if like.dim() > 1 else torch.rand(like.shape) + 0.1


def _counted(task: Task, method: str, batch_size: int, fused: bool) -> tuple[int, int, int]:
    """Launches, waits and bytes between the last two optimizer steps of two epochs."""
    seen: list[tuple[int, int, int]] = []
    config = TrialConfig(**METHODS[method], batch_size=batch_size, max_epochs=2, lr=1e-5)
    with NoConvolutions(), simulated_gpu() as gpu, _with_kernels(gpu, fused):
        handle = register_optimizer_step_post_hook(lambda *_: seen.append(_totals(gpu)))
        try:
            run_trial(task, config, device="cuda")
        finally:
            handle.remove()
    before, after = seen[-2:]
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def _totals(gpu: SimulatedGPU) -> tuple[int, int, int]:
    operators = by_operator(gpu.launches)
    launches = operators.total()
    # The operators of the term take all layers: forward a kernel for each and a sum, backward a kernel for each
    launches += operators["behavior"] * LAYERS + operators["behavior_backward"] * (LAYERS - 1)
    return launches, gpu.waits.total(), gpu.bytes.total()


LAYERS = 4
"""Hooked layers of the networks here."""


@contextmanager
def _with_kernels(gpu: SimulatedGPU, fused: bool) -> Iterator[None]:
    """Triton and CUDA graphs, or neither of them."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(fused_behavior, "triton", fused or None))
        stack.enter_context(mock.patch.object(fused_behavior, "_checked", {}))
        stack.enter_context(mock.patch.object(cuda_graph, "capture_graph", _capture(gpu) if fused else _refuse))
        stack.enter_context(mock.patch.object(cuda_graph, "_log"))
        yield


def _refuse(forward: cuda_graph.Forward, images: torch.Tensor) -> cuda_graph.Captured:
    raise RuntimeError("no graphs here")


def _capture(gpu: SimulatedGPU) -> Callable[[cuda_graph.Forward, torch.Tensor], cuda_graph.Captured]:
    """A graph that runs the forward pass at each replay, and counts it as one launch with all its bytes."""

    def capture(forward: cuda_graph.Forward, images: torch.Tensor) -> cuda_graph.Captured:
        fixed, maps = images.clone(), dict(forward(images))

        def replay() -> None:
            before = gpu.launches.copy()
            maps.update(forward(fixed))
            gpu.launches = before
            gpu.launches[Call("graph", "replay")] += 1

        return cuda_graph.Captured(fixed, replay, maps)

    return capture


def table(net: str) -> str:
    """A step of each method with kernels and graphs, and without, as a table of Markdown."""
    steps = {method: (count_step(net, method, fused=True), count_step(net, method, fused=False)) for method in METHODS}
    name = f"{net.removeprefix('timm:')}, {NETS[net]} px, batch {BATCH}"
    lines = [
        f"| {name} | launches | of l2's | waits | GB | of l2's | without both: launches | GB |",
        f"|{' --- |' * 8}",
    ]
    base = steps["l2"][0]
    for method, (step, plain) in steps.items():
        lines.append(
            f"| {method} | {step.launches:,} | {step.launches / base.launches:.2f} | {step.waits} "
            f"| {step.gigabytes:.2f} | {step.gigabytes / base.gigabytes:.2f} "
            f"| {plain.launches:,} | {plain.gigabytes:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS)[1:])
    for net in parser.parse_args().nets:
        print(table(net), flush=True)


if __name__ == "__main__":
    main()
