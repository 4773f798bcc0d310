"""The ablation engine against a masked forward per channel, on a tiny net of every graph family."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from delta_tune.attention import ablation
from delta_tune.attention.ablation_plan import Plan
from delta_tune.attention.channel_losses import ablation_losses_per_image
from delta_tune.models import onednn
from delta_tune.models.graph import trace

CLASSES = 5


def conv_norm(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True) if act else nn.Identity())


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels, CLASSES))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_norm(inputs, outputs, 1, stride, act=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand = conv_norm(channels, 2 * channels, 1)
        self.depthwise = conv_norm(2 * channels, 2 * channels, 3, stride, groups=2 * channels)
        self.project = conv_norm(2 * channels, outputs, 1, act=False)
        self.skip = stride == 1 and channels == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.skip else out


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 6)
        self.first = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, padding=1))
        self.second = nn.Sequential(nn.BatchNorm2d(10), nn.ReLU(inplace=True), nn.Conv2d(10, 4, 3, padding=1))
        self.transition = nn.Sequential(nn.BatchNorm2d(14), nn.ReLU(inplace=True), nn.Conv2d(14, 6, 1), nn.AvgPool2d(2))
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        features.append(self.first(torch.cat(features, 1)))
        features.append(self.second(torch.cat(features, 1)))
        return self.head(self.transition(torch.cat(features, 1)))


class Fire(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, 3, 1)
        self.expand1 = nn.Conv2d(3, 4, 1)
        self.expand3 = nn.Conv2d(3, 4, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.squeeze(x))
        return torch.cat([self.activation(self.expand1(x)), self.activation(self.expand3(x))], 1)


class Gated(nn.Module):
    """Squeeze and excitation, with SiLU: a channel's gate depends on all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.restore = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.restore(F.silu(self.reduce(x.mean((2, 3), keepdim=True)), inplace=True))
        return x * gate.sigmoid()


class Twice(nn.Module):
    """One module run twice, so that its channel is off in both places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = conv_norm(3, 6), nn.Conv2d(6, 6, 3, padding=1), head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(F.relu(self.again(self.stem(x)))))


class Branching(nn.Module):
    """Control flow on values, which cannot be traced, in a block of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 1e9 else x.tanh()


class BranchingAtTheTop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = chain()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if float(x.sum()) < 1e9 else self.net(2 * x)


