"""A tiny ONNX file of the kind that is served, and a server of it in a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("blue", "green", "red")
PREPROCESSING = {
    "image_size": 8,
    "stored_size": 12,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "interpolation": "bilinear",
    "resize": "crop",
    "channels": 3,
    "white": None,
}
BLOCKED = (
    *("torch", "torchvision", "timm", "ray", "optuna", "pyarrow", "scipy", "safetensors", "jinja2", "plotly", "rich"),
    *("filelock", "huggingface_hub"),
)
"""What the server's process must not import: the test that blocks it proves that it does not."""
START = (
    f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r})); "
    "from delta_tune.cli.commands import main; sys.exit(main(sys.argv[1:]))"
)


def mean_colour_model(file, *, classes=CLASSES, task=None, **metadata):
    """Write a file whose class k is the likelier the more an image has of the k-th channel from behind (BGR).

    The probability is softmax, or with task="multilabel" the sigmoid, of (mean colour - 128) / 16.
    """
    channels = PREPROCESSING["channels"]
    weight = np.zeros((channels, len(classes)), dtype=np.float32)
    for k in range(min(channels, len(classes))):
        weight[channels - 1 - k, k] = 1 / 16
    last = helper.make_node("Sigmoid" if task == "multilabel" else "Softmax", ["logits"], ["probabilities"])
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
            helper.make_node("Sub", ["mean", "middle"], ["centred"]),
            helper.make_node("MatMul", ["centred", "weight"], ["logits"]),
            last,
        ],
        "mean colour",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", channels])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(classes)])],
        [
            numpy_helper.from_array(np.array([1, 2]), "axes"),
            numpy_helper.from_array(np.array(128, dtype=np.float32), "middle"),
            numpy_helper.from_array(weight, "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    told = {"classes": list(classes), "preprocessing": PREPROCESSING, "task": task or "classification", **metadata}
    helper.set_model_props(model, {name: json.dumps(value) for name, value in told.items()})
    onnx.save(model, file)
    return file


def expected(pixels, task=None):
    """Probabilities (3,) of uint8 pixels (H, W, 3) of a stored square, by the definition of `mean_colour_model`."""
    logits = (pixels.reshape(-1, 3).mean(0)[::-1] - 128) / 16
    if task == "multilabel":
        return 1 / (1 + np.exp(-logits))
    return np.exp(logits) / np.exp(logits).sum()


class Server:
    """A server that runs, by the command that users give."""

    def __init__(self, *arguments, log):
        self.log = log
        with log.open("w") as file:
            command = [sys.executable, "-c", START, "serve", *map(str, arguments), "--port", "0"]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if found := re.search(r"http://(\[?[\w.:]+\]?):(\d+)", line):
                self.host, self.port = found[1].strip("[]"), int(found[2])
                break
        else:
            raise AssertionError(f"the server ended: {self.said} {log.read_text()}")

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def end(self, number=signal.SIGTERM, within_s=20.0):
        """Exit status, and the seconds that it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(within_s), time.monotonic() - start


@contextlib.contextmanager
def running(*arguments, log):
    server = Server(*arguments, log=log)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.process.stdout.close()
