"""AutoGluon-MultiModal on image folders, for the interpreter that has it; it needs nothing of this project.

    python with_autogluon.py FOLDER OUT --model NAME --image-size N --seconds S [--seed N]

Fits with AutoGluon's own defaults beside network, input size and time limit. OUT/fitted.json has the moment when `fit`
returned, before which there is no model to use, and the class that the model gives each test image, in the order of
their paths.
"""

import argparse
import json
import os
import time
from pathlib import Path


def table(folder: Path):
    """The images of a split and their classes."""
    import pandas as pd

    paths = sorted(folder.glob("*/*"))
    return pd.DataFrame({"image": [str(path) for path in paths], "label": [path.parent.name for path in paths]})


def seconds_since_start() -> float:
    """Of this process."""
    import psutil

    return time.time() - psutil.Process(os.getpid()).create_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from autogluon.multimodal import MultiModalPredictor

    predictor = MultiModalPredictor(
        label="label", problem_type="multiclass", eval_metric="accuracy", path=str(options.out / "model")
    )
    predictor.fit(
        table(options.folder / "train"),
        tuning_data=table(options.folder / "val"),
        time_limit=max(1, round(options.seconds - seconds_since_start())),
        seed=options.seed,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": options.model,
            "model.timm_image.image_size": options.image_size,
        },
    )
    fitted = time.monotonic()
    labels = predictor.predict(table(options.folder / "test")[["image"]], as_pandas=False)
    told = {"monotonic": fitted, "labels": [str(label) for label in labels]}
    (options.out / "fitted.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
