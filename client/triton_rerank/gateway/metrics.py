"""Metrics of a gateway, in Prometheus's format. Labels are names of a fixed set; no texts, no paths of callers."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from triton_rerank.gateway.record import Record
from triton_rerank.gateway.served import Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a cached answer on a GPU to the time that callers wait at most.
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one application."""

    def __init__(self, served: Served) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        labels = ("endpoint", "dialect", "status")
        self._requests = Counter("rerank_gateway_requests", "HTTP requests.", labels, registry=registry)
        self._seconds = Histogram(
            "rerank_gateway_request_seconds",
            "Seconds from headers to answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._documents = Counter("rerank_gateway_documents", "Documents scored.", ("dialect",), registry=registry)
        self._tokens = Counter("rerank_gateway_tokens", "Tokens scored.", ("dialect",), registry=registry)
        in_flight = Gauge("rerank_gateway_in_flight", "Calls at the reranker.", registry=registry)
        in_flight.set_function(lambda: served.in_flight)
        ProcessCollector(namespace="rerank_gateway", registry=registry)

    def count(self, record: Record, status: int) -> None:
        """Count an answered request."""
        self._requests.labels(record.endpoint, record.dialect, str(status)).inc()
        self._seconds.labels(record.endpoint).observe(time.perf_counter() - record.started)
        if record.tokens or status == 200:
            self._documents.labels(record.dialect).inc(record.documents)
            self._tokens.labels(record.dialect).inc(record.tokens)

    def text(self) -> bytes:
        """All series."""
        return generate_latest(self._registry)
