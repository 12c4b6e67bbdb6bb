"""The metrics that `GET /metrics` shows, in the text format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)


class Metrics:
    """The metrics of one gateway, in a registry of its own, so that a process can have several gateways."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.queue = Gauge("imagegen_queue", "Requests that wait to be drawn", registry=self._registry)
        self.in_flight = Gauge("imagegen_in_flight", "Requests being worked on", registry=self._registry)
        self.batch_size = Histogram(
            "imagegen_batch_size", "Pictures drawn by one call of the model", buckets=_BATCHES, registry=self._registry
        )
        self.batch_seconds = Histogram(
            "imagegen_batch_seconds", "Seconds of one call of the model", buckets=_SECONDS, registry=self._registry
        )
        self.seconds = Histogram(
            "imagegen_request_seconds",
            "Seconds from a request's arrival to its image",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.images = Counter("imagegen_images", "Images delivered", ["model"], registry=self._registry)
        self.errors = Counter("imagegen_errors", "Requests that failed, by kind", ["kind"], registry=self._registry)

    def text(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)
