"""The cache's metrics, beside Triton's own on the metrics port."""

import threading
import time

import triton_python_backend_utils as pb_utils

COUNTERS = {
    "hits": "Texts whose vectors were cached",
    "misses": "Texts that were encoded",
}


class CacheMetrics:
    """Counters and gauges. Each change crosses processes, so there are few.

    Threads may share it. They may not share Triton's own objects: a metric keeps one copy of itself in the memory that
    it shares with tritonserver, and each change frees the copy before. Where two threads changed one at once,
    tritonserver read freed memory and ended by SIGSEGV (docs/benchmarks/2026-11-27-metrics-race.md).

    Args:
        model: Name of the model.
        cache: The `VectorCache`.
    """

    def __init__(self, model, cache):
        counter, gauge = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE
        self._cache = cache
        self._lock = threading.Lock()
        self._families = []  # Triton drops a family once Python holds no reference to it
        kinds = [{"kind": kind} for kind in ("query", "document")]
        self._texts = {
            name: self._metrics(model, f"{name}_total", description, counter, kinds)
            for name, description in COUNTERS.items()
        }
        (self._evictions,) = self._metrics(model, "evictions_total", "Texts dropped for lack of room", counter)
        (self._bytes,) = self._metrics(model, "bytes", "Memory of cached vectors", gauge)
        (self._limit,) = self._metrics(model, "limit_bytes", "Memory that cached vectors may take", gauge)
        self._limit.set(cache.limit_bytes)
        (self._restored,) = self._metrics(model, "restored_total", "Texts taken from the snapshot", counter)
        (self._snapshot,) = self._metrics(model, "snapshot_bytes", "Size of the snapshot", gauge)
        (self._saved,) = self._metrics(
            model, "snapshot_timestamp_seconds", "Unix time of the last write of the snapshot", gauge
        )

    def _metrics(self, model, name, description, kind, labels=({},)):
        family = pb_utils.MetricFamily(f"late_interaction_cache_{name}", description, kind)
        self._families.append(family)
        return [family.Metric(labels={"model": model, **more}) for more in labels]

    def count(self, name, queries, documents):
        """Add to the hits, or to the misses, of queries and of documents."""
        with self._lock:
            for metric, number in zip(self._texts[name], (queries, documents), strict=True):
                if number:
                    metric.increment(number)

    def stored(self, evicted):
        """Show that entries were put into the cache, for which `evicted` texts were dropped."""
        with self._lock:
            if evicted:
                self._evictions.increment(evicted)
            self._bytes.set(self._cache.bytes)

    def restored(self, count, snapshot_bytes):
        """Show that `count` texts were read from a snapshot into the cache."""
        with self._lock:
            self._restored.increment(count)
            self._bytes.set(self._cache.bytes)
            self._snapshot.set(snapshot_bytes)

    def written(self, snapshot_bytes):
        """Show that the snapshot was written."""
        with self._lock:
            self._snapshot.set(snapshot_bytes)
            self._saved.set(time.time())
