"""Predicting needs little: a process that has only a model's folder and an image imports neither Ray nor Optuna."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvision.models import squeezenet1_1

from delta_tune.inference.model_folder import save_model
from delta_tune.models.backbones import build_target, load_backbone

NOT_NEEDED = (
    *("ray", "optuna", "plotly", "jinja2", "rich", "scipy", "sklearn", "pandas", "matplotlib", "sqlalchemy"),
    *("wandb", "mlflow", "onnx", "onnxruntime", "onnxscript"),
)
PROGRAM = """
import json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None  # whoever imports it fails
import delta_tune
of_torchvision = delta_tune.load(sys.argv[2]).predict(sys.argv[4])
had_timm = "timm" in sys.modules
of_timm = delta_tune.load(sys.argv[3]).predict(sys.argv[4])
ours = sorted({name.split(".")[1] for name in sys.modules if name.startswith("delta_tune.")})
print(json.dumps([of_torchvision[0].label, of_timm[0].label, had_timm, ours]))
"""


@pytest.fixture(scope="module")
def of_torchvision(tmp_path_factory):
    """The folder of a model whose network is torchvision's."""
    folder = tmp_path_factory.mktemp("torchvision")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(squeezenet1_1().state_dict(), folder / "weights.pth")
    backbone = load_backbone("squeezenet1_1", str(folder / "weights.pth"), 64)
    network = build_target(backbone, 2, torch.Generator().manual_seed(0))
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    save_model(backbone, ("cat", "dog"), [folder / "weights.safetensors"], {}, folder / "best")
    return folder / "best"


def test_load_and_predict_need_no_package_of_the_search_and_the_report(of_torchvision, best, tmp_path):
    Image.fromarray(np.zeros((70, 80, 3), np.uint8)).save(tmp_path / "a.png")
    command = [sys.executable, "-c", PROGRAM, json.dumps(NOT_NEEDED), of_torchvision, best, tmp_path / "a.png"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    first, second, had_timm, ours = json.loads(ended.stdout)
    assert (first in ("cat", "dog"), second in ("blue", "green", "red")) == (True, True)
    assert not had_timm, "a network of torchvision waits for timm, which takes seconds to import"
    assert ours == ["config", "data", "filesystem", "inference", "labels", "models", "results"]
