"""What Prometheus can ask the server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from delta_tune.serving.model import ServedModel

PREFIX = "delta_tune"
MOMENTS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Bounds in seconds."""
SIZES = (1, 2, 4, 8, 16, 32, 64)
MEDIA_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self, model: ServedModel) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("requests", "Requests", ("path", "status"), namespace=PREFIX, registry=registry)
        self.request_seconds = Histogram(
            "request_seconds",
            "From the headers of a request to its answer",
            ("path",),
            namespace=PREFIX,
            registry=registry,
            buckets=MOMENTS,
        )
        self.images = Counter(
            "images", "Images, by what became of them", ("result",), namespace=PREFIX, registry=registry
        )
        self.batch_images, self.decode_seconds, self.compute_seconds = (
            Histogram(name, text, namespace=PREFIX, registry=registry, buckets=buckets)
            for name, text, buckets in (
                ("batch_images", "Images that were computed together", SIZES),
                ("decode_seconds", "Decoding one image", MOMENTS),
                ("compute_seconds", "Computing one batch", MOMENTS),
            )
        )
        self.queue = Gauge("queue_images", "Images that wait or are at work", namespace=PREFIX, registry=registry)
        info = Info("model", "The model that is served", namespace=PREFIX, registry=registry)
        info.info({"sha256": model.sha256, "classes": str(len(model.classes))})
        ProcessCollector(registry=registry)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)
