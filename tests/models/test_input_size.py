"""Image sizes of networks that are built for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from delta_tune.config import UserError
from delta_tune.models.architectures import build_unfilled, constructor_options, size_keyword
from delta_tune.models.backbones import build_source, build_target, load_backbone
from delta_tune.models.input_size import build_for_size, patch_size, size_note
from delta_tune.models.pretrained_weights import preprocessing_for


@pytest.mark.parametrize(
    ("model", "keyword"),
    [
        ("timm:vit_tiny_patch16_224", "img_size"),
        ("timm:vit_small_patch14_dinov2.lvd142m", "img_size"),
        ("timm:swin_tiny_patch4_window7_224", "img_size"),
        ("timm:convnext_atto", ""),
        ("timm:resnet18", ""),
        ("vit_b_16", "image_size"),
        ("maxvit_t", "input_size"),
        ("swin_t", ""),
        ("resnet18", ""),
    ],
)
def test_networks_that_are_built_for_a_size_say_so(model: str, keyword: str) -> None:
    assert size_keyword(model) == keyword
    side = (64, 64) if keyword == "input_size" else 64
    assert constructor_options(model, image_size=64).get(keyword) == (side if keyword else None)
    assert not set(constructor_options(model)) & {"img_size", "image_size", "input_size"}


@pytest.mark.parametrize(
    ("model", "size", "usable"),
    [
        ("timm:test_vit", 100, "96 or 112"),
        ("timm:test_vit", 5, "16 or 32"),
        ("vit_b_32", 100, "96 or 128"),
        ("timm:swin_tiny_patch4_window7_224", 98, "96 or 100"),
        ("timm:vit_small_patch14_dinov2", 512, "504 or 518"),
    ],
)
def test_size_that_patches_do_not_divide_is_refused_with_the_nearest(model: str, size: int, usable: str) -> None:
    with pytest.raises(UserError, match=rf"which do not divide {size}; give --image-size {usable}\.") as refused:
        build_for_size(model, size)
    assert str(refused.value).count(". ") == 0


def test_size_that_windows_do_not_divide_is_refused_with_the_nearest_that_runs() -> None:
    with pytest.raises(UserError, match=r"does not run on images of 112 pixels .*; give --image-size 224\."):
        build_for_size("maxvit_t", 112)


@pytest.mark.parametrize(
    ("size", "told"), [(518, "An image of 518 pixels has 1369 patches, 5.3 times as many as with"), (224, "")]
)
def test_a_large_size_is_told_with_its_cost(size: int, told: str) -> None:
    model = "timm:vit_small_patch14_dinov2"
    module = build_unfilled(model, image_size=size)
    note = size_note(model, module, size)
    assert patch_size(module) == 14
    assert note.startswith(told)
    assert bool(note) == bool(told)


def test_no_size_of_a_convolutional_network_is_told() -> None:
    assert size_note("timm:test_resnet", build_unfilled("timm:test_resnet"), 518) == ""


def test_network_of_torchvision_is_built_for_the_users_size() -> None:
    assert build_for_size("vit_b_32", 64)(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_source_and_target_are_built_for_the_users_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "file.pth")
    backbone = load_backbone("timm:test_vit", str(tmp_path / "file.pth"), 64)
    assert backbone.built_size == 64
    assert any("resized to 64 pixels" in note for note in backbone.notes)
    images = torch.zeros(1, 3, 64, 64)
    assert build_source(backbone)(images).shape[0] == 1
    assert build_target(backbone, 5, torch.Generator())(images).shape == (1, 5)


def test_weights_that_cannot_be_resized_are_refused_with_their_own_size(tmp_path: Path) -> None:
    torch.save(timm.create_model("pit_ti_224").state_dict(), tmp_path / "pit.pth")
    with pytest.raises(UserError, match=r"are those of 224 pixels, and what depends .* give --image-size 224"):
        load_backbone("timm:pit_ti_224", str(tmp_path / "pit.pth"), 160)


def test_preprocessing_is_that_of_the_tag() -> None:
    """Of the same architecture: CLIP's own means, or ImageNet's."""
    for tag, mean in (("openai", 0.48145466), ("augreg_in21k_ft_in1k", 0.5)):
        name = "timm:vit_base_patch32_clip_224.openai" if tag == "openai" else f"timm:vit_base_patch32_224.{tag}"
        with torch.device("meta"):
            module = timm.create_model(name.removeprefix("timm:"))
        assert preprocessing_for(name, "default", module, None).mean[0] == pytest.approx(mean)
