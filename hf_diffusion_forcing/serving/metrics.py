"""Counts of the server in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .manager import ContinuousBatchingManager
from .visit import Visit

PREFIX = "hf_diffusion_forcing"

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Bounds of the histograms."""

COUNTS = {
    "requests": "Requests of the engine that have ended, the failed and the cancelled ones too.",
    "failed": "Requests of the engine that have failed or were cancelled.",
    "tokens": "New tokens of requests that have ended.",
    "ticks": "Ticks, each over the rows of one group.",
    "core_passes": "Core calls in ticks.",
    "prefill_core_passes": "Core calls over prompts.",
    "positions_refined": "Sum of positions over core calls.",
    "prompt_positions": "Positions of prompts that have begun.",
    "reused_positions": "Positions of prompts that were not read, since another row had read them.",
}
"""Fields of `BatchingStats`, and what each counts."""


class EngineCollector(Collector):
    """Reads the counts of a manager when they are asked for.

    Args:
        manager: of the engine.
    """

    def __init__(self, manager: ContinuousBatchingManager):
        self.manager = manager

    def collect(self) -> Iterator[Metric]:
        stats, load = self.manager.stats, self.manager.load
        for name, meaning in COUNTS.items():
            yield CounterMetricFamily(f"{PREFIX}_engine_{name}", meaning, value=getattr(stats, name))
        gauges = {
            "tokens_per_tick": ("New tokens per tick since the start.", stats.tokens_per_tick),
            "prefix_hit_rate": ("Share of prompt positions that were not read.", stats.prefix_hit_rate),
            "queue_length": ("Requests that wait.", load.waiting),
            "rows": ("Requests that are being read or decoded.", load.rows),
            "cache_bytes": ("Bytes allocated for keys and values.", load.cache_bytes),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(f"{PREFIX}_engine_{name}", meaning, value=value)


class Metrics:
    """The counts behind /metrics.

    Args:
        manager: of the engine.
        routes: paths that are counted by name; others are "other".
    """

    def __init__(self, manager: ContinuousBatchingManager, routes: frozenset[str]):
        self.registry, self.routes = CollectorRegistry(), routes
        self.registry.register(EngineCollector(manager))
        own = {"registry": self.registry}
        self.requests = Counter(f"{PREFIX}_http_requests", "HTTP requests.", ["path", "status", "outcome"], **own)
        self.seconds = Histogram(
            f"{PREFIX}_request_seconds", "Seconds of a request that was decoded.", ["path"], buckets=SECONDS, **own
        )
        self.first_token = Histogram(
            f"{PREFIX}_time_to_first_token_seconds", "Seconds to the first token.", ["path"], buckets=SECONDS, **own
        )
        self.up = Gauge(f"{PREFIX}_engine_up", "Whether the decoding thread is alive.", **own)
        self.up.set_function(lambda: float(manager.is_running()))

    def count(self, visit: Visit) -> None:
        """Count a request that has ended."""
        path = visit.path if visit.path in self.routes else "other"
        self.requests.labels(path, str(visit.status or "none"), visit.outcome).inc()
        if visit.request_ids:
            self.seconds.labels(path).observe(visit.seconds)
        if visit.first_token is not None:
            self.first_token.labels(path).observe(visit.first_token)

    def text(self) -> bytes:
        """All counts, in Prometheus' text format."""
        return generate_latest(self.registry)
