"""Ablation of layers whose channels come last against the naive loop, on small random token networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
import torchvision
from timm.models.convnext import ConvNeXt
from timm.models.davit import DaVit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig

from delta_tune.attention import ablation
from delta_tune.attention.ablation import Ablation
from delta_tune.attention.ablation_plan import Plan
from delta_tune.attention.channel_losses import ablation_losses_per_image, first_order_losses_per_image
from delta_tune.attention.kept_prefix import prefix_kept
from delta_tune.models.graph import trace
from delta_tune.models.map_layout import MapLayout

CLASSES, WIDTH = 5, 12
LAST = MapLayout(channels_last=True)
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": WIDTH, "num_classes": CLASSES}
ABLATED = {"depth": 3, "num_heads": 2, **SMALL}


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), num_classes=CLASSES
    )


def torchvision_convnext() -> nn.Module:
    stages = [CNBlockConfig(8, WIDTH, 1), CNBlockConfig(WIDTH, None, 2)]
    return torchvision.models.ConvNeXt(stages, layer_scale=0.5, num_classes=CLASSES)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], int]] = {
    "class token": (lambda: VisionTransformer(**ABLATED), ("blocks.0.mlp.fc2", "blocks.2.mlp.fc2"), 16),
    "average of tokens": (
        lambda: VisionTransformer(**ABLATED, global_pool="avg", class_token=False, fc_norm=True),
        ("blocks.0.mlp.fc2", "blocks.2.mlp.fc2"),
        16,
    ),
    "registers and layer scale": (
        lambda: VisionTransformer(**ABLATED, reg_tokens=3, init_values=0.5, drop_path_rate=0.1),
        ("blocks.1.mlp.fc2", "blocks.2.mlp.fc2", "blocks.1.attn.proj"),
        16,
    ),
    "attention pooling": (
        lambda: VisionTransformer(**ABLATED, global_pool="map", class_token=False),
        ("blocks.1.mlp.fc2", "blocks.2.mlp.fc2"),
        16,
    ),
    "two heads": (lambda: VisionTransformerDistilled(**ABLATED), ("blocks.1.mlp.fc2", "blocks.2.mlp.fc2"), 16),
    "rotary positions": (
        lambda: Eva(**ABLATED | {"num_heads": 3}, use_rot_pos_emb=True, swiglu_mlp=True, mlp_ratio=2),
        ("blocks.1.mlp.fc2", "blocks.2.mlp.fc2"),
        16,
    ),
    "mixer": (
        lambda: MlpMixer(num_blocks=3, **SMALL),
        ("blocks.0.mlp_channels.fc2", "blocks.2.mlp_channels.fc2"),
        16,
    ),
    "convnext": (
        lambda: ConvNeXt(depths=(1, 1, 1, 2), dims=(4, 4, 8, WIDTH), ls_init_value=0.5, num_classes=CLASSES),
        ("stages.1.blocks.0.mlp.fc2", "stages.3.blocks.0.mlp.fc2", "stages.3.blocks.1.mlp.fc2"),
        64,
    ),
    "swin": (swin, ("layers.0.blocks.1.mlp.fc2", "layers.1.blocks.1.mlp.fc2"), 32),
    "davit": (
        lambda: DaVit(depths=(1, 1), embed_dims=(8, WIDTH), num_heads=(2, 2), window_size=4, num_classes=CLASSES),
        ("stages.0.blocks.0.0.mlp.fc2", "stages.1.blocks.0.1.mlp.fc2"),
        32,
    ),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(16, 4, 3, 2, WIDTH, 24, num_classes=CLASSES),
        ("encoder.layers.encoder_layer_0.mlp.3", "encoder.layers.encoder_layer_2.mlp.3"),
        16,
    ),
    "torchvision swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 8, [2, 1], [1, 2], [4, 4], num_classes=CLASSES),
        ("features.1.1.mlp.3", "features.3.0.mlp.3"),
        32,
    ),
    "torchvision convnext": (torchvision_convnext, ("features.1.0.block.5", "features.3.1.block.5"), 32),
}
UNTRACEABLE = (
    lambda: VisionTransformer(**ABLATED, dynamic_img_size=True),
    ("blocks.0.mlp.fc2", "blocks.2.mlp.fc2"),
    16,
)


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """In eval mode, with weights so large that every channel matters by far more than rounding."""
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, 0, 1.5 / module.weight[0].numel() ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.requires_grad_(False)


def batch(pixels: int, images: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, 3, pixels, pixels, generator=generator), torch.arange(images) % CLASSES


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
    return F.cross_entropy(logits, labels, reduction="none")


def naive(model: nn.Module, images: Tensor, labels: Tensor, layer: str) -> Tensor:
    """(N, C): run the network once per channel, with that channel 0 in the whole output of the layer."""
    off: list[int] = []
    channels = 0

    def switch_off(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        nonlocal channels
        channels = output.shape[-1]
        output = output.clone()
        output[..., off] = 0
        return output

    handle = model.get_submodule(layer).register_forward_hook(switch_off)
    with torch.no_grad():
        intact = cross_entropy(model(images), labels)
        columns = []
        for channel in range(channels):
            off[:] = [channel]
            columns.append(cross_entropy(model(images), labels) - intact)
    handle.remove()
    return torch.stack(columns, 1)


def losses(
    model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str], notes: list[str], **options: int
) -> dict[str, Tensor]:
    layouts = dict.fromkeys(layers, LAST)
    return ablation_losses_per_image(model, images, labels, layers, layouts=layouts, notes=notes, **options)


def assert_exact(found: Tensor, expected: Tensor) -> None:
    assert float(expected.abs().mean()) > 1e-3  # every channel matters by far more than what rounding changes
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", NETS)
def test_token_losses_are_those_of_the_naive_loop_by_a_plan(family: str) -> None:
    make, layers, pixels = NETS[family]
    model, notes = build(make), []
    images, labels = batch(pixels)
    found = losses(model, images, labels, layers, notes)
    assert notes == []
    for layer in layers:
        assert_exact(found[layer], naive(model, images, labels, layer))


@pytest.mark.parametrize("family", ["class token", "swin", "convnext"])
def test_token_losses_of_several_labels_are_those_of_the_naive_loop(family: str) -> None:
    make, layers, pixels = NETS[family]
    model = build(make)
    images, _ = batch(pixels)
    labels = torch.rand(len(images), CLASSES, generator=torch.Generator().manual_seed(2)).round()
    found = losses(model, images, labels, layers, [])
    for layer in layers:
        assert_exact(found[layer], naive(model, images, labels, layer))


@pytest.mark.parametrize("family", ["class token", "swin", "davit"])
def test_memory_for_one_channel_at_once_does_not_change_token_losses(family: str) -> None:
    make, layers, pixels = NETS[family]
    model = build(make)
    images, labels = batch(pixels)
    wide = losses(model, images, labels, layers, [])
    narrow = losses(model, images, labels, layers, [], byte_budget=1)
    for layer in layers:
        torch.testing.assert_close(narrow[layer], wide[layer], rtol=0, atol=1e-5)


def test_token_losses_do_not_depend_on_the_split_into_tasks() -> None:
    make, layers, pixels = NETS["class token"]
    model, size = build(make), ablation.IMAGES_AT_ONCE
    images, labels = batch(pixels, size + 3)
    whole = losses(model, images, labels, layers, [])
    for layer in layers:
        parts = [
            losses(model, images[part], labels[part], [layer], [])[layer] for part in (slice(size), slice(size, None))
        ]
        assert torch.equal(torch.cat(parts), whole[layer])


def test_network_that_cannot_be_traced_has_exact_token_losses_and_a_note() -> None:
    make, layers, pixels = UNTRACEABLE
    model, notes = build(make), []
    images, labels = batch(pixels)
    found = losses(model, images, labels, layers, notes)
    assert [note.partition(":")[0] for note in notes] == list(layers)
    assert "every channel costs a forward pass of its own, because" in notes[0]
    for layer in layers:
        assert_exact(found[layer], naive(model, images, labels, layer))


def ran(model: nn.Module, images: Tensor) -> list[str]:
    """Linear layers that compute in a forward pass."""
    names = {id(module.weight): name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found: list[str] = []
    original = F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found.append(names[id(weight)])
        return original(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        model(images)
    return found


def test_kept_prefix_does_not_run_again_and_the_model_is_left_as_it_was() -> None:
    make, _, pixels = UNTRACEABLE
    model = build(make)
    images, _ = batch(pixels)
    with torch.no_grad():
        logits = model(images)
        with prefix_kept(model, "blocks.1.mlp.fc2", images):
            assert ran(model, images) == [
                "blocks.1.mlp.fc2", "blocks.2.attn.qkv", "blocks.2.attn.proj", "blocks.2.mlp.fc1", "blocks.2.mlp.fc2",
                "head",
            ]  # fmt: skip
            assert torch.equal(model(images), logits)
        assert len(ran(model, images)) == 4 * 3 + 1
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())


class Remembering(nn.Module):
    """A forward pass that depends on the one before: what it calls must run again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Identity(), nn.Linear(3, 3), nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(self.second(self.first(x)) * self.calls)


