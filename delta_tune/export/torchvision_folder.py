"""A folder whose weights `torchvision.models.get_model(...)` takes."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from delta_tune.data.images import Preprocessing
from delta_tune.export.library_folder import LibraryFolder, Logits, python_string
from delta_tune.export.library_network import build, library_network
from delta_tune.inference.model import Model
from delta_tune.results.layout import CONFIG_FILE, WEIGHTS_FILE

ASKS_FOR_VERSION = "mnasnet"
"""Networks whose `load_state_dict` takes no weights without the version of the architecture, which `state_dict` has."""


def torchvision_folder(model: Model) -> LibraryFolder:
    """The model in torchvision's form.

    Raises:
        UserError: as `library_network`.
    """
    network = library_network(model, "torchvision", "torchvision")
    keywords = {"num_classes": len(model.classes), **network.keywords}
    arguments = ", ".join([python_string(network.name), *(f"{name}={value!r}" for name, value in keywords.items())])

    def load(place: str) -> str:
        weights = f"safetensors.torch.load_file({python_string(f'{place}/{WEIGHTS_FILE}')})"
        begin = f"import safetensors.torch, torchvision\nmodel = torchvision.models.get_model({arguments}).eval()\n"
        if network.name.startswith(ASKS_FOR_VERSION):
            return (
                f"{begin}state = model.state_dict()  # with its version, which the file lacks\n"
                f"state.update({weights})\n"
                "model.load_state_dict(state)\n"
            )
        return f"{begin}model.load_state_dict({weights})\n"

    def read(folder: Path) -> Logits:
        built = build("torchvision", network.name, len(model.classes), network.keywords)
        state = built.state_dict() if network.name.startswith(ASKS_FOR_VERSION) else {}
        state.update(load_file(folder / WEIGHTS_FILE))
        built.load_state_dict(state)
        return built

    return LibraryFolder(
        library="torchvision",
        packages="torchvision safetensors",
        state=network.state,
        files={
            CONFIG_FILE: {
                "constructor": {
                    "call": "torchvision.models.get_model",
                    "arguments": [network.name],
                    "keywords": keywords,
                },
                "classes": list(model.classes),
                "transform": transform_code(model.preprocessing),
            }
        },
        load=load,
        predict=_predict(model),
        read=read,
        tags=("pytorch",),
        notes=(
            "The crop of torchvision's transform may lie a pixel beside that of training, so that probabilities differ "
            "a little from those of delta-tune. Put transparent images on white first, as was done in training.",
        ),
    )


def transform_code(preprocessing: Preprocessing) -> str:
    """The preprocessing, as an expression of `torchvision.transforms.v2`."""
    size = preprocessing.image_size
    resize = {
        "crop": f"{preprocessing.stored_size}",
        "squash": f"({size}, {size})",
        "letterbox": f"None, max_size={size}",
    }[preprocessing.resize]
    steps = [
        f"v2.Resize({resize}, interpolation=v2.InterpolationMode.{preprocessing.interpolation.upper()})",
        *([f"v2.CenterCrop({size})"] if preprocessing.resize == "crop" else []),
        "v2.ToImage()",
        "v2.ToDtype(torch.float32, scale=True)",
        f"v2.Normalize({list(preprocessing.mean)}, {list(preprocessing.std)})",
        # After Normalize, the zeros that CenterCrop puts around a small image are the mean colour
        *([f"v2.CenterCrop({size})"] if preprocessing.resize == "letterbox" else []),
    ]
    inner = ",\n".join(f"    {step}" for step in steps)
    return f"v2.Compose([\n{inner},\n])"


def _predict(model: Model) -> str:
    activation = "softmax(1)" if model.thresholds is None else "sigmoid()"
    return (
        "import torch\n"
        "from PIL import Image, ImageOps\n"
        "from torchvision.transforms import v2\n"
        f"transform = {transform_code(model.preprocessing)}\n"
        'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")\n'
        f"probabilities = model(transform(image)[None]).{activation}[0].tolist()\n"
        "print(probabilities)  # in the order of `classes` in config.json\n"
    )
