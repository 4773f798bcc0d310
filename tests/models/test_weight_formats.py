"""Weights of other formats and image sizes: what we load is what timm, torchvision or transformers make of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from delta_tune.config import UserError
from delta_tune.models.architectures import build_unfilled
from delta_tune.models.pretrained_weights import fit_weights, read_weights
from delta_tune.models.weight_formats import resized_note

# Networks of timm with everything that depends on the image size, its own size, and another one
RESIZED = {
    "test_vit": 96,
    "vit_small_patch14_reg4_dinov2": 112,
    "beit_base_patch16_224": 96,
    "swin_tiny_patch4_window7_224": 128,
    "coatnet_pico_rw_224": 128,
    "eva02_tiny_patch14_224": 112,
    "deit3_small_patch16_224": 96,
    "flexivit_small": 96,
}


def with_noise(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a network whose constants are none, so that each tensor counts."""
    generator = torch.Generator().manual_seed(0)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return module.state_dict()


def loaded(model: str, content: object, size: int, head: str = "head") -> dict[str, torch.Tensor]:
    """What `fit_weights` makes of the content of a file, without the head."""
    module = build_unfilled(model, image_size=size).eval()
    fit_weights(module, content, head, model, "file.pth")
    return {key: value for key, value in module.state_dict().items() if not key.startswith(f"{head}.")}


