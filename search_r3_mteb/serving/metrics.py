"""What Prometheus is told: requests, latency, queue, batch sizes, tokens."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server, in a registry of their own: two servers in a process do not mix."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        at = self.registry
        self.requests = Counter("search_r3_requests", "Requests by path and status.", ["path", "status"], registry=at)
        self.seconds = Histogram(
            "search_r3_request_seconds",
            "From a request's arrival to its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=at,
        )
        self.queued = Gauge("search_r3_queue_texts", "Texts that wait or are computed.", registry=at)
        self.batches = Histogram(
            "search_r3_batch_rows", "Rows of a forward pass or decode step.", ["kind"], buckets=_ROWS, registry=at
        )
        self.read = Counter("search_r3_prompt_tokens", "Tokens of prompts, templates included.", registry=at)
        self.generated = Counter("search_r3_generated_tokens", "Tokens generated, embed tokens included.", registry=at)
        self.texts = Counter("search_r3_texts", "Texts embedded, by role.", ["role"], registry=at)
        self.dropped = Counter("search_r3_dropped_rows", "Rows given up: client gone, timeout, failure.", registry=at)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
