"""The application: what each address of the server answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response

from delta_tune.config import UserError, did_you_mean, visible
from delta_tune.data.images import DamagedImage
from delta_tune.data.limits import set_max_pixels
from delta_tune.serving.answers import prediction, unreadable
from delta_tune.serving.batching import Batcher
from delta_tune.serving.gate import Gate
from delta_tune.serving.installed_version import installed_version
from delta_tune.serving.metrics import MEDIA_TYPE, Metrics
from delta_tune.serving.model import ServedModel, as_json
from delta_tune.serving.refusal import Refusal
from delta_tune.serving.settings import Settings
from delta_tune.serving.upload import Buffers, Upload, read_images

STATIC = Path(__file__).parent / "static"
PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Address → file and its kind."""
OTHER_PATHS = ("/predict", "/health", "/health/live", "/health/ready", "/metadata", "/metrics", "/openapi.json")
QUERY = {"top": "a whole number ≥ 1", "min_confidence": "a number from 0 to 1, or auto"}
"""Parameters of /predict, and what they may be."""
REPEATED = ("classes", "preprocessing", "thresholds", "unsure")
"""Of the file's metadata: what /metadata says in other words."""
OPENAPI: dict[str, Any] = {
    "parameters": [
        {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1}},
        {"name": "min_confidence", "in": "query", "schema": {"type": "string"}, "description": QUERY["min_confidence"]},
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}
"""What OpenAPI says of the request to /predict."""


