"""A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, as timm's models on the Hub are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import timm
from torch import nn

from delta_tune.data.images import Preprocessing
from delta_tune.export.library_folder import LibraryFolder, Logits, python_string
from delta_tune.export.library_network import LibraryNetwork, build, library_network
from delta_tune.inference.model import Model
from delta_tune.results.layout import CONFIG_FILE

CROP_MODES = {"crop": "center", "squash": "squash", "letterbox": "border"}
"""timm's words for `Preprocessing.resize`."""
_MODES = {1: "L", 3: "RGB"}
"""Pillow's, of images of so many channels."""


def timm_folder(model: Model) -> LibraryFolder:
    """The model in timm's form.

    Raises:
        UserError: as `library_network`.
    """
    network = library_network(model, "timm", "timm")

    def load(place: str) -> str:
        return (
            "import timm\n"
            f"model = timm.create_model({python_string(f'local-dir:{place}')}, pretrained=True).eval()\n"
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        )

    return LibraryFolder(
        library="timm",
        packages="timm",
        state=network.state,
        files={CONFIG_FILE: timm_config(model, network)},
        load=load,
        predict=_predict(model),
        read=_read,
        tags=("timm",),
        notes=("From the Hub: `hf-hub:USER/NAME` instead of `local-dir:…`.", *preprocessing_notes(model.preprocessing)),
    )


def timm_config(model: Model, network: LibraryNetwork) -> dict[str, Any]:
    """The content of `config.json`, as timm and transformers read it."""
    built = build("timm", network.name, len(model.classes), network.keywords)
    own: dict[str, Any] = built.pretrained_cfg  # type: ignore[assignment]
    preprocessing = model.preprocessing
    size, channels = preprocessing.image_size, preprocessing.channels
    return {
        "architecture": network.name,
        "num_classes": len(model.classes),
        "num_features": int(built.num_features),  # type: ignore[arg-type]
        "label_names": list(model.classes),
        **({"model_args": network.keywords} if network.keywords else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, size, size],
            "fixed_input_size": "img_size" in network.keywords,
            "interpolation": preprocessing.interpolation,
            "crop_pct": crop_share(preprocessing),
            "crop_mode": CROP_MODES[preprocessing.resize],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": len(model.classes),
            "pool_size": None,
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
    }


def crop_share(preprocessing: Preprocessing) -> float:
    """timm's `crop_pct`: it resizes the short side to ⌊image_size / crop_pct⌋ and takes the centre.

    Squashed and letterboxed images are resized to `image_size` itself: 1.
    """
    if preprocessing.resize != "crop":
        return 1.0
    share = preprocessing.image_size / preprocessing.stored_size
    while math.floor(preprocessing.image_size / share) < preprocessing.stored_size:  # the division was rounded
        share = math.nextafter(share, 0)
    return share


def preprocessing_notes(preprocessing: Preprocessing) -> tuple[str, ...]:
    """What timm's transforms do otherwise than the model's own preprocessing."""
    notes = []
    if preprocessing.channels not in _MODES:
        notes.append(
            f"The model takes {preprocessing.channels} channels, which Pillow's images do not have: timm's transform "
            "does not apply. Resize and normalise arrays as `delta_tune.json` says."
        )
    else:
        border = " and the border" if preprocessing.resize == "letterbox" else ""
        notes.append(
            f"timm's transform resizes, crops and normalises as the model was trained; the crop{border} may lie a "
            "pixel beside, so that probabilities differ a little from those of delta-tune. Turn images upright "
            "(`ImageOps.exif_transpose`) and put transparent ones on white, as was done in training."
        )
    if preprocessing.white is not None:
        notes.append(f"In images of more than 8 bits {preprocessing.white:g} is white: scale them to 0 to 255 first.")
    return tuple(notes)


def _predict(model: Model) -> str:
    activation = "softmax(1)" if model.thresholds is None else "sigmoid()"
    if (mode := _MODES.get(model.preprocessing.channels)) is None:
        size = model.preprocessing.image_size
        return (
            f"probabilities = model(images).{activation}"
            f"  # images: float32 (N, {model.preprocessing.channels}, {size}, {size}), normalised\n"
        )
    return (
        "from PIL import Image, ImageOps\n"
        f'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")\n'
        f"probabilities = model(transform(image)[None]).{activation}[0].tolist()\n"
        'print(dict(zip(model.pretrained_cfg["label_names"], probabilities)))\n'
    )


def _read(folder: Path) -> Logits:
    read: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return read.eval()
