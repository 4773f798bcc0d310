"""What several test modules share: a tiny network with weights in a file, a folder of easy images, one Ray cluster."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from helpers import studies
from helpers.nodes import free_port
from helpers.several_labels import coloured_squares, source_of
from PIL import Image
from pyarrow import fs

from delta_tune.config import TrialConfig
from delta_tune.results.tables import StudyTables
from delta_tune.training.task import Task, prepare
from delta_tune.training.trial import run_trial

# Workers are started by the tests' Ray: two threads each on two cores would only slow one another down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The studies of tests are remembered apart from the user's own.
_STATE = tempfile.TemporaryDirectory(prefix="delta-tune-tests-")
os.environ["XDG_STATE_HOME"] = _STATE.name
atexit.register(_STATE.cleanup)

TINY = "test_resnet"
IMAGE_SIZE = 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos (`data/`) and weights (`weights/`) that DELTA_TUNE_TEST_DATA names."""
    folder = os.environ.get("DELTA_TUNE_TEST_DATA")
    if not folder or not (Path(folder) / "data").is_dir():
        pytest.skip("DELTA_TUNE_TEST_DATA names no folder with data/ and weights/")
    return Path(folder).absolute()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's smallest residual network, with batch norms that are not the default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(TINY, pretrained=False).train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # timm starts residual branches at 0: ablations would be too
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.2)
        for _ in range(3):
            model(torch.randn(8, 3, IMAGE_SIZE, IMAGE_SIZE))
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return file


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around a colour per class: train 3 × 12, val 3 × 6, test 3 × 5 images."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 5)):
        for k, name in enumerate(("blue", "green", "red")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 160, (80, 80, 3))
                pixels[..., 2 - k] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def task(image_folder: Path, tiny_weights: Path) -> Task:
    """The task of the two; trials leave it as it is, apart from what was measured for them."""
    return prepare(image_folder, f"timm:{TINY}", str(tiny_weights), image_size=IMAGE_SIZE)


@pytest.fixture(scope="session")
def label_task(tiny_weights: Path) -> Task:
    """A task of three labels an image, any of which may be there; train 48, val 24, test 12 images."""
    with source_of(coloured_squares({"train": 48, "val": 24, "test": 12})):
        return prepare("squares", f"timm:{TINY}", str(tiny_weights), image_size=IMAGE_SIZE)


@pytest.fixture(scope="session")
def best(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `best` folder of a study of one trial."""
    from delta_tune.study.best_model import completed_model, save_winner  # not for tests that need no Ray

    folder = tmp_path_factory.mktemp("study")
    config = TrialConfig(regularizer="l2", head_start="random", lr=0.05, batch_norm="train", batch_size=8, max_epochs=4)
    result = run_trial(task, config, checkpoint=folder / "checkpoints" / "00000")
    tables = StudyTables(folder, "val_accuracy")
    tables.add(0, config, {}, {})
    for row in result.epochs:
        tables.report(0, row)
    tables.finish(0, "completed")
    save_winner(task, tables, completed_model(tables, 0), folder / "best")
    return folder / "best"


@pytest.fixture
def no_trials(tmp_path: Path) -> StudyTables:
    """Tables of a study that has none."""
    return StudyTables(tmp_path, "val_accuracy")


@pytest.fixture
def forty_trials(no_trials: StudyTables) -> StudyTables:
    """Two methods; trials of all kinds of ends."""
    studies.random_trials(no_trials, 40)
    return no_trials


@pytest.fixture(scope="session")
def s3_port() -> int:
    """Where the tests' S3 server will be: the variables must be there before Ray's workers are started."""
    port: int = free_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return port


@pytest.fixture(scope="session")
def s3_server(s3_port: int) -> Iterator[None]:
    """A real S3 server on this machine, found by the usual variables."""
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(s3_port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", s3_port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.1)
        yield
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3_server: None) -> str:
    """The name of an empty bucket of the test's own."""
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    fs.FileSystem.from_uri(f"s3://{name}?allow_bucket_creation=true")[0].create_dir(name)
    return name


@pytest.fixture(scope="session")
def ray_cluster(s3_port: int) -> Iterator[None]:
    """One Ray with two CPUs and a GPU that is a name only, for the whole session; so no study starts or ends one."""
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
