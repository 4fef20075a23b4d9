"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = {"registry": self.registry}
        self.requests = Counter("lasa_requests", "Requests by endpoint and status.", ["endpoint", "status"], **registry)
        self.seconds = Histogram("lasa_request_seconds", "Time to the end of an answer.", buckets=SECONDS, **registry)
        self.first = Histogram("lasa_first_text_seconds", "Time to the first text.", buckets=SECONDS, **registry)
        self.waited = Histogram("lasa_queue_seconds", "Time in the queue.", buckets=SECONDS, **registry)
        self.decisions = Counter("lasa_decisions", "Decisions by band and action.", ["band", "action"], **registry)
        self.stopped = Counter("lasa_answers_stopped", "Answers ended when they were read again.", **registry)
        self.tokens = Counter("lasa_tokens", "Tokens of prompts and answers.", ["kind"], **registry)
        self.cancelled = Counter("lasa_rows_cancelled", "Running answers that were cancelled.", **registry)
        self.failures = Counter("lasa_guard_failures", "Failures of the guard; nothing was answered.", **registry)
        self.running = Gauge("lasa_rows_running", "Answers being written.", **registry)
        self.waiting = Gauge("lasa_rows_waiting", "Answers waiting to begin.", **registry)
