"""Heat maps for a study's report: a few images that are right, wrong or doubtful, made when the study ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from delta_tune.config import as_utf8
from delta_tune.console.escape import distinct_names
from delta_tune.data.augmentation import center_crop
from delta_tune.data.device_copies import to_device
from delta_tune.data.fitting import Pixels
from delta_tune.data.pictures import crop_stored_square
from delta_tune.explanation.heat_maps import can_draw, heat_maps
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.rows import read_table_file
from delta_tune.filesystem.untrusted import Count, MeanOfShares, Picture, Text, check_rows, refusing
from delta_tune.inference.ensemble import Flipped, combine, members_of
from delta_tune.labels.kinds import LabelKind, Labels
from delta_tune.labels.several_labels import NO_LABEL
from delta_tune.labels.thresholds import HALF
from delta_tune.models.backbones import Backbone
from delta_tune.models.hooked_layers import heat_map_layer
from delta_tune.models.network_state import rebuild, state_arrays
from delta_tune.report.heat_map_drawing import draw_heat_map, to_jpeg
from delta_tune.training.task import Task
from delta_tune.training.workplace import ThisProcess, Workplace

Group = Literal["right", "wrong", "doubtful"]
COLUMNS: dict[str, Any] = {
    **{"number": Count, "group": Group, "image": Text, "true": Text, "picture": Picture},
    **{"label": Text, "probability": MeanOfShares, "map": Picture},
}
"""Columns of the file, which has a row for each map, and their values; maps of one image have the same `number`."""
IMAGES = 4
"""Of each group."""
PICTURE_SIZE = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMapImage:
    """An image and where the network sees one or two classes in it."""

    group: Group
    image: str
    true: str
    """Its class, or its labels."""
    picture: bytes
    """JPEG."""
    maps: tuple[tuple[str, float, bytes], ...]
    """Class, probability, and the heat map over the picture, a JPEG."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An image of a split and the numbers of the classes whose maps are drawn."""

    group: Group
    position: int
    classes: tuple[int, ...]


def save_heat_map_images(
    task: Task,
    name: str,
    logits: Tensor,
    network: nn.Module,
    file: Path,
    workplace: Workplace | None = None,
    *,
    thresholds: Sequence[float] | None = None,
) -> None:
    """Draw heat maps of a few images of the split `name`; nothing where the package that computes them is missing.

    Args:
        task: its split was predicted.
        name: of the split.
        logits: (N, K), calibrated.
        network: the final one, a combination of several too.
        file: Parquet file to write.
        workplace: computes the maps; None is this process.
        thresholds: with several labels an image, from which probability on each is there, (K,).
    """
    if not can_draw():
        return
    split, kind = task.dataset.for_name(name), task.dataset.kind
    classes = distinct_names(task.dataset.classes, as_utf8)
    probabilities: npt.NDArray[np.float32] = kind.probabilities(logits).numpy()
    choose = _choose_of_several if task.dataset.is_multilabel else _choose
    shown = choose(probabilities, split.labels, thresholds)
    pixels = split.images.batch(np.array([each.position for each in shown], dtype=np.int64))
    wanted = [(row, number) for row, each in enumerate(shown) for number in each.classes]
    states = [state_arrays(member) for member in members_of(network)]
    place = workplace or ThisProcess()
    maps = iter(place.run(_maps, task.backbone, kind, states, isinstance(network, Flipped), pixels, wanted))
    rows = []
    for number, (square, each) in enumerate(zip(pixels, shown, strict=True)):
        seen = crop_stored_square(square, task.backbone.preprocessing)
        seen = seen.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BICUBIC)
        about = {
            "number": number,
            "group": each.group,
            "image": as_utf8(split.names[each.position]),
            "true": _told(split.labels[each.position], classes),
            "picture": to_jpeg(seen),
        }
        rows += [
            about
            | {
                "label": classes[label],
                "probability": float(probabilities[each.position, label]),
                "map": to_jpeg(draw_heat_map(seen, next(maps))),
            }
            for label in each.classes
        ]
    file.parent.mkdir(exist_ok=True)
    with atomic_write(file) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)