class Centred(nn.Module):
    """Logits that depend on the other images of the batch: stacking variants would change them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = chain()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits - logits.mean(0)


def chain() -> nn.Sequential:
    return nn.Sequential(conv_norm(3, 6), conv_norm(6, 8, 5, 2), nn.MaxPool2d(2), conv_norm(8, 6), head(6))


def flat_head() -> nn.Sequential:
    return nn.Sequential(conv_norm(3, 6, 3, 2), conv_norm(6, 4, 3, 2), nn.Flatten(), nn.Linear(64, CLASSES))


def residual() -> nn.Sequential:
    return nn.Sequential(conv_norm(3, 6), Residual(6, 6, 1), Residual(6, 8, 2), Residual(8, 8, 1), head(8))


def inverted_residual() -> nn.Sequential:
    blocks = (InvertedResidual(4, 4, 1), InvertedResidual(4, 6, 2), InvertedResidual(6, 6, 1))
    return nn.Sequential(conv_norm(3, 4), *blocks, head(6))


def fire() -> nn.Sequential:
    relu, pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)
    classifier = (nn.Dropout(0.5), nn.Conv2d(8, CLASSES, 1), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2), relu, Fire(6), pool, Fire(8), *classifier)


def gated() -> nn.Sequential:
    return nn.Sequential(conv_norm(3, 6), Gated(6), conv_norm(6, 6), Gated(6), head(6))


def grouped() -> nn.Sequential:
    return nn.Sequential(conv_norm(3, 6), conv_norm(6, 12, 3, 2, groups=3), head(12))


def untraceable_block() -> nn.Sequential:
    return nn.Sequential(conv_norm(3, 6), Branching(), head(6))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "chain": (chain, ("0.0", "1.0", "1.1", "2", "3")),
    "flat_head": (flat_head, ("0.0", "1.0")),
    "residual": (residual, ("1.conv2", "2.conv1", "2.downsample.0", "3.conv2", "3")),
    "inverted_residual": (inverted_residual, ("1.project.0", "1.expand.0", "2.depthwise.0", "3.project.0")),
    "dense": (Dense, ("stem.0", "first", "second", "transition.2")),
    "fire": (fire, ("2", "4", "2.squeeze", "2.expand3", "6")),
    "gated": (gated, ("0.0", "1", "2.0")),
    "grouped": (grouped, ("0.0", "1.0")),
    "twice": (Twice, ("again",)),
    "untraceable_block": (untraceable_block, ("0.0",)),
}


def build(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """In eval mode, with batch norms that do something."""
    torch.manual_seed(seed)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def batch(size: int, pixels: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, pixels, pixels, generator=generator), torch.arange(size) % CLASSES


def naive(
    model: nn.Module, images: Tensor, labels: Tensor, layer: str, channels: Sequence[int] | None = None
) -> Tensor:
    """(N, C) by one masked forward per channel."""
    off: list[int] = []
    count = 0

    def switch_off(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        nonlocal count
        count = output.shape[1]
        output = output.clone()
        output[:, off] = 0
        return output

    handle = model.get_submodule(layer).register_forward_hook(switch_off)
    with torch.no_grad():
        intact = F.cross_entropy(model(images), labels, reduction="none")
        columns = []
        for channel in range(count) if channels is None else channels:
            off[:] = [channel]
            columns.append(F.cross_entropy(model(images), labels, reduction="none") - intact)
    handle.remove()
    return torch.stack(columns, 1)


def losses(model: nn.Module, images: Tensor, labels: Tensor, *layers: str, **options: object) -> dict[str, Tensor]:
    return ablation_losses_per_image(model, images, labels, layers, **({"byte_budget": 2**28} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", NETS)
def test_channel_losses_are_those_of_a_masked_forward_per_channel(family: str) -> None:
    make, layers = NETS[family]
    model = build(make)
    images, labels = batch(3)
    notes: list[str] = []
    found = losses(model, images, labels, *layers, notes=notes)
    assert notes == []
    assert list(found) == list(layers)
    for layer in layers:
        torch.testing.assert_close(found[layer], naive(model, images, labels, layer), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("family", NETS)
def test_channel_losses_are_the_same_without_private_operators(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, layers = NETS[family]
    images, labels = batch(3)
    fused = losses(build(make), images, labels, *layers)
    monkeypatch.setattr(onednn, "available", lambda: False)
    notes: list[str] = []
    plain = losses(build(make), images, labels, *layers, notes=notes)
    assert notes == []
    for layer in layers:
        torch.testing.assert_close(plain[layer], fused[layer], rtol=1e-5, atol=2e-6)


def test_channel_losses_are_exact_on_efficientnet_lite0() -> None:
    model = build(lambda: timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES))
    double = build(lambda: timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES)).double()
    images, labels = batch(2, 48)
    layers = ("blocks.1.1.conv_pwl", "blocks.4.2.conv_pwl", "blocks.6.0.conv_pwl")
    found = losses(model, images, labels, *layers)
    for layer in layers:
        channels = range(0, found[layer].shape[1], found[layer].shape[1] // 4)
        exact = naive(double, images.double(), labels, layer, channels)
        floor = float((naive(model, images, labels, layer, channels) - exact).abs().max())
        assert float((found[layer][:, channels] - exact).abs().max()) <= max(1e-5, 3 * floor)


def test_channel_losses_accept_the_inception_layers_of_the_authors() -> None:
    model = build(lambda: torchvision.models.inception_v3(num_classes=CLASSES, aux_logits=True, init_weights=False))
    images, labels = batch(1, 80)
    notes: list[str] = []
    found = losses(model, images, labels, "Conv2d_4a_3x3", notes=notes)["Conv2d_4a_3x3"]
    assert notes == []
    assert found.shape == (1, 192)


@pytest.mark.parametrize("family", ["residual", "inverted_residual", "fire"])
def test_first_mixing_operation_is_a_rank_1_change(family: str) -> None:
    make, layers = NETS[family]
    plan = Plan(trace(build(make), layers, batch(1)[0]), layers[0])
    assert any(step.rank_1 for step in plan.steps)


def test_last_stage_costs_no_network_at_all() -> None:
    program = trace(build(NETS["residual"][0]), ("3.conv2",), batch(1)[0])
    (step,) = Plan(program, "3.conv2").steps
    assert step.op.linear is not None
    assert step.rank_1 is not None


@pytest.mark.parametrize("family", ["residual", "inverted_residual"])
def test_norms_sums_and_activations_are_fused_into_convolutions(family: str) -> None:
    make, layers = NETS[family]
    for step in Plan(trace(build(make), layers, batch(1)[0]), layers[0]).steps:
        assert step.op.kind in ("conv", "pool", "flatten", "linear")


@pytest.mark.parametrize("net", [BranchingAtTheTop, Centred])
def test_graph_that_cannot_be_followed_falls_back_and_says_so(net: type[nn.Module]) -> None:
    model = build(net)
    images, labels = batch(3)
    notes: list[str] = []
    found = losses(model, images, labels, "net.1.0", notes=notes)["net.1.0"]
    assert len(notes) == 1
    assert "net.1.0: every channel costs a forward pass of its own, because" in notes[0]
    torch.testing.assert_close(found, naive(model, images, labels, "net.1.0"), rtol=1e-5, atol=2e-6)


def test_memory_budget_does_not_change_the_result() -> None:
    make, layers = NETS["inverted_residual"]
    model = build(make)
    images, labels = batch(5)
    wide = losses(model, images, labels, *layers)
    narrow = losses(model, images, labels, *layers, byte_budget=1)
    for layer in layers:
        torch.testing.assert_close(narrow[layer], wide[layer], rtol=0, atol=1e-6)


def test_split_of_images_and_layers_into_tasks_does_not_change_the_result() -> None:
    make, layers = NETS["residual"]
    model = build(make)
    size = ablation.IMAGES_AT_ONCE
    images, labels = batch(2 * size + 3)
    whole = losses(model, images, labels, *layers)
    for layer in layers:
        parts = [losses(model, images[i : i + size], labels[i : i + size], layer)[layer] for i in (0, size, 2 * size)]
        assert torch.equal(torch.cat(parts), whole[layer])


def test_progress_counts_channels_times_images() -> None:
    images, labels = batch(3)
    seen: list[tuple[int, int]] = []
    losses(build(chain), images, labels, "0.0", "1.0", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3 * (6 + 8), 3 * (6 + 8))
    assert seen == sorted(seen)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("net", [NETS["residual"][0], BranchingAtTheTop])
def test_model_is_left_bit_for_bit_also_after_an_exception(net: Callable[[], nn.Module]) -> None:
    model = build(net)
    images, labels = batch(3)
    before, logits = state(model), model(images)
    layer = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    losses(model, images, labels, layer)
    with pytest.raises(KeyboardInterrupt):
        losses(model, images, labels, layer, progress=interrupt)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(images), logits)
    assert model(images).requires_grad


def test_layer_that_the_forward_does_not_reach_is_refused() -> None:
    model = build(chain)
    model.unused = nn.Conv2d(3, 3, 1)
    model[4].register_module("aside", nn.Identity())
    model.eval()
    model.forward = lambda x: model[4][:4](model[3](model[2](model[1](model[0](x)))))  # type: ignore[method-assign,assignment]
    with pytest.raises(ValueError, match="does not run unused"):
        losses(model, *batch(2), "unused")


def test_layer_without_channels_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.head = Pair(), head(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pair(x)[0])

    with pytest.raises(ValueError, match="output of pair has no channels"):
        losses(build(Net), *batch(2), "pair")
