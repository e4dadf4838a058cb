"""Every metric, declared once, in the registry that the constructor is given.

Owns: names, buckets and labels. Must not know: who counts what. Names start with `promptmux_`, units are base
units, and no label grows with the number of tasks: `task` exists only for the tasks that the operator lists, `version`
for theirs and for those of tasks that an operator has split, and for at most MAX_VERSIONS of them (`version_series`).
docs/reference/metrics.md is written from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server import version_series
from server.catalogue import Catalogue
from server.metric_family import PREFIX, Family
from server.traffic import Traffic
from server.version_series import VersionSeries

_FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS: Final = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
OTHER_TASK: Final = "_other"
_TASKS: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The server's counters, gauges and histograms."""

    def __init__(self, registry: CollectorRegistry, *, tasks: Iterable[str] = ()) -> None:
        self.registry = registry
        self._tasks = frozenset(tasks)
        families: list[Family] = []

        def counter(name: str, text: str, *labels: str) -> Counter:
            families.append(Family(f"{PREFIX}{name}_total", "counter", text, labels))
            return Counter(PREFIX + name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            families.append(Family(PREFIX + name, "gauge", text, labels))
            return Gauge(PREFIX + name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            families.append(Family(PREFIX + name, "histogram", text, labels))
            return Histogram(PREFIX + name, text, labels, buckets=tuple(buckets), registry=registry)

        self.build_info = gauge(
            "build_info",
            "1: what serves here, once the model is loaded (fingerprint: its first 12 digits)",
            "version",
            "backbone",
            "fingerprint",
            "device",
            "dtype",
        )

        self.http_requests = counter(
            "http_requests", "HTTP requests answered, by route template and status", "app", "route", "status"
        )
        self.http_errors = counter(
            "http_errors",
            "Requests answered with an error, by the stable code of its problem+json",
            "app",
            "route",
            "code",
        )
        self.http_duration = histogram(
            "http_request_duration_seconds", "From the headers to the last byte of the answer", _FAST, "route"
        )
        self.http_in_flight = gauge("http_in_flight_requests", "HTTP requests being worked on")
        self.clients_gone = counter("clients_gone", "Callers that closed before their answer was ready")
        self.task_requests = counter(
            "task_requests",
            "Classify requests of the tasks that metrics_tasks lists, others as _other",
            "task",
        )

        self.queue_rows = gauge("queue_rows", "Rows accepted and not answered yet")
        self.queue_tokens = gauge("queue_tokens", "Tokens accepted and not answered yet")
        self.rejected = counter(
            "rejected_requests",
            "Requests answered 429: the queue's rows, its tokens, or the task's share of them",
            "reason",
        )
        self.dropped_rows = counter(
            "dropped_rows", "Rows thrown away in the queue because their caller had gone"
        )
        self.queue_wait = histogram("queue_wait_seconds", "From the queue to the device", _FAST)
        self.tokenize_time = histogram("tokenize_seconds", "Tokenisation of one request", _FAST)
        self.forward_time = histogram("forward_seconds", "One batch on the device", _FAST)
        self.batch_rows = histogram("batch_rows", "Rows in a batch", _ROWS)
        self.batch_tokens = histogram("batch_tokens", "Tokens in a batch, virtual ones included", _TOKENS)
        self.batch_tasks = histogram(
            "batch_tasks", "Distinct tasks in a batch; two versions of one count as two", _TASKS
        )
        self.rows = counter("rows", "Rows (texts) answered")
        self.forward_failures = counter("forward_failures", "Batches whose forward raised")
        self.numerical_errors = counter("numerical_errors", "Rows whose scores were not finite")

        self.device_memory = gauge(
            "device_memory_bytes",
            "A GPU's memory: allocated to tensors, reserved by torch, free for any process, total. None on a CPU: "
            'there prompts hold promptmux_tier_bytes{tier="device"} of process_resident_memory_bytes',
            "kind",
        )
        self.prompt_loads = counter("prompt_loads", "Prompts copied to the device, by result", "result")
        self.prompt_load_time = histogram("prompt_load_seconds", "From the store to the device", _FAST)

        self.quarantines = counter(
            "quarantined_versions",
            "Versions that this server stopped using for their errors, by code",
            "code",
        )
        self.auto_rollbacks = counter(
            "auto_rollbacks", "Aliases that this server moved off a version for its errors, by code", "code"
        )
        self.tier_bytes = gauge("tier_bytes", "Prompts held, by tier: device, host, disk", "tier")
        self.tier_capacity = gauge("tier_capacity_bytes", "What the tier may hold at most", "tier")
        self.tier_entries = gauge("tier_entries", "Number of prompts held", "tier")
        self.tier_hits = counter("tier_hits", "Looks into a tier that found the prompt there, whole", "tier")
        self.tier_misses = counter("tier_misses", "Looks into a tier that did not", "tier")
        self.tier_corrupt = counter(
            "tier_corrupt",
            "Copies that no longer hash to their name: dropped, and the store's refused",
            "tier",
        )
        self.tier_evictions = counter("tier_evictions", "Prompts dropped to make room", "tier")
        self.tier_errors = counter("tier_errors", "Reads and writes that the tier's disk refused", "tier")

        self.tasks = gauge("catalogue_tasks", "Tasks served here")
        self.missing_tasks = gauge(
            "catalogue_missing_tasks", "Tasks served that the store lost with its history"
        )
        self.troubled_tasks = gauge(
            "catalogue_troubled_tasks", "Tasks with an alias that does not serve what the store says"
        )
        self.refused_versions = counter(
            "refused_versions", "Alias moves not followed because the new version cannot be served", "code"
        )
        self.sync_failures = counter("store_sync_failures", "Failed attempts to follow the store", "code")
        self.unreadable_tasks = counter(
            "unreadable_tasks", "Tasks that could not be followed for what their records say", "code"
        )
        self.background_failures = counter(
            "background_failures", "Parts of the server that ended though they never should", "part"
        )
        self.history_lost = counter(
            "store_history_lost", "Times the store came back with less than was known"
        )
        self.store_revision = gauge("store_revision", "The store's revision that the catalogue has taken in")
        self.store_staleness = gauge(
            "store_staleness_seconds", "Since the catalogue was all that the store had"
        )
        self.serving_snapshot = gauge(
            "serving_snapshot", "1 while the catalogue is the last good snapshot, the store being away"
        )
        self.snapshot_failures = counter("snapshot_failures", "Failed attempts to write the snapshot")
        self.ready = gauge("ready", "1 while /readyz answers 200")
        self.families = (*families, *version_series.FAMILIES)
        self._begin_at_zero()

    def task_label(self, task_id: str) -> str:
        """The label value for a task: itself where the operator listed it."""
        return task_id if task_id in self._tasks else OTHER_TASK

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Let `gauge` be read when it is scraped."""
        gauge.set_function(read)

    def export(self, traffic: Traffic, catalogue: Catalogue) -> None:
        """Let the counts by version, and which versions are live, be read when they are scraped."""
        self.registry.register(VersionSeries(traffic, catalogue))

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)

    def _begin_at_zero(self) -> None:
        """Show what alerts watch from the start: a series that begins with 1 is no increase to Prometheus."""
        for reason in ("rows", "tokens", "task"):
            self.rejected.labels(reason)
        for result in ("loaded", "failed"):
            self.prompt_loads.labels(result)
        for tier in ("device", "host", "disk", "store"):
            self.tier_hits.labels(tier)
            self.tier_misses.labels(tier)
        for tier in ("host", "disk", "store"):  # what is on the device is checked before it comes there
            self.tier_corrupt.labels(tier)
        for tier in ("device", "host", "disk"):
            self.tier_evictions.labels(tier)
        self.tier_errors.labels("disk")
