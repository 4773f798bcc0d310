"""Build the architectures of torchvision and timm, their weights still open, and give them new heads."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from delta_tune.config import SIZES, UserError, did_you_mean
from delta_tune.models.drop_path import set_drop_path

HEAD_STD = 0.01

# With auxiliary heads these networks would return several tensors. torchvision's weights for them expect inputs
# normalised like all others and convert them internally.
_TORCHVISION_OPTIONS: dict[str, dict[str, bool]] = {
    name: {"aux_logits": False, "init_weights": False, "transform_input": True}
    for name in ("googlenet", "inception_v3")
}
# Networks of timm that average the logits of two heads unless they are built for training without a teacher
_TIMM_DISTILLED = {"repvit_": "distillation", "efficientformerv2_": "distillation", "iformer_": "distillation"}
_TIMM_DISTILLED |= {f"levit_{conv}{width}": "distilled" for conv in ("", "conv_") for width in (128, 192, 256, 384)}
_LEVIT_OF_ONE_HEAD = ("levit_256d", "levit_conv_256d")
_TORCHVISION_SIZES = {"vit_": "image_size", "maxvit_t": "input_size"}
_NEW_CLASSES = 1000
"""Outputs of the head, which is replaced, of networks that are pretrained without one."""
_RANDOM_INITIALISERS: tuple[Callable[..., Any], ...] = (
    init.uniform_,
    init.normal_,
    init.trunc_normal_,
    init.orthogonal_,
    init.xavier_uniform_,
    init.xavier_normal_,
    init.kaiming_uniform_,
    init.kaiming_normal_,
)


def build_unfilled(
    model: str, drop_path: float | None = None, channels: int = 3, image_size: int | None = None
) -> nn.Module:
    """Build the architecture with uninitialised parameters, without in-place activations or auxiliary heads.

    Args:
        model: `NAME` of torchvision.models or `timm:NAME`.
        drop_path: the largest probability with which a residual branch is dropped in train mode; None leaves them to
            the library's constructor.
        channels: of its input.
        image_size: side of its input in pixels, for networks that are built for one (`size_keyword`); None is that of
            the library's weights.

    Raises:
        UserError: the model is unknown, takes RGB only, or has no such branches and `drop_path` is not 0.
        RuntimeError, ValueError, AssertionError: such a network cannot be built for this size.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _WithoutRandomInit():
        warnings.simplefilter("ignore")  # deprecated aliases
        build = _build_timm if model.startswith("timm:") else _build_torchvision
        module = build(model, drop_path, channels, image_size)
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]  # would overwrite feature maps
    if drop_path is not None:
        set_drop_path(module, drop_path, model)
    return module


def build_architecture(
    model: str,
    head: str,
    num_classes: int,
    generator: torch.Generator | None = None,
    drop_path: float | None = None,
    channels: int = 3,
    image_size: int | None = None,
) -> nn.Module:
    """Build the network with a head of `num_classes` outputs; all parameters except the head's must still be loaded."""
    module = build_unfilled(model, drop_path, channels, image_size)
    replace_head(module, head, num_classes, generator or torch.Generator().manual_seed(0))
    return module


def constructor_options(model: str, channels: int = 3, image_size: int | None = None) -> dict[str, Any]:
    """Keywords, besides the number of classes, with which the library's own constructor builds the same network.

    torchvision's constructors know no `channels`: see `with_input_channels`.
    """
    options: dict[str, Any] = {}
    if model.startswith("timm:"):
        name = model.removeprefix("timm:").partition(".")[0]
        if name not in _LEVIT_OF_ONE_HEAD:
            options |= {keyword: False for start, keyword in _TIMM_DISTILLED.items() if name.startswith(start)}
        if channels != 3:
            options["in_chans"] = channels
    else:
        options |= _TORCHVISION_OPTIONS.get(model, {})
        if "transform_input" in options:
            options["transform_input"] = channels == 3
    if image_size is not None and (keyword := size_keyword(model)):
        options[keyword] = (image_size, image_size) if keyword == "input_size" else image_size
    return options


def size_keyword(model: str) -> str:
    """The constructor's keyword for the side of its images; empty if the network takes images of any size.

    Networks with position embeddings, or with windows that follow the size, are built for one size.
    """
    if not model.startswith("timm:"):
        return next((keyword for start, keyword in _TORCHVISION_SIZES.items() if model.startswith(start)), "")
    config = _timm_config(model)
    return "img_size" if config is not None and config.fixed_input_size else ""


