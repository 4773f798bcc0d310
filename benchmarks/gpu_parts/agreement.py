"""Whether the device computes what the CPU computes: gradients of one batch and a short trial, of every method."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from delta_tune.config import FIRST_MODEL, METHODS, TrialConfig
from delta_tune.data.augmentation import center_crop
from delta_tune.models.backbones import build_target
from delta_tune.models.devices import autocast, without_tf32
from delta_tune.training.co_tuning import SourceHead
from delta_tune.training.objective import Objective
from delta_tune.training.source_map_index import StepKey
from delta_tune.training.source_maps import SourceMaps
from delta_tune.training.task import Task
from delta_tune.training.trial import TrialResult, run_trial
from gpu_parts.bench import Bench, made_up_attention, unbuilt
from gpu_parts.record import Section

PRECISIONS = {"float32": (1e-3, 0.01), "TF32": (0.01, 0.1), "training": (0.03, 0.5)}
"""Precision → how far the loss and the gradients (as a vector) may be from the CPU's, in parts of them."""
TRIAL_TOLERANCE = 0.1
ALPHAS = {"delta": 10.0, "delta_uniform": 10.0, "l2_sp": 0.1}


def configs(bench: Bench) -> dict[str, TrialConfig]:
    """Every method, and L2 with an average of its weights."""
    every = {
        name: bench.config(name, alpha=ALPHAS.get(name, 1.0))
        for name in ("l2", *(name for name in METHODS if name not in ("l2", FIRST_MODEL)))
    }
    return every | {"l2, averaged": bench.config("l2", average_epochs=1.0)}


def gradients(bench: Bench, section: Section) -> None:
    """The loss and its gradients for one batch, with the target moved away from the source so that no term is 0."""
    for name, config in configs(bench).items():
        if config.average_epochs:
            continue
        task = bench.few.on(bench.few.dataset)
        made_up_attention(task)
        task.measurements.measure([config])
        loss, expected = _loss_and_gradients(task, config, torch.device("cpu"))
        for precision, (loss_limit, limit) in PRECISIONS.items():
            if bench.simulated and precision == "TF32":
                continue  # the CPU has none
            exactly = without_tf32() if precision == "float32" else nullcontext()
            with exactly, nullcontext() if precision == "training" else in_float32():
                ours, found = _loss_and_gradients(unbuilt(task), config, bench.device)
            off = abs(ours - loss) / abs(loss)
            distance = float((found - expected).norm() / expected.norm())
            cosine = float(torch.nn.functional.cosine_similarity(found, expected, dim=0))
            section.row(
                method=name, precision=precision, loss=ours, loss_off_by=off, gradients_off_by=distance, cosine=cosine
            )
            section.check(off <= loss_limit, f"{name}, {precision}: the loss is {ours:.6g}, on the CPU {loss:.6g}")
            section.check(distance <= limit, f"{name}, {precision}: gradients are {distance:.2g} of their norm off")


def trials(bench: Bench, section: Section) -> None:
    """A short trial of every method on the CPU, on the device as it trains there, and there in float32."""
    for name, config in configs(bench).items():
        losses = {}
        for where in ("cpu", "device") if bench.simulated else ("cpu", "device", "device, float32"):
            task = bench.few.on(bench.few.dataset)
            made_up_attention(task)
            with in_float32() if where == "device, float32" else nullcontext():
                losses[where] = run_trial(task, config, device="cpu" if where == "cpu" else bench.device)
        section.row(
            method=name, **{f"{where}: loss": losses_of(result)["train_loss"] for where, result in losses.items()}
        )
        for where, result in losses.items():
            for what, loss in losses_of(result).items():
                cpu = losses_of(losses["cpu"])[what]
                section.check(
                    abs(loss - cpu) <= TRIAL_TOLERANCE * abs(cpu),
                    f"{name}, {where}: {what} is {loss:.4g}, {cpu:.4g} on the CPU",
                )


def losses_of(result: TrialResult) -> dict[str, float]:
    """The losses after the last epoch."""
    assert result.epochs, f"the trial ended before its first epoch: {result.error}"
    return {what: result.epochs[-1][what] for what in ("train_loss", "val_loss")}


@contextmanager
def in_float32() -> Iterator[None]:
    """Networks that are built and trained on the device while the block runs are so in float32."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("delta_tune.") and "half_precision" in vars(module):
                stack.enter_context(mock.patch.object(module, "half_precision", return_value=None))
        yield


def _loss_and_gradients(task: Task, config: TrialConfig, device: torch.device) -> tuple[float, Tensor]:
    """The loss of the first batch, and the gradients of all trained parameters as one vector on the CPU."""
    data, backbone = task.dataset.train, task.backbone
    indices = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: config.batch_size].numpy()
    images = center_crop(torch.from_numpy(data.images.batch(indices)).to(device), backbone.preprocessing)
    labels = torch.from_numpy(data.labels[indices]).to(device)
    model = build_target(backbone, len(task.dataset.classes), torch.Generator().manual_seed(0)).eval()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = model.get_submodule(backbone.head)
    source: dict[str, Any] = {}
    if config.uses_behavior:
        factors = task.measurements.channel_factors(config, device)
        maps = SourceMaps(task.source_model(device, tuple(factors)), tuple(factors))
        source = {"source": maps, "factors": factors}
    if config.effective_co_tuning:
        source["source_head"] = SourceHead(backbone, task.measurements.learnt_relationship(), device)
    objective = Objective(config, model, head, **source)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(device)
            parameter += 0.05 * parameter.norm() / parameter.numel() ** 0.5 * noise
    model.requires_grad_(config.method.trains_backbone)
    head.requires_grad_(True)
    key = StepKey(config.seed, config.batch_size, config.image_settings(1), 1, 0)
    with objective.hooked():
        with autocast(device):
            objective.before(images, key)
            loss = objective(model(images), labels, images, key)["train_loss"]
        loss.backward()
    objective.merge_gradients()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat([each.float().cpu().flatten() for each in found])
