"""Models of random weights, as `load` returns them."""

from __future__ import annotations

import torch

from delta_tune.inference.model import Model
from delta_tune.models.architectures import build_architecture, build_unfilled, size_keyword
from delta_tune.models.hooked_layers import STANDARD_SIZE, find_layers

CLASSES = ("a", "b & <c>", "d")


def draw_weights(network, seed=0):
    """Give a network drawn weights, norms and their statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.1 * drawn if value.ndim == 1 else drawn * (2 / value[0].numel()) ** 0.5)
            if key.endswith("running_var"):
                value.abs_()
    return network.eval()


def random_model(name, *, size=64, resize="crop", channels=3, white=None, classes=CLASSES, **config):
    """A model whose weights are drawn; other keywords go into its `config.json`."""
    built = size if size_keyword(name) else STANDARD_SIZE
    head = find_layers(build_unfilled(name, image_size=size).eval(), name, built).head
    network = draw_weights(build_architecture(name, head, len(classes), channels=channels, image_size=size))
    mean, std = [0.485, 0.456, 0.406, 0.5, 0.4], [0.229, 0.224, 0.225, 0.2, 0.3]
    preprocessing = {
        **{"image_size": size, "stored_size": round(size * 8 / 7), "interpolation": "bilinear", "resize": resize},
        **{"mean": mean[:channels], "std": std[:channels], "channels": channels},
        "white": white,
    }
    backbone = {"model": name, "head": head} | ({"image_size": size} if size_keyword(name) else {})
    told = {"config": {"regularizer": "delta"}, "metrics": {}, "backbone": backbone, "preprocessing": preprocessing}
    return Model(network, told | {"classes": list(classes)} | config)