def create_app(model: ServedModel, settings: Settings, min_confidence: float | Literal["auto"] = "auto") -> FastAPI:
    """The application for a model. The limit of pixels then holds for this process.

    Args:
        model: to serve.
        settings: limits.
        min_confidence: below which probability a prediction is unsure if a request does not say; "auto" is what the
            study found, if it did.
    """
    set_max_pixels(settings.max_pixels)
    metrics = Metrics(model)
    batcher = Batcher(model, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        app.state.ready = True
        yield
        app.state.ready = False
        await batcher.close()

    app = FastAPI(title="delta-tune", version=installed_version(), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.ready = False
    app.add_middleware(Gate, metrics=metrics, paths=(*PAGE, *OTHER_PATHS), access_log=settings.access_log)
    _add_errors(app)
    _add_facts(app, model, settings, metrics, _least(model, min_confidence, "auto"))
    buffers = Buffers(settings.max_buffered_bytes)

    @app.post("/predict", openapi_extra=OPENAPI, summary="Classify images")
    async def predict(request: Request) -> Response:
        query = request.query_params
        _check_names(query)
        top = _top(query.get("top"))
        least = _least(model, min_confidence, query.get("min_confidence"))
        with buffers.share() as share:
            uploads = await read_images(request, share, settings)
            return await _predict(uploads, least, top)

    async def _predict(uploads: list[Upload], least: float, top: int | None) -> Response:
        try:
            async with asyncio.timeout(settings.timeout_s):
                found = await batcher.probabilities([upload.content for upload in uploads])
        except TimeoutError:
            raise Refusal(503, f"The answer took longer than {settings.timeout_s:g} s; send fewer images.") from None
        rows = []
        for upload, each in zip(uploads, found, strict=True):
            if isinstance(each, UserError):
                rows.append(unreadable(upload.name, _reason(each)))
            elif isinstance(each, Exception):
                raise each
            else:
                rows.append(prediction(upload.name, each, model, least, top))
        return _predictions(rows, metrics)

    return app


def _predictions(rows: list[dict[str, Any]], metrics: Metrics) -> Response:
    errors = [row["error"] for row in rows if "error" in row]
    unsure = sum(row["unsure"] for row in rows)
    for result, count in (
        ("unreadable", len(errors)),
        ("unsure", unsure),
        ("predicted", len(rows) - len(errors) - unsure),
    ):
        metrics.images.labels(result).inc(count)
    if len(errors) < len(rows):
        return _json({"predictions": rows})
    said = errors[0] if len(errors) == 1 else f"None of the {len(errors)} images can be read, as their rows say."
    return _json({"error": said, "predictions": rows}, 422)


def _reason(error: UserError) -> str:
    return visible(str(error.args[1])) if isinstance(error, DamagedImage) else str(error)


def _least(model: ServedModel, default: float | Literal["auto"], given: str | None) -> float:
    if given is None:
        return (model.unsure_below or 0.0) if default == "auto" else default
    if given == "auto":
        if model.unsure_below is None and default == "auto":
            return 0.0
        return model.unsure_below if model.unsure_below is not None else float(default)
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise _refused_parameter("min_confidence", given)
    return value


def _top(given: str | None) -> int | None:
    if given is None:
        return None
    if not given.isdecimal() or not given.isascii() or not 1 <= len(given.lstrip("0")) <= 9:
        raise _refused_parameter("top", given)
    return int(given)


def _check_names(query: Iterable[str]) -> None:
    for name in query:
        if name not in QUERY:
            known = " and ".join(QUERY)
            raise Refusal(
                422, f"The parameter {visible(name)[:60]} is unknown{did_you_mean(name, QUERY)}; there are {known}."
            )


def _refused_parameter(name: str, given: str) -> Refusal:
    return Refusal(422, f"{name} must be {QUERY[name]}, but got {visible(given)[:60]}.")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> Response:
        return _json({"error": visible(str(refusal))}, refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    @app.exception_handler(404)
    @app.exception_handler(405)
    async def refuse_address(request: Request, error: HTTPException) -> Response:
        path = visible(request.url.path)[:100]
        said = f"There is nothing at {path}; POST images to /predict, or see /."
        if error.status_code == 405:
            allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            said = f"{visible(request.method)[:20]} is not taken at {path}; use {allowed}."
        return _json({"error": said}, error.status_code, dict(error.headers or {}))


def _add_facts(app: FastAPI, model: ServedModel, settings: Settings, metrics: Metrics, least: float) -> None:
    def at(path: str, answer: Callable[[], Response], summary: str | None = None) -> None:
        async def endpoint() -> Response:
            return answer()

        app.add_api_route(
            path, endpoint, methods=["GET", "HEAD"], summary=summary, include_in_schema=summary is not None
        )

    def ready() -> Response:
        told = {"live": True, "ready": bool(app.state.ready)}
        return _json(told, 200 if told["ready"] else 503)

    metadata = as_json(_metadata(model, settings, least))
    at("/health", ready, "Whether the server is live and ready")
    at("/health/live", lambda: _json({"live": True}), "Whether the server is live")
    at("/health/ready", ready, "Whether the server is ready for images")
    at("/metadata", lambda: Response(metadata, media_type="application/json"), "Classes, preprocessing, the file")
    at("/metrics", lambda: Response(metrics.text(), media_type=MEDIA_TYPE), "Figures for Prometheus")
    for path, (name, kind) in PAGE.items():
        content = (STATIC / name).read_bytes()
        at(path, partial(Response, content, media_type=kind))


def _metadata(model: ServedModel, settings: Settings, least: float) -> dict[str, Any]:
    return {
        "classes": model.classes,
        "task": "multilabel" if model.several_labels else "classification",
        "preprocessing": model.metadata["preprocessing"],
        "thresholds": model.thresholds,
        "unsure": model.metadata.get("unsure"),
        "min_confidence": least,
        "model": {"name": model.name, "bytes": model.size, "sha256": model.sha256},
        "server": {"delta_tune": installed_version()},
        "limits": {
            name: getattr(settings, name)
            for name in (
                "max_images",
                "max_image_bytes",
                "max_request_bytes",
                "max_pixels",
                "read_timeout_s",
                "timeout_s",
            )
        },
        "file": {name: value for name, value in model.metadata.items() if name not in REPEATED},
    }


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_json(content), status, headers, media_type="application/json")
