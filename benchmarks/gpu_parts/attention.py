"""Attention by plans against a forward pass for each channel: whether plans exist on the device, agree and pay."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_tune.attention.ablation import Ablation
from delta_tune.data.augmentation import center_crop
from delta_tune.models.backbones import build_target
from delta_tune.models.feature_maps import forward_hooks
from gpu_parts.bench import Bench, median, ratios
from gpu_parts.record import Section

BYTE_BUDGET = 2**30
IMAGES = 8
LEAST_CORRELATION = 0.98


def planned_attention(bench: Bench, section: Section) -> None:
    """Seconds of a layer both ways, and how the losses of some channels correlate: plan, loop, loop on the CPU."""
    task = bench.few
    data, layers = task.dataset.train, task.backbone.layers
    pick = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:IMAGES].numpy()
    pixels, labels = torch.from_numpy(data.images.batch(pick)), torch.from_numpy(data.labels[pick])
    model = build_target(task.backbone, len(task.dataset.classes), torch.Generator().manual_seed(0)).eval()
    head = model.get_submodule(task.backbone.head)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter *= 10  # a head that has learnt something
    on_cpu = center_crop(pixels, task.backbone.preprocessing)
    expected = {layer: _by_loop(model, on_cpu, labels, layer, bench.sizes.channels) for layer in layers}
    model, labels = model.to(bench.device), labels.to(bench.device)
    images = center_crop(pixels.to(bench.device), task.backbone.preprocessing)
    ablation = Ablation(model, images[:2], layers)
    for note in ablation.notes:
        section.fail(f"no plan: {note}")
    for layer in layers:
        planned: dict[str, Tensor] = {}

        def by_plan(layer: str = layer, planned: dict[str, Tensor] = planned) -> None:
            planned.update(ablation.losses(images, labels, [layer], BYTE_BUDGET))

        def by_loop(layer: str = layer, planned: dict[str, Tensor] = planned) -> None:
            planned["loop"] = _by_loop(model, images, labels, layer, bench.sizes.channels)

        times = bench.in_turns({"plan": by_plan, "loop": by_loop})
        channels = ablation.channels[layer]
        sampled = torch.linspace(0, channels - 1, min(channels, bench.sizes.channels)).long()
        d, loop = planned[layer].mean(0)[sampled], planned["loop"]
        scale = channels / len(sampled)
        section.row(
            layer=layer,
            channels=channels,
            plan_s=median(times["plan"]),
            loop_s=scale * median(times["loop"]),
            loop_to_plan=scale * median(ratios(times, "plan")["loop"]),
            correlation_with_loop=_correlation(d, loop),
            correlation_with_CPU=_correlation(d, expected[layer]),
        )
        for other, name in ((loop, "the loop on the device"), (expected[layer], "the loop on the CPU")):
            correlation = _correlation(d, other)
            section.check(
                correlation >= LEAST_CORRELATION, f"{layer}: losses correlate by {correlation:.3f} with those of {name}"
            )


def _by_loop(model: nn.Module, images: Tensor, labels: Tensor, layer: str, count: int) -> Tensor:
    """The mean loss of switching a channel off, for `count` channels spread over the layer: float64, on the CPU."""

    def losses() -> Tensor:
        return F.cross_entropy(model(images).double(), labels)

    channels = 0

    def note(name: str, inputs: object, output: Tensor) -> None:
        nonlocal channels
        channels = output.shape[1]

    with torch.inference_mode():
        with forward_hooks(model, [layer], note):
            intact = losses()
        found = []
        for channel in torch.linspace(0, channels - 1, min(channels, count)).long().tolist():

            def switch_off(name: str, inputs: object, output: Tensor, channel: int = channel) -> Tensor:
                output = output.clone()
                output[:, channel] = 0
                return output

            with forward_hooks(model, [layer], switch_off):
                found.append(losses() - intact)
        return torch.stack(found).cpu()


def _correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.double().cpu(), other.double().cpu()]))[0, 1])
