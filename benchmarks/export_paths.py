"""One model, all ways to ask it: accuracy, agreement, time and size of `predict`, ONNX files and the server.

    python benchmarks/export_paths.py STUDY [--images N] [--rounds 3] [--recipes] [--json FILE]

STUDY is the folder of a finished study that you began on this machine and that has a test split. Each path begins
with the bytes of an image file and ends with a label: `predict` is `Model.predict`; the ONNX files get the pixels that
Pillow decodes, of any size; `served` is `python -m delta_tune serve` on loopback, one request at a time on one
connection. All use one thread. Images are asked in rounds, in each of which every path sees the same image before the
next image comes, in an order that turns; times are medians over images and rounds. MB is the weights' files, or the
ONNX file.

With --recipes also every way to quantise that was considered: calibration, bits of the weights, layers left in float.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image, ImageOps

from delta_tune.data.cutting import cut_data
from delta_tune.export.evidence import compare_probabilities
from delta_tune.export.model_file import export_model
from delta_tune.export.network_graph import cut_out, find_network, put_in
from delta_tune.export.quantization import Quantizer, Recipe
from delta_tune.export.reduced_file import boundary, write_reduced
from delta_tune.export.run_file import OnnxRunner
from delta_tune.export.study_images import read_study_images
from delta_tune.inference.model import Model, load
from delta_tune.results.layout import BEST
from delta_tune.results.study_record import StudyRecord

PRECISIONS = ("fp16", "int8")
CONSIDERED = [
    Recipe(calibration, layers, bits)
    for calibration in ("min-max", "percentile", "entropy")
    for bits in (8, 7)
    for layers in (0, 4, 8)
]
Ask = Callable[[bytes], str]
"""The bytes of an image file to the label."""


def photos_of_test(study: Path) -> tuple[list[bytes], list[str]]:
    """The files of the test split, and their classes."""
    settings = StudyRecord.read(study).settings
    cut = cut_data(
        settings["data"],
        task=settings["task"],
        val_fraction=settings["val_fraction"],
        test_fraction=settings["test_fraction"],
        mapping=None,
        seed=settings["seed"],
    )
    if "test" not in cut.chosen:
        raise SystemExit(f"{study} has no test split.")
    examples, chosen = cut.examples("test"), cut.chosen["test"]
    return [examples.read(int(n)) for n in chosen], [cut.classes[int(label)] for label in cut.labels_of("test")]


def ask_predict(model: Model) -> Ask:
    return lambda content: str(model.predict(content)[0].label)


def ask_onnx(file: Path, classes: tuple[str, ...]) -> Ask:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def ask(content: bytes) -> str:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        (shares,) = session.run(["probabilities"], {"images": np.asarray(picture)[None]})
        return classes[int(shares[0].argmax())]

    return ask


@contextlib.contextmanager
def served(file: Path) -> Iterator[Ask | None]:
    """Ask a server; None if there is no such command, or its packages are missing."""
    words = ["serve", str(file), "--port", "0", "--threads", "1", "--batch-wait", "0", "--quiet"]
    server = subprocess.Popen(
        [sys.executable, "-m", "delta_tune", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        found = re.search(r"http://[^:]+:(\d+)", server.stdout.readline())
        if found is None:
            yield None
            return
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]))

        def ask(content: bytes) -> str:
            connection.request("POST", "/predict", body=content, headers={"Content-Type": "image/jpeg"})
            return str(json.loads(connection.getresponse().read())["predictions"][0]["label"])

        yield ask
    finally:
        server.terminate()
        server.wait()


def measure(paths: dict[str, Ask], contents: list[bytes], rounds: int) -> dict[str, tuple[list[str], float]]:
    """Answers of each path, and its median milliseconds."""
    names, times = list(paths), {name: [] for name in paths}
    answers: dict[str, list[str]] = {name: [] for name in paths}
    for name in names:  # once before it counts
        paths[name](contents[0])
    for number in range(rounds * len(contents)):
        content = contents[number % len(contents)]
        for step in range(len(names)):
            name = names[(number + step) % len(names)]
            started = time.perf_counter()
            answer = paths[name](content)
            times[name].append(time.perf_counter() - started)
            if number < len(contents):
                answers[name].append(answer)
    return {name: (answers[name], 1000 * float(np.median(times[name]))) for name in names}


def paths_table(study: Path, model: Model, folder: Path, most: int | None, rounds: int) -> list[dict[str, Any]]:
    """A row for each path."""
    contents, labels = photos_of_test(study)
    if most is not None:
        chosen = np.random.default_rng(0).permutation(len(contents))[:most].tolist()
        contents, labels = [contents[n] for n in chosen], [labels[n] for n in chosen]
    files = {"float32": folder / "float32.onnx"}
    export_model(model, "onnx", files["float32"])
    images = read_study_images(model, study)
    for precision in PRECISIONS:
        files[precision] = folder / f"{precision}.onnx"
        write_reduced(model, files["float32"], precision, files[precision], images, force=True)
    sizes = {"predict": sum(file.stat().st_size for file in (study / BEST).glob("*.safetensors"))}
    paths: dict[str, Ask] = {"predict": ask_predict(model)}
    with contextlib.ExitStack() as servers:
        for precision, file in files.items():
            paths[f"ONNX {precision}"] = ask_onnx(file, model.classes)
            sizes[f"ONNX {precision}"] = file.stat().st_size
        for precision in ("float32", "int8"):
            ask = servers.enter_context(served(files[precision]))
            if ask is None:
                print(f"served, {precision}: left out, for the server did not start")
                continue
            paths[f"served, {precision}"] = ask
            sizes[f"served, {precision}"] = files[precision].stat().st_size
        found = measure(paths, contents, rounds)
    first = found["predict"][0]
    return [
        {
            "path": name,
            "images": len(labels),
            "accuracy": float(np.mean([a == b for a, b in zip(answers, labels, strict=True)])),
            "agreement": float(np.mean([a == b for a, b in zip(answers, first, strict=True)])),
            "ms": milliseconds,
            "MB": sizes[name] / 1e6,
        }
        for name, (answers, milliseconds) in found.items()
    ]


def recipes_table(study: Path, model: Model, folder: Path) -> list[dict[str, Any]]:
    """A row for each way to quantise, scored on validation and test images."""
    full = folder / "float32.onnx"
    graph, images = onnx.load(full), read_study_images(model, study)
    part = find_network(graph)
    known = boundary(model, graph, part, images[0].pixels[:200])
    runner = OnnxRunner(model, full, threads=1)
    before = [runner.probabilities(each.pixels) for each in images]
    one = images[0].pixels[:1]
    rows = []
    quantizer = Quantizer(cut_out(graph, part, known), {name: known[name] for name in part.inputs}, folder)
    for recipe in CONSIDERED:
        whole = put_in(graph, part, quantizer.quantised(recipe))
        reduced = OnnxRunner(model, whole, threads=1)
        row: dict[str, Any] = {"recipe": str(recipe)}
        for each, shares in zip(images, before, strict=True):
            told = compare_probabilities(model, shares, reduced.probabilities(each.pixels), each, "val_accuracy")
            row |= {f"{each.split} loss": told.loss, f"{each.split} agreement": told.agreement}
            row[f"{each.split} divergence"] = told.divergence
        times: list[list[float]] = [[], []]
        for _ in range(50):
            for file, taken in zip((runner, reduced), times, strict=True):
                feed, started = file.feed(one), time.perf_counter()
                file.answer(feed)
                taken.append(time.perf_counter() - started)
        row["time"] = float(np.median(times[1]) / np.median(times[0]))
        row["MB"] = whole.ByteSize() / 1e6
        rows.append(row)
        print("  ", row, flush=True)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """As Markdown."""
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(_cell(name, value) for name, value in row.items()) + " |")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        last = name.split()[-1]
        if last in ("accuracy", "agreement"):
            return f"{100 * value:.1f} %"
        return f"{100 * value:+.1f}" if last == "loss" else f"{value:.3g}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--images", type=int, help="test images at most (all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipes", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load(given.study)
    told: dict[str, Any] = {"model": model.config["backbone"]["model"], "onnxruntime": onnxruntime.__version__}
    print(f"{told['model']}, {len(model.classes)} classes, {model.preprocessing.image_size} pixels, one thread")
    with tempfile.TemporaryDirectory() as folder:
        told["paths"] = paths_table(given.study, model, Path(folder), given.images, given.rounds)
        show(told["paths"])
        if given.recipes:
            told["recipes"] = recipes_table(given.study, model, Path(folder))
            show(told["recipes"])
    if given.json:
        given.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
