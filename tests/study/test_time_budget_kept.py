"""The wall clock of whole studies with a time budget, from the command to its end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of 5 kinds, 60 each, whose epochs are seconds long at the size of the weights."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for kind in range(5):
        (folder / str(kind)).mkdir()
        for number in range(60):
            coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            coarse[..., kind % 3] //= 1 + kind
            Image.fromarray(coarse).resize((240, 240)).save(folder / str(kind) / f"{number}.jpg")
    return folder


# Not where other programs use the CPUs: the end of a study would take longer than what is kept for it.
@pytest.mark.slow
@pytest.mark.parametrize(("data", "budget"), [("demo", 20), ("photos", 90)])
def test_study_ends_with_its_time_budget_and_a_model(photos, tmp_path, data, budget):
    own = ["--data", str(photos), "--model", "timm:tf_efficientnet_lite0", "--weights", "demo"]
    command = [sys.executable, str(ROOT / "launch.py"), *(own if data == "photos" else [])]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--time-budget", f"{budget}s", "--out", str(tmp_path), "--name", "s"],
        capture_output=True,
        text=True,
        timeout=budget + 120,
        check=False,
    )
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert seconds <= budget + max(10, 0.05 * budget), done.stdout
    assert (tmp_path / "s" / "best" / "config.json").exists()
    assert "finished" in json.loads((tmp_path / "s" / "study.json").read_text())