def read_heat_map_images(file: Path) -> dict[Group, list[HeatMapImage]]:
    """Read what `save_heat_map_images` wrote, group by group; empty if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return {}
    with refusing(file, "remove it: a report leaves out what it lacks"):
        rows, _ = read_table_file(file)
        check_rows(rows, COLUMNS)
    groups: dict[Group, list[HeatMapImage]] = {name: [] for name in get_args(Group)}
    for _, found in groupby(rows, key=itemgetter("number", "group")):
        of_image = list(found)
        image = HeatMapImage(
            maps=tuple((row["label"], row["probability"], row["map"]) for row in of_image),
            **{name: of_image[0][name] for name in ("group", "image", "true", "picture")},
        )
        groups[image.group].append(image)
    return {name: images for name, images in groups.items() if images}


def _maps(
    backbone: Backbone,
    kind: LabelKind,
    states: Sequence[Mapping[str, np.ndarray]],
    flip: bool,
    pixels: Pixels,
    wanted: Sequence[tuple[int, int]],
    device: torch.device,
) -> npt.NDArray[np.float32]:
    """A heat map for each image and class of `wanted`, (M, S, S)."""
    network = combine([rebuild(backbone, state, device) for state in states], kind, flip=flip)
    sizes = backbone.preprocessing
    layer = heat_map_layer(members_of(network)[0], backbone.head, sizes.image_size, sizes.channels)
    images = center_crop(to_device(pixels[[row for row, _ in wanted]], device), sizes)
    return heat_maps(network, layer, images, [number for _, number in wanted], kind)


def _choose(
    probabilities: npt.NDArray[np.float32], labels: Labels, thresholds: Sequence[float] | None = None
) -> list[Shown]:
    """The surest right answers of different classes, the surest wrong ones, and those with the closest second class."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    first, second = order[:, 0], order[:, min(1, order.shape[1] - 1)]
    rows = np.arange(len(labels))
    lead = probabilities[rows, first] - np.where(first == second, 0, probabilities[rows, second])
    is_right = first == labels
    groups: dict[Group, list[int]] = _groups(probabilities[rows, first], lead, is_right, first)
    pairs = {"right": first[:, None], "wrong": np.stack([first, labels], 1), "doubtful": np.stack([first, second], 1)}
    return [
        Shown(group, position, tuple(dict.fromkeys(pairs[group][position].tolist())))
        for group, positions in groups.items()
        for position in positions
    ]


def _choose_of_several(
    probabilities: npt.NDArray[np.float32], labels: Labels, thresholds: Sequence[float] | None
) -> list[Shown]:
    """The same with several labels an image: the most probable label, the most wrong one, the most doubtful one."""
    least = np.full(labels.shape[1], HALF) if thresholds is None else np.asarray(thresholds)
    gaps, errors = np.abs(probabilities - least), np.abs(probabilities - labels)
    is_right = ((probabilities >= least) == (labels > 0)).all(1)
    likeliest = probabilities.argmax(1)
    sure = np.where(is_right, gaps.min(1), errors.max(1))
    of_group = {"right": likeliest, "wrong": errors.argmax(1), "doubtful": gaps.argmin(1)}
    return [
        Shown(group, position, (int(of_group[group][position]),))
        for group, positions in _groups(sure, gaps.min(1), is_right, likeliest).items()
        for position in positions
    ]


def _groups(
    sure: npt.NDArray[Any], lead: npt.NDArray[Any], is_right: npt.NDArray[np.bool_], answers: npt.NDArray[np.int64]
) -> dict[Group, list[int]]:
    """Positions of a few images: right and sure ones with different answers, wrong and sure ones, and doubtful ones."""
    surest = np.argsort(-sure, kind="stable").tolist()
    of_answer: dict[int, int] = {}
    for position in surest:
        if is_right[position]:
            of_answer.setdefault(int(answers[position]), position)
    right = list(of_answer.values())[:IMAGES]
    wrong = [position for position in surest if not is_right[position]][:IMAGES]
    taken = {*right, *wrong}
    doubtful = [position for position in np.argsort(lead, kind="stable").tolist() if position not in taken][:IMAGES]
    return {"right": right, "wrong": wrong, "doubtful": doubtful}


def _told(label: Any, classes: Sequence[str]) -> str:
    """The class of an image, or its labels."""
    if np.ndim(label) == 0:
        return classes[int(label)]
    return " + ".join(classes[number] for number in np.flatnonzero(label).tolist()) or NO_LABEL