def test_prefix_that_would_change_the_logits_is_not_kept() -> None:
    model = Remembering().eval()
    with torch.no_grad(), prefix_kept(model, "last", torch.ones(2, 3)):
        assert "forward" not in vars(model.second)


def steps(family: str, layer: str) -> list[str]:
    make, layers, pixels = NETS[family]
    program = trace(build(make), layers, batch(pixels, 2)[0])
    return [step.op.name for step in Plan(program, layer, channels_last=True).steps]


def test_layer_scale_sum_and_permutation_after_a_layer_cost_nothing_per_channel() -> None:
    assert steps("convnext", "stages.3.blocks.1.mlp.fc2") == ["head_norm", "head_flatten", "head_fc"]


@pytest.mark.parametrize("family", ["class token", "torchvision vit"])
def test_only_the_class_token_goes_through_the_last_mlp_and_the_head(family: str) -> None:
    make, layers, pixels = NETS[family]
    program = trace(build(make), layers, batch(pixels, 2)[0])
    assert [len(op.shape) for op in program if op.kind == "linear"][-3:] == [1, 1, 1]
    assert [len(step.result.shape) for step in Plan(program, layers[-1], channels_last=True).steps] == [1, 1]


def test_average_of_tokens_costs_nothing_per_channel() -> None:
    assert steps("average of tokens", "blocks.2.mlp.fc2") == ["fc_norm", "head"]


@pytest.mark.parametrize("family", ["class token", "swin"])
def test_first_order_token_losses_are_the_slope_of_scaling_a_channel(family: str) -> None:
    make, (layer, *_), pixels = NETS[family]
    model = build(make).double()
    images, labels = batch(pixels)
    images, step, slopes = images.double(), 1e-6, []
    found = first_order_losses_per_image(model, images, labels, [layer], layouts={layer: LAST})[layer]
    scale = torch.ones(found.shape[1], dtype=torch.float64)
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: output * scale)
    for channel in range(found.shape[1]):
        both = []
        for factor in (1 - step, 1 + step):
            scale[channel] = factor
            both.append(cross_entropy(model(images), labels))
        scale[channel] = 1
        slopes.append((both[0] - both[1]) / (2 * step))
    handle.remove()
    torch.testing.assert_close(found, torch.stack(slopes, 1).float(), rtol=1e-4, atol=1e-6)


def test_channels_of_a_layer_are_those_of_its_last_axis() -> None:
    make, layers, pixels = NETS["class token"]
    found = Ablation(build(make), batch(pixels)[0][:2], layers, dict.fromkeys(layers, LAST))
    assert found.channels == dict.fromkeys(layers, WIDTH)
