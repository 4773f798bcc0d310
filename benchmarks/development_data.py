"""The photos and weights that some benchmarks use: the folder that DELTA_TUNE_TEST_DATA names.

It holds `data/flowers17/{train,test}/<class>/*` and such, and `weights/mobilenet_v2.pth`, `weights/squeezenet1_1.pth`.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "DELTA_TUNE_TEST_DATA"
FOLDER = Path(os.environ.get(VARIABLE) or "DELTA_TUNE_TEST_DATA-is-not-set").absolute()
DATA, WEIGHTS = FOLDER / "data", FOLDER / "weights"
MISSING = f"{VARIABLE} names no folder that holds data/ and weights/"