def by_timm(name: str, tensors: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    overlay = {"state_dict": dict(tensors), "custom_load": False}
    module = timm.create_model(name, pretrained=True, img_size=size, pretrained_cfg_overlay=overlay)
    return module.state_dict()


@pytest.mark.filterwarnings("ignore")  # timm's own
@pytest.mark.parametrize("name", RESIZED)
def test_weights_of_another_image_size_become_what_timm_makes_of_them(name: str) -> None:
    torch.manual_seed(0)
    tensors = with_noise(timm.create_model(name))
    expected = by_timm(name, tensors, RESIZED[name])
    assert any(tensors[key].shape != value.shape for key, value in expected.items())
    for key, value in loaded(f"timm:{name}", {"model": tensors}, RESIZED[name]).items():
        assert torch.equal(value, expected[key]), key


def test_weights_of_torchvision_are_resized_by_torchvision() -> None:
    tensors = with_noise(torchvision.models.vit_b_16())
    expected = interpolate_embeddings(96, 16, tensors.copy())["encoder.pos_embedding"]
    found = loaded("vit_b_16", {"model": tensors}, 96, "heads.head")
    assert torch.equal(found["encoder.pos_embedding"], expected)
    assert torch.equal(found["encoder.ln.weight"], tensors["encoder.ln.weight"])


def of_dinov2(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As Meta publishes DINOv2 with registers: the position of the class token first, a token for masks."""
    renamed = {key: value for key, value in tensors.items() if key not in ("reg_token", "cls_token", "pos_embed")}
    position = torch.full_like(tensors["cls_token"], 0.5)
    return renamed | {
        "register_tokens": tensors["reg_token"],
        "cls_token": tensors["cls_token"] - position,
        "pos_embed": torch.cat([position, tensors["pos_embed"]], dim=1),
        "mask_token": torch.zeros(1, tensors["cls_token"].shape[-1]),
    }


CLIP = (
    *(("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks.")),
    *(("norm1", "ln_1"), ("norm2", "ln_2"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj")),
    *(("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")),
)


def of_openai_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As OpenAI and OpenCLIP name the image tower, beside a text tower."""
    found = {"positional_embedding": torch.zeros(77, 64), "transformer.resblocks.0.ln_1.weight": torch.ones(64)}
    for key, value in tensors.items():
        name = (
            key.replace("patch_embed.proj", "conv1")
            .replace("norm_pre", "ln_pre")
            .replace("blocks.", "transformer.resblocks.")
        )
        name = name.replace("norm1", "ln_1").replace("norm2", "ln_2").replace("attn.qkv.", "attn.in_proj_")
        name = (
            name.replace("attn.proj", "attn.out_proj").replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        )
        name = "ln_post" + name.removeprefix("norm") if name.startswith("norm.") else name
        value = {"cls_token": lambda v: v[0, 0], "pos_embed": lambda v: v[0]}.get(key, lambda v: v)(value)
        name = {"cls_token": "class_embedding", "pos_embed": "positional_embedding"}.get(name, name)
        if not key.startswith("head."):
            found[f"visual.{name}"] = value
    return found | {"visual.proj": tensors["head.weight"].T}


def of_open_clip_with_timm(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"visual.trunk.{key}": value for key, value in tensors.items()} | {"logit_scale": torch.ones(())}


def of_swin(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As Microsoft publishes Swin: each stage but the last ends in what strides."""
    found = {}
    for key, value in tensors.items():
        parts = key.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        found[".".join(parts).replace("head.fc", "head")] = value
    return found | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.long)}


def of_convnext(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As Meta publishes ConvNeXt."""
    names = (("stem.", "downsample_layers.0."), (".conv_dw.", ".dwconv."), (".mlp.fc", ".pwconv"), (".blocks.", "."))
    found = {}
    for key, value in tensors.items():
        parts = key.split(".")
        if parts[0] == "stages" and parts[2] == "downsample":
            key = ".".join(["downsample_layers", parts[1], *parts[3:]])
        for new, old in names:
            key = key.replace(new, old)
        found[key.replace("head.norm", "norm").replace("head.fc", "head")] = value
    return found


OFFICIAL = {
    "dinov2": ("vit_small_patch14_reg4_dinov2", of_dinov2, "head"),
    "openai clip": ("vit_base_patch32_clip_224", of_openai_clip, "head"),
    "open_clip with timm": ("test_vit", of_open_clip_with_timm, "head"),
    "swin": ("swin_tiny_patch4_window7_224", of_swin, "head.fc"),
    "convnext": ("convnext_atto", of_convnext, "head.fc"),
}


@pytest.mark.parametrize("case", OFFICIAL)
@pytest.mark.parametrize("wrapped", [False, True])
def test_official_names_are_understood_with_and_without_wrappers(case: str, wrapped: bool) -> None:
    name, rename, head = OFFICIAL[case]
    torch.manual_seed(0)
    module = timm.create_model(name)
    tensors = with_noise(module)
    content: object = rename(tensors)
    if wrapped:
        content = {"epoch": 1, "state_dict": {f"module.backbone.{key}": v for key, v in rename(tensors).items()}}
    size = module.pretrained_cfg["input_size"][-1]
    for key, value in loaded(f"timm:{name}", content, size, head).items():
        torch.testing.assert_close(value, tensors[key], rtol=0, atol=1e-6, msg=key)


def test_teacher_goes_before_its_student() -> None:
    """As DINO saves: both networks, each with a projection head of its own."""
    tensors = {key: value for key, value in with_noise(timm.create_model("test_vit")).items() if "head" not in key}
    teacher = {f"backbone.{key}": value for key, value in tensors.items()}
    both = {
        "student": {f"module.backbone.{key}": torch.zeros_like(value) for key, value in tensors.items()},
        "teacher": teacher | {"head.mlp.0.weight": torch.ones(3, 3)},
    }
    for key, value in loaded("timm:test_vit", both, 160).items():
        assert torch.equal(value, tensors[key])


def test_masked_autoencoder_is_loaded_without_its_decoder() -> None:
    tensors = {key: value for key, value in with_noise(timm.create_model("test_vit")).items() if "head" not in key}
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_embed.weight": torch.ones(8, 64),
        "decoder_pred.bias": torch.ones(3),
    }
    found = loaded("timm:test_vit", {"model": tensors | decoder}, 160)
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def small(kind: str) -> tuple[transformers.PreTrainedModel, str, dict[str, object]]:
    """A small network of transformers, the same one in timm, and keywords for timm's constructor."""
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    if kind == "vit":
        of_transformers = transformers.ViTModel(
            transformers.ViTConfig(**size, intermediate_size=256), add_pooling_layer=False
        )
    elif kind == "dinov2":
        of_transformers = transformers.Dinov2Model(transformers.Dinov2Config(**size, layerscale_value=0.1))
    else:
        config = transformers.CLIPVisionConfig(**size, intermediate_size=256, hidden_act="gelu")
        of_transformers = transformers.CLIPVisionModel(config)
    own = {"vit": {}, "dinov2": {"init_values": 1.0}, "clip": {"pre_norm": True}}[kind]
    eps = {"vit": 1e-12, "dinov2": 1e-6, "clip": 1e-5}[kind]
    options = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
    return (
        of_transformers,
        "vit_tiny_patch16_224",
        options | own | {"norm_layer": partial(nn.LayerNorm, eps=eps)},
    )


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip"])
def test_folder_of_transformers_gives_the_same_network(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, name, options = small(kind)
    with_noise(theirs)
    theirs.eval().save_pretrained(tmp_path)
    module = timm.create_model(name, **options).eval()
    content = read_weights(f"timm:{name}", str(tmp_path))
    assert fit_weights(module, content, "head", f"timm:{name}", str(tmp_path)) == ("", False)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found, expected = module.forward_features(images)[:, 0], theirs(images)
    expected = expected.pooler_output if kind == "clip" else expected.last_hidden_state[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_weights_that_no_converter_knows_are_refused_with_names() -> None:
    module = build_unfilled("timm:test_vit").eval()
    with pytest.raises(UserError, match=r"do not fit timm:test_vit: .* are missing"):
        fit_weights(module, {"words.weight": torch.zeros(3, 3)}, "head", "timm:test_vit", "file.pth")


@pytest.mark.parametrize(("size", "told"), [(160, False), (96, True)])
def test_resized_position_embeddings_are_told(size: int, told: bool) -> None:
    tensors = timm.create_model("test_vit").state_dict()
    note = resized_note(build_unfilled("timm:test_vit", image_size=size), {"model": tensors}, size)
    expected = f"The weights are those of another image size: their position embeddings are resized to {size} pixels."
    assert note == (expected if told else "")
