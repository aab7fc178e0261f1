"""
Every metric family, once, on the registry that is handed in.

Decides names, labels and buckets, and keeps label values bounded: a source that is not configured counts as `_other`.
Never renders anything (probes do) and never decides what is counted (the table of codes does).
"""

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from gatewayd.errors import TABLE
from gatewayd.ingress.signature import SCHEMES

OTHER: Final = "_other"
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_CLASSES: Final = ("2xx", "4xx", "5xx")
_VALIDATION: Final = tuple(
    row.counted[1] for row in TABLE.values() if row.counted and row.counted[0] == "validation_errors"
)


class _SourceCells:
    """The children of one source, bound once: labels() costs 1.7 to 2.3 us a call, a bound child 0.4."""

    __slots__ = ("classes", "compat", "duplicates", "duration", "limited", "normalization")

    def __init__(self, families: "Metrics", source: str) -> None:
        self.classes = {name[0]: families.received.labels(source, name) for name in _CLASSES}
        self.duration = families.duration.labels(source)
        self.limited = families.limited.labels(source)
        self.duplicates = families.duplicates.labels(source)
        self.compat = families.compat.labels(source)
        self.normalization = families.normalization.labels(source)


class Metrics:
    """The families of this product. Gauges that are read at a scrape take a function."""

    def __init__(self, registry: CollectorRegistry, *, version: str, subjects: Iterable[str], consumer: str) -> None:
        self.registry = registry

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"gateway_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"gateway_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"gateway_{name}", text, labels, registry=registry, buckets=_BUCKETS)

        self.received = counter("webhooks_received_total", "Webhooks answered.", ("source", "status"))
        self.duration = histogram("webhook_duration_seconds", "From complete request to answer.", ("source",))
        self._published = counter("nats_publish_total", "Messages published.", ("subject", "status"))
        self.publish_seconds = histogram("nats_publish_duration_seconds", "From write to acknowledgement.").observe
        self._nats_errors = counter("nats_errors_total", "Failed or lost connections, refusals, timeouts.", ("type",))
        self._validation = counter("validation_errors_total", "Requests refused for what they are.", ("type",))
        self.normalization = counter("normalization_errors_total", "Valid bodies that failed here.", ("source",))
        self.limited = counter("rate_limit_exceeded_total", "Requests over a limit.", ("source",))
        self._conflicts = counter("idempotency_conflicts_total", "Keys used with another body.")
        self.duplicates = counter("duplicates_total", "Requests answered for an event stored before.", ("source",))
        self._backpressure = counter("backpressure_total", "Requests refused because something was full.")
        self._maintenance = counter("maintenance_mode_total", "Requests refused in maintenance.")
        self.compat = counter("compat_signature_total", "Requests signed over the body alone.", ("source",))
        self._auth = counter("auth_total", "Signatures that matched, by secret.", ("source", "scheme", "key"))
        self._dead = counter("dlq_total", "Dead letters stored.", ("code",))
        self._dead_lost = counter("dlq_lost_total", "Dead letters that could not be stored.")
        self._store_errors = counter("store_errors_total", "Stores that could not be reached.", ("kind",))
        self._internal = counter("internal_errors_total", "Faults of the gateway.")
        self.late_ack = counter("late_acks_total", "Acknowledgements after their deadline.").inc
        self.cache_entries = gauge("idempotency_cache_entries", "Nonces, identities and keys remembered.")
        cache_hits = counter("idempotency_cache_hits_total", "Duplicates and conflicts known from memory.")
        cache_evictions = counter("idempotency_cache_evictions_total", "Entries dropped at the bound.")
        self.inflight = gauge("inflight", "Requests being answered.")
        self.unacked = gauge("unacked_publishes", "Publications waiting for their acknowledgement.")
        self.lag = gauge("consumer_lag_messages", "Messages the consumer has yet to see.", ("consumer",)).labels(
            consumer
        )
        self.stream_bytes = gauge("stream_bytes", "Bytes in the stream.")
        self.connected = gauge("nats_connected", "1 while NATS is connected or degraded.")
        self.reactor_lag = gauge("reactor_lag_seconds", "How late the last one-second tick came.")
        log_dropped = counter("log_dropped_total", "Log lines dropped at the queue's bound.")
        self.reloads = counter("config_reloads_total", "Reloads of the settings.", ("result",))
        refused_connections = counter("connections_refused_total", "Connections closed at a cap.")
        Gauge("gatewayd_build_info", "1, with the version.", ("version",), registry=registry).labels(version).set(1)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._totals = {
            "hits": cache_hits,
            "evictions": cache_evictions,
            "log_dropped": log_dropped,
            "refused_connections": refused_connections,
        }
        self._seen = dict.fromkeys(self._totals, 0)
        self._sources: dict[str, _SourceCells] = {}
        self._auth_cells: dict[tuple[str, str, int], Callable[[], None]] = {}
        self._publish_cells = {
            (subject.encode("ascii"), ok): self._published.labels(subject, "success" if ok else "error")
            for subject in (*subjects, OTHER)
            for ok in (True, False)
        }
        self._prepare()

    def _prepare(self) -> None:
        """Make every child that can be known in advance, so that it is there at 0."""
        self._error_cells = {kind: self._nats_errors.labels(kind) for kind in ("connection", "timeout")}
        self._validation_cells = {kind: self._validation.labels(kind) for kind in _VALIDATION}
        for code in ("GW-003", "GW-009", "GW-013"):
            self._dead.labels(code)
        for result in ("ok", "failed"):
            self.reloads.labels(result)
        self._store_errors.labels("unavailable")
        self.know(())

    def know(self, sources: Iterable[tuple[str, int]]) -> None:
        """Make the children of these configured sources, each with its number of secrets."""
        for source, keys in ((OTHER, 0), *sources):
            if source not in self._sources:
                self._sources[source] = _SourceCells(self, source)
            for scheme in SCHEMES.values():
                for number in range(1, keys + 1):
                    cell = self._auth.labels(source, scheme.name, str(number))
                    self._auth_cells[source, scheme.name, number] = cell.inc

    def webhook(self, source: str, status: int, seconds: float) -> None:
        """One webhook was answered."""
        cells = self._sources.get(source) or self._sources[OTHER]
        cells.classes[str(status)[0]].inc()
        cells.duration.observe(seconds)

    def refused(self, code: str, source: str) -> None:
        """One request got this code."""
        counted = TABLE[code].counted
        if counted is None:
            return
        family, label = counted
        cells = self._sources.get(source) or self._sources[OTHER]
        match family:
            case "validation_errors":
                self._validation_cells[label].inc()
            case "nats_errors":
                self._error_cells[label].inc()
            case "rate_limit_exceeded":
                cells.limited.inc()
            case "normalization_errors":
                cells.normalization.inc()
            case "store_errors":
                self._store_errors.labels(label).inc()
            case "idempotency_conflicts":
                self._conflicts.inc()
            case "backpressure":
                self._backpressure.inc()
            case "maintenance_mode":
                self._maintenance.inc()
            case "internal_errors":
                self._internal.inc()

    def advance(self, name: str, total: int) -> None:
        """Bring a counter that a part keeps itself (hits, evictions, ...) to its present total, for a scrape."""
        self._totals[name].inc(total - self._seen[name])
        self._seen[name] = total

    # What the pipeline counts.

    def authenticated(self, source: str, scheme: str, key: int) -> None:
        """See pipeline.Counters."""
        self._auth_cells[source, scheme, key]()
        if scheme == "sha256":
            self._sources[source].compat.inc()

    def duplicate(self, source: str) -> None:
        """See pipeline.Counters."""
        self._sources[source].duplicates.inc()

    def dead_letter(self, code: str) -> None:
        """See pipeline.Counters."""
        self._dead.labels(code).inc()

    def dead_letter_lost(self) -> None:
        """See pipeline.Counters."""
        self._dead_lost.inc()

    # What the bus counts.

    def published(self, subject: bytes, ok: bool) -> None:
        """One message was acknowledged, or its publication was given up."""
        cell = self._publish_cells.get((subject, ok)) or self._publish_cells[OTHER.encode("ascii"), ok]
        cell.inc()

    def error(self, kind: str) -> None:
        """A connect failed or a connection was lost ("connection"), or a publication timed out ("timeout")."""
        self._error_cells[kind].inc()
