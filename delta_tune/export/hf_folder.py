"""A folder that transformers loads: it wraps timm's networks, so that the folder is timm's with a few words more."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from delta_tune.config import UserError
from delta_tune.export.library_folder import LibraryFolder, Logits, python_string
from delta_tune.export.library_network import library_network
from delta_tune.export.timm_folder import preprocessing_notes, timm_config
from delta_tune.inference.model import Model
from delta_tune.results.layout import CONFIG_FILE


def check_transformers() -> None:
    """Raise UserError if transformers is missing, without which the folder could not be checked."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            '--format hf needs the package transformers; install it with pip install "delta-tune[hf]", or give '
            "--format timm, whose folder transformers loads too."
        )


def hf_folder(model: Model) -> LibraryFolder:
    """The model in transformers' form.

    Raises:
        UserError: as `library_network`, or the images are not RGB, which transformers makes of every image.
    """
    if model.preprocessing.channels != 3:
        raise UserError(
            f"transformers' pipeline makes RGB of every image, and the model's have {model.preprocessing.channels} "
            "channels; give --format timm, onnx, torchscript or state_dict."
        )
    network = library_network(model, "timm", "hf")
    problem = "single_label_classification" if model.thresholds is None else "multi_label_classification"

    def load(place: str) -> str:
        return (
            "from transformers import pipeline\n"
            f'classify = pipeline("image-classification", {python_string(place)})\n'
            'print(classify("photo.jpg", top_k=3))\n'
        )

    return LibraryFolder(
        library="transformers",
        packages="transformers timm",
        state=network.state,
        files={
            CONFIG_FILE: {
                "model_type": "timm_wrapper",
                "architectures": ["TimmWrapperForImageClassification"],
                "problem_type": problem,
                **timm_config(model, network),
            }
        },
        load=load,
        predict="",
        read=_read,
        tags=("timm",),
        notes=(
            "`AutoModelForImageClassification` and `AutoImageProcessor` load the folder too, and so does timm "
            "(`local-dir:`). From the Hub, `USER/NAME` stands for the folder.",
            *preprocessing_notes(model.preprocessing),
        ),
    )


def _read(folder: Path) -> Logits:
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        read = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = read(pixel_values=images).logits
        return found

    return logits
