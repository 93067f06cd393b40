"""What a server counts, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10
SIZES = 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024


class Metrics:
    """Counters of one server.

    Args:
      queue_rows: gives the number of vectors that wait.
    """

    def __init__(self, queue_rows: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "qinco_requests", "Requests to /search by HTTP status; 4xx and 5xx are errors.",
            ["status"], registry=registry,
        )  # fmt: skip
        self.rows = Counter("qinco_rows", "Vectors searched.", registry=registry)
        self.seconds = Histogram(
            "qinco_request_seconds", "Time from a request's headers to its answer.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.batch_requests = Histogram(
            "qinco_batch_requests", "Requests that were searched together.",
            buckets=SIZES, registry=registry,
        )  # fmt: skip
        self.batch_rows = Histogram(
            "qinco_batch_rows", "Vectors that were searched together.",
            buckets=SIZES, registry=registry,
        )  # fmt: skip
        queue = Gauge("qinco_queue_rows", "Vectors that wait to be searched.", registry=registry)
        queue.set_function(queue_rows)

    def answered(self, status: int, seconds: float) -> None:
        """Counts a request."""
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)

    def searched(self, num_requests: int, num_rows: int) -> None:
        """Counts a batch."""
        self.rows.inc(num_rows)
        self.batch_requests.observe(num_requests)
        self.batch_rows.observe(num_rows)

    def text(self) -> bytes:
        """All counters, as Prometheus reads them."""
        return generate_latest(self.registry)
