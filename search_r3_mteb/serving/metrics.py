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
        name, at = "search_r3", {"registry": self.registry}
        self.requests = Counter(f"{name}_requests", "Requests by path and status.", ["path", "status"], **at)
        self.seconds = Histogram(
            f"{name}_request_seconds", "From a request's arrival to its answer.", ["path"], buckets=_SECONDS, **at
        )
        self.queued = Gauge(f"{name}_queue_texts", "Texts that wait or are computed.", **at)
        self.batches = Histogram(
            f"{name}_batch_rows", "Rows of a forward pass or decode step.", ["kind"], buckets=_ROWS, **at
        )
        self.read = Counter(f"{name}_prompt_tokens", "Tokens of prompts, templates included.", **at)
        self.generated = Counter(f"{name}_generated_tokens", "Tokens generated, embed tokens included.", **at)
        self.texts = Counter(f"{name}_texts", "Texts embedded, by role.", ["role"], **at)
        self.dropped = Counter(f"{name}_dropped_rows", "Rows given up: client gone, timeout, failure.", **at)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
