"""Does an exported file that takes pixels answer what `predict` answers, on real photos?

    python benchmarks/export_parity.py STUDY PHOTOS [PHOTOS ...] [--resize crop squash letterbox]
                                       [--interpolation bilinear bicubic] [--most 2000] [--json FILE] [--cost]

STUDY is the folder of a finished study, PHOTOS are folders, subfolders included. Each photo is decoded once, upright
and as RGB, and goes into each file in its own size. `predict` gets the same pixels. The files are ONNX (by onnxruntime,
and by OpenVINO where it is installed, as it comes and with INFERENCE_PRECISION_HINT f32), TorchScript, and the archive
of `torch.export`. `--resize` and `--interpolation` set how the model's images become squares, if not as in the study.

For each: the share of photos with the same first class (required: 99.5 %), and the difference of probabilities of a
photo, the largest over the classes: the largest and the 99.9th percentile over the photos (at most 0.02). Before them
stands how many of the values that the network sees differ from Pillow's by a grey level or more, of 255.

`--cost` times instead what stands before the network, alone: milliseconds of processor time for one image of noise in
onnxruntime, and of Pillow with normalising by torch, each the least of 7 runs in one thread.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from delta_tune.data.augmentation import center_crop
from delta_tune.data.images import DamagedImage, Preprocessing, open_image, stored_square
from delta_tune.export.model_file import export_model
from delta_tune.export.preparation import Preparation
from delta_tune.inference.model import Model, load

SAME, APART = 0.995, 0.02
LEAST_PHOTOS = 500
COSTS = ((110, 110), (256, 256), (480, 640), (3000, 4000), (4000, 3000))
Shares = NDArray[np.float32]
"""Probabilities (N, K)."""
Answer = Callable[[NDArray[np.uint8]], Shares]
"""Probabilities (1, K) of a photo (1, H, W, 3)."""


def photos_in(folders: list[Path], most: int) -> list[NDArray[np.uint8]]:
    """Pixels of the photos, in the order of their names; those that cannot be read are left out."""
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    photos = []
    for file in files[:most]:
        try:
            photos.append(np.array(open_image(file)))
        except DamagedImage as error:
            print(error)
    return photos


def answers(model: Model, folder: Path) -> Iterator[tuple[str, Answer]]:
    """The files of the model, each as a function."""
    (file,) = export_model(model, "onnx", folder / "model.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    yield "onnx", lambda images: session.run(["probabilities"], {"images": images})[0]
    if importlib.util.find_spec("openvino"):
        import openvino

        for name, options in (("openvino", {}), ("openvino, f32", {"INFERENCE_PRECISION_HINT": "f32"})):
            compiled = openvino.Core().compile_model(str(file), "CPU", options)
            yield name, lambda images, compiled=compiled: compiled(images)["probabilities"]
    (file,) = export_model(model, "torchscript", folder / "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still what programs in C++ read
        script = torch.jit.load(str(file))
    yield "torchscript", lambda images: script(torch.from_numpy(images)).numpy()
    (file,) = export_model(model, "torch_export", folder / "model.pt2")
    program = torch.export.load(file).module()
    yield "torch_export", lambda images: program(torch.from_numpy(images)).numpy()


def other_pixels(photos: list[NDArray[np.uint8]], preprocessing: Preprocessing) -> tuple[int, int]:
    """Of the values that the network sees, how many differ from Pillow's by a grey level or more; and their number."""
    prepare, different, total = Preparation(preprocessing), 0, 0
    level = 1 / (255 * torch.tensor(preprocessing.std)[:, None, None])
    for photo in photos:
        expected = center_crop(torch.from_numpy(stored_square(photo, preprocessing)[None]), preprocessing)
        apart = (prepare(torch.from_numpy(photo)[None]) - expected).abs() / level
        different, total = different + int((apart > 0.5).sum()), total + apart.numel()
    return different, total


def compare(expected: Shares, found: Shares) -> dict[str, float]:
    apart = np.abs(expected - found).max(1)
    return {
        "same": float((expected.argmax(1) == found.argmax(1)).mean()),
        "largest": float(apart.max()),
        "p99.9": float(np.quantile(apart, 0.999)),
        "mean": float(apart.mean()),
    }


