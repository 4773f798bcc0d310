"""The server's application on Ray Serve: replicas on a cluster, each with a session of onnxruntime of its own.

    pip install "ray[serve]" "delta-tune[serve]"
    serve run --app-dir deploy/serve ray_serve_app:build model=/path/to/model.onnx threads=2

`build` is what Ray Serve calls an application builder; `rayservice.yaml` gives it its arguments. Ray Serve listens,
counts replicas and restarts them; limits, batches, metrics and answers are those of `python -m delta_tune serve`. Each
replica has a /metrics of its own, of which a request sees one; Ray's metrics count all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve

if TYPE_CHECKING:
    from fastapi import FastAPI


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application.

    Args:
        arguments: `model`, the path of an ONNX file that every node has; `threads` of a replica (1); `min_confidence`,
            a number or auto (auto).
    """
    model, threads = Path(arguments["model"]), int(arguments.get("threads", 1))
    confidence = arguments.get("min_confidence", "auto")

    def application() -> FastAPI:
        from delta_tune.serving.app import create_app
        from delta_tune.serving.model import open_model
        from delta_tune.serving.settings import Settings

        settings = Settings(threads=threads, access_log=False)
        return create_app(open_model(model), settings, "auto" if confidence == "auto" else float(confidence))

    deployment = serve.deployment(
        serve.ingress(application)(),
        name="delta-tune",
        ray_actor_options={"num_cpus": threads},
        max_ongoing_requests=64,
    )
    return deployment.bind()
