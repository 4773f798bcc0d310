"""The images that a model was trained on, as it sees them: read from the study's data once, then from its folder."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np

from delta_tune.config import DATA_OPTIONS, UserError, visible
from delta_tune.data.batches import eval_batch_size
from delta_tune.data.dataset import Dataset, Split
from delta_tune.data.loading import Bar, load_dataset
from delta_tune.data.pictures import thumbnail
from delta_tune.data.resampling import merge_val_into_train
from delta_tune.data.splits import training_subset
from delta_tune.explanation.embedding_file import EmbeddedImages, read_embedded, write_embedded
from delta_tune.explanation.similarity import unit_vectors, usual_similarities
from delta_tune.filesystem.uris import is_uri
from delta_tune.inference.embeddings import embed_squares, embedding_size
from delta_tune.inference.ensemble import members_of
from delta_tune.inference.model import Model
from delta_tune.inference.study_of_model import study_of_model
from delta_tune.results.layout import EMBEDDINGS_FILE, STUDY_FILE
from delta_tune.results.remembered_studies import say_places, strange_places
from delta_tune.results.study_record import StudyRecord

MOST_IMAGES = 20_000
"""Of more training images a stratified sample is taken,"""
MOST_BYTES = 256 * 2**20
"""and a smaller one if so many embeddings, of two bytes a number, take more."""
FORMAT = "1"
"""Of the file in the study's folder."""


def training_images(
    model: Model, folder: str | Path, *, data: str | Path | None = None, progress: Bar | None = None
) -> EmbeddedImages:
    """The images that a model was trained on, validation too if the final model was.

    The first call reads the study's data and runs the model over its images. The result is kept in the study's folder,
    if that is on this machine and can be written to, until the weights change.

    Args:
        model: of the study.
        folder: the study's, or its `best/`, as for `load`.
        data: the study's data, if it has moved, or if somebody else began the study.
        progress: bars to advance by each image.

    Raises:
        UserError: there is no study, or its data may not be read unasked, cannot be read, or is not what it was.
    """
    place, record = study_of_model(folder, "training")
    key = _key(model, record)
    file = None if is_uri(place) else Path(place) / EMBEDDINGS_FILE
    width = embedding_size(model.network, model.config["backbone"]["head"])
    if file is not None:
        with contextlib.suppress(OSError, ValueError):  # a damaged one is written again
            if (kept := read_embedded(file, key, width, len(model.classes))) is not None:
                return kept
    dataset = _dataset(model, record, place, data, progress)
    found = embed_images(model, (merge_val_into_train(dataset) if record.has_seen_val else dataset).train, progress)
    if file is not None:
        with contextlib.suppress(OSError):  # a folder that is read-only, or a full disk
            write_embedded(found, key, file)
    return found


def embed_images(model: Model, split: Split, progress: Bar | None = None) -> EmbeddedImages:
    """The images of a split as the model sees them; of many a sample."""
    head = model.config["backbone"]["head"]
    chosen = _sample(split, min(MOST_IMAGES, MOST_BYTES // (2 * embedding_size(model.network, head))))
    size, embeddings, thumbnails = eval_batch_size(next(model.network.parameters()).device), [], []
    with (
        progress("Looking at training images", len(chosen)) if progress else contextlib.nullcontext(_ignore) as advance
    ):
        for start in range(0, len(chosen), size):
            squares = split.images.batch(chosen[start : start + size])
            embeddings.append(unit_vectors(embed_squares(model.network, head, squares, model.preprocessing)))
            thumbnails += [thumbnail(square, model.preprocessing) for square in squares]
            advance(len(squares))
    known = np.concatenate(embeddings).astype(np.float16)
    return EmbeddedImages(
        embeddings=known,
        labels=np.asarray(split.labels)[chosen],
        names=tuple(split.names[position] for position in chosen.tolist()),
        thumbnails=tuple(thumbnails),
        num_all=len(split),
        usual=usual_similarities(known),
    )


def _ignore(count: int) -> None:
    pass


def _sample(split: Split, most: int) -> np.ndarray:
    """Ascending positions of all images, or of a stratified part of them."""
    if len(split) <= most:
        return np.arange(len(split))
    part = training_subset(split.labels, fraction=most / len(split), per_class=None, seed=0)
    return part[np.linspace(0, len(part) - 1, min(most, len(part))).round().astype(np.int64)]


def _key(model: Model, record: StudyRecord) -> str:
    """Hex digest of all that the embeddings depend on: weights, preprocessing, and the data's fingerprint."""
    preprocessing = repr(model.preprocessing)
    told = (FORMAT, preprocessing, model.classes, record.fingerprints["data"], record.has_seen_val)
    digest = hashlib.sha256(repr((*told, MOST_IMAGES, MOST_BYTES)).encode(errors="surrogatepass"))
    for member in members_of(model.network):
        for name, value in member.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _dataset(model: Model, record: StudyRecord, place: str, data: str | Path | None, progress: Bar | None) -> Dataset:
    settings = record.settings
    if data is None and (strange := strange_places(settings, record.study_id, ("data", "label_map"))):
        which = say_places(settings, strange)
        raise UserError(
            visible(
                f"{place} was not begun by you on this machine, so the {which} that its {STUDY_FILE} names is not read "
                f"unasked; name it with --data if you trust it."
            )
        )
    dataset = load_dataset(
        settings["data"] if data is None else data,
        preprocessing=model.preprocessing,
        seed=settings["seed"],
        progress=progress,
        **{name: settings[name] for name in DATA_OPTIONS},
    )
    if dataset.fingerprint != record.fingerprints["data"] or dataset.classes != model.classes:
        raise UserError(
            visible(
                f"The data {settings['data'] if data is None else data} is not what {place} was trained on: files were "
                f"added, removed or changed since; restore it, or name a copy of what it was with --data."
            )
        )
    return dataset
