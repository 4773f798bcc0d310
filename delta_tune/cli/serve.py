"""`python -m delta_tune serve`: the model over HTTP."""

from __future__ import annotations

import argparse
import importlib.util
import math

from delta_tune.cli.model_flags import FLIP, parse_min_confidence
from delta_tune.config import UserError, visible
from delta_tune.config.sizes import parse_bytes

PACKAGES = ("fastapi", "httptools", "onnxruntime", "prometheus_client", "python_multipart", "uvicorn")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
DESCRIPTION = (
    "Answer images with predictions over HTTP: POST them to /predict, or open / in a browser. There is no password: "
    "listen on other addresses than this machine's own only where everybody who reaches it may use it."
)


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    command.description = DESCRIPTION
    command.add_argument(
        "model", metavar="MODEL", help="Folder of a study, its best/, or a file that export --format onnx wrote"
    )
    command.add_argument("--host", default="127.0.0.1", metavar="HOST", help="Address to listen at (127.0.0.1)")
    command.add_argument("--port", type=int, default=8000, metavar="PORT", help="Port; 0 is any that is free (8000)")
    command.add_argument(
        "--min-confidence",
        default="auto",
        metavar="X|auto",
        help="Predictions with a lower probability are unsure; auto is what the study found (auto)",
    )
    command.add_argument("--flip", action="store_true", help=FLIP)
    command.add_argument("--threads", type=int, metavar="N", help="Decoding and computing threads (the CPUs there are)")
    command.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="Most images that are computed together (8)"
    )
    command.add_argument(
        "--batch-wait", type=float, default=2.0, metavar="MS", help="Milliseconds an image waits for others (2)"
    )
    command.add_argument(
        "--max-queue", type=int, default=256, metavar="N", help="Images at work; more are answered 503 (256)"
    )
    command.add_argument("--max-images", type=int, default=64, metavar="N", help="Images in one request (64)")
    command.add_argument(
        "--max-image-size",
        default="32MiB",
        metavar="SIZE",
        help="Bytes of an image file (32MiB); a request has 4 times as many",
    )
    command.add_argument(
        "--max-pixels", type=float, default=64, metavar="MILLIONS", help="Width × height of an image (64 million)"
    )
    command.add_argument(
        "--timeout",
        type=float,
        default=30,
        metavar="S",
        help="Seconds for a request to arrive, and for its answer (30)",
    )
    command.add_argument(
        "--max-connections", type=int, default=512, metavar="N", help="Connections; more are answered 503 (512)"
    )
    command.add_argument("--quiet", action="store_true", help="No line for each request")


def run(given: argparse.Namespace) -> int:
    """Run the command until it is told to end."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f'serve needs the packages {", ".join(missing)}; install them with pip install "delta-tune[serve]".'
        )
    import tempfile
    from contextlib import ExitStack

    from delta_tune.data.limits import MAX_PIXELS
    from delta_tune.serving.app import create_app
    from delta_tune.serving.model import open_model
    from delta_tune.serving.onnx_files import onnx_file
    from delta_tune.serving.server import address_of, listen, run
    from delta_tune.serving.settings import Settings
    from delta_tune.serving.threads import available_cpus

    image_bytes = parse_bytes(given.max_image_size, "--max-image-size")
    _check_numbers(given, image_bytes, MAX_PIXELS / 1e6)
    settings = Settings(
        threads=available_cpus() if given.threads is None else given.threads,
        batch_size=given.batch_size,
        batch_wait_s=given.batch_wait / 1000,
        max_queue=given.max_queue,
        max_images=given.max_images,
        max_image_bytes=image_bytes,
        max_request_bytes=4 * image_bytes,
        max_buffered_bytes=16 * image_bytes,
        max_pixels=int(given.max_pixels * 1e6),
        max_connections=given.max_connections,
        read_timeout_s=given.timeout,
        timeout_s=given.timeout,
        access_log=not given.quiet,
    )
    least = parse_min_confidence(given.min_confidence)
    with ExitStack() as stack:
        listening = stack.enter_context(listen(given.host, given.port))

        def new_folder() -> str:
            return stack.enter_context(tempfile.TemporaryDirectory(prefix="delta-tune-"))

        model = open_model(onnx_file(given.model, flip=given.flip, new_folder=new_folder))
        app = create_app(model, settings, least)

        def announce() -> None:
            port = listening.getsockname()[1]
            print(
                visible(
                    f"Serving {given.model} ({len(model.classes)} classes) at http://{address_of(given.host, port)}; "
                    f"Ctrl-C ends it"
                ),
                flush=True,
            )
            if given.host not in LOOPBACK:
                print("Everybody who reaches this address can use it: there is no password", flush=True)

        return run(app, listening, settings, announce)


def _check_numbers(given: argparse.Namespace, image_bytes: int, most_pixels: float) -> None:
    """Refuse flags by their names; `most_pixels` in millions."""
    for name in ("threads", "batch_size", "max_queue", "max_images", "max_pixels", "timeout", "max_connections"):
        value = getattr(given, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name.replace('_', '-')} must be more than 0, but got {value:g}.")
    if not (given.batch_wait >= 0 and math.isfinite(given.batch_wait)):
        raise UserError(f"--batch-wait must be at least 0, but got {given.batch_wait:g}.")
    if given.max_pixels > most_pixels:
        raise UserError(f"--max-pixels must be at most {most_pixels:g}, but got {given.max_pixels:g}.")
    if image_bytes == 0:
        raise UserError(f"--max-image-size must be more than 0, but got {given.max_image_size}.")
    if given.max_images > given.max_queue:
        raise UserError(
            f"A request of --max-images {given.max_images} would never fit into --max-queue {given.max_queue}; give a "
            f"longer queue or fewer images."
        )