def _timm_config(model: str) -> Any:
    """timm's account of the weights of a network, whose name may have a tag; None if there is none.

    Raises:
        UserError: the architecture has no weights of this tag.
    """
    from timm.models import get_pretrained_cfg

    try:
        return get_pretrained_cfg(model.removeprefix("timm:"))
    except RuntimeError as error:
        raise UserError(f"timm cannot build {model!r} ({error}); leave the part after the dot out.") from error


def input_convolution(module: nn.Module) -> str:
    """Module path of the convolution that takes the RGB image, empty if not exactly one does."""
    found = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d) and part.in_channels == 3]
    return found[0] if len(found) == 1 else ""


def with_input_channels(module: nn.Module, name: str, channels: int) -> None:
    """Replace the convolution `name` by one for images of `channels` channels, alike otherwise."""
    old = module.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    assert old.groups == 1
    geometry = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding, "dilation": old.dilation}
    bias, mode = old.bias is not None, old.padding_mode
    new = type(old)(channels, old.out_channels, bias=bias, padding_mode=mode, **geometry)  # type: ignore[arg-type]
    module.set_submodule(name, new)


def replace_head(module: nn.Module, head: str, num_classes: int, generator: torch.Generator) -> None:
    """Replace the head by one of `num_classes` outputs: weights from N(0, 0.01²) by `generator`, bias 0.

    Raises:
        UserError: there is no Linear or Conv2d at the module path `head`.
    """
    try:
        old = module.get_submodule(head)
    except AttributeError:
        old = None
    if not isinstance(old, nn.Linear | nn.Conv2d):
        raise UserError(f"The network has no head {head!r}, a Linear or Conv2d; give the head's own module path.")
    new: nn.Linear | nn.Conv2d
    with _WithoutRandomInit():
        if isinstance(old, nn.Conv2d):
            new = nn.Conv2d(old.in_channels, num_classes, kernel_size=1)
        else:
            new = nn.Linear(old.in_features, num_classes)
    assert new.bias is not None
    init.normal_(new.weight, std=HEAD_STD, generator=generator)
    init.zeros_(new.bias)
    module.set_submodule(head, new)


def _build_torchvision(model: str, _: float | None, channels: int, image_size: int | None) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        import timm

        if timm.is_model(model):
            raise UserError(f"The model {model!r} is not of torchvision.models but of timm; give timm:{model}.")
        raise UserError(
            f"The model {model!r} is unknown{did_you_mean(model, [*known, *SIZES])}; give a classification network of "
            "torchvision.models by its name, or timm:NAME."
        )
    module: nn.Module = models.get_model(model, weights=None, **constructor_options(model, channels, image_size))
    if channels != 3:
        if not (name := input_convolution(module)):
            raise UserError(f"The network {model} takes RGB images only; leave --channels out, or name another.")
        with_input_channels(module, name, channels)
    return module


def _build_timm(model: str, drop_path: float | None, channels: int, image_size: int | None) -> nn.Module:
    import timm

    name = model.removeprefix("timm:")
    if not timm.is_model(name):
        known = [f"timm:{known}" for known in timm.list_models()]
        raise UserError(
            f"The model {model!r} is unknown{did_you_mean(model, known)}; timm.list_models() has the names."
        )
    config = _timm_config(model)
    options = constructor_options(model, channels, image_size)
    if config is not None and config.num_classes == 0:
        options["num_classes"] = _NEW_CLASSES
    rate: dict[str, Any] = {} if drop_path is None else {"drop_path_rate": drop_path}
    try:
        module: nn.Module = timm.create_model(name, pretrained=False, **options, **rate)
    except TypeError:  # its constructor takes no rate
        module = timm.create_model(name, pretrained=False, **options)
    return module


class _WithoutRandomInit(TorchFunctionMode):
    """Skips the initialisation of parameters that will be overwritten, which takes seconds for large networks.

    Unlike a build on the meta device, it leaves constants and non-persistent buffers correct.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            # Truncated normals are redrawn until all values fit; the mean or the lower bound always fits.
            start = args[1] if len(args) > 1 else kwargs.get("mean", kwargs.get("from", 0.0))
            return args[0].fill_(start)
        return func(*args, **kwargs)