def with_settings(model: Model, changes: dict[str, str]) -> Model:
    """The model with other ways of making squares of images."""
    config = copy.deepcopy(model.config)
    config["preprocessing"] |= changes
    return Model(model.network, config)


def measure(model: Model, photos: list[NDArray[np.uint8]]) -> dict[str, Any]:
    expected = np.array([list(each.probabilities.values()) for each in model.predict(photos)], dtype=np.float32)
    different, total = other_pixels(photos, model.preprocessing)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name, answer in answers(model, Path(folder)):
            found = np.concatenate([answer(np.ascontiguousarray(photo)[None]) for photo in photos])
            rows[name] = compare(expected, found)
    return {
        "resize": model.preprocessing.resize,
        "interpolation": model.preprocessing.interpolation,
        "different_values": different,
        "values": total,
        "files": rows,
    }


def show(found: dict[str, Any]) -> None:
    print(
        f"{found['resize']}, {found['interpolation']}: {found['different_values']} of {found['values']:,} values that "
        "the network sees differ from Pillow's."
    )
    table = Table("file", "same first class", "largest difference", "99.9th percentile", "mean")
    for name, row in found["files"].items():
        table.add_row(name, f"{100 * row['same']:.2f} %", *(f"{row[key]:.2g}" for key in ("largest", "p99.9", "mean")))
    Console().print(table)


def least_ms(work: Callable[[], object], runs: int = 7) -> float:
    found = []
    for _ in range(runs):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return 1000 * min(found)


def show_cost(preprocessing: Preprocessing) -> None:
    """Time the preparation of images of several sizes, a batch of one each."""
    pixels = torch.zeros((2, 40, 50, preprocessing.channels), dtype=torch.uint8)
    axes = {axis: torch.export.Dim(name) for axis, name in enumerate("NHW")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program = torch.onnx.export(
            Preparation(preprocessing).eval(),
            (pixels,),
            dynamo=True,
            input_names=["images"],
            dynamic_shapes=(axes,),
            verbose=False,
        )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = program.model_proto
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    table = Table("height × width", "ONNX, ms", "Pillow and torch, ms")
    torch.set_num_threads(1)
    for height, width in COSTS:
        image = np.random.default_rng(0).integers(0, 256, (height, width, preprocessing.channels), dtype=np.uint8)
        picture = Image.fromarray(image) if preprocessing.channels == 3 else image

        def by_hand(picture: Any = picture) -> torch.Tensor:
            return center_crop(torch.from_numpy(stored_square(picture, preprocessing)[None]), preprocessing)

        inside = least_ms(lambda image=image: session.run(None, {"images": image[None]}))
        table.add_row(f"{height} × {width}", f"{inside:.1f}", f"{least_ms(by_hand):.1f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--resize", nargs="+", choices=("crop", "squash", "letterbox"))
    parser.add_argument("--interpolation", nargs="+", choices=("bilinear", "bicubic"))
    parser.add_argument("--most", type=int, default=2000, help="photos that are used")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--cost", action="store_true", help="time what stands before the network")
    given = parser.parse_args()
    model = load(given.study)
    if given.cost:
        return show_cost(model.preprocessing)
    photos = photos_in(given.photos, given.most)
    sizes = {photo.shape[:2] for photo in photos}
    tall = sum(photo.shape[0] > photo.shape[1] for photo in photos)
    print(f"{len(photos)} photos of {len(sizes)} sizes, {tall} of them upright; required are {LEAST_PHOTOS}.")
    rows = []
    for resize in given.resize or [model.preprocessing.resize]:
        for interpolation in given.interpolation or [model.preprocessing.interpolation]:
            rows.append(measure(with_settings(model, {"resize": resize, "interpolation": interpolation}), photos))
            show(rows[-1])
    files = [(name, row) for found in rows for name, row in found["files"].items() if name != "openvino"]
    fine = all(row["same"] >= SAME and row["largest"] <= APART for _, row in files) and len(photos) >= LEAST_PHOTOS
    print(f"Required of all but OpenVINO as it comes: {'met' if fine else 'not met'}.")
    if given.json:
        given.json.write_text(json.dumps({"photos": len(photos), "sizes": len(sizes), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
