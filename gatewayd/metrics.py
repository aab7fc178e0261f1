"""
Every metric family, once, on the registry that is handed in.

Decides names, labels and buckets, and keeps label values bounded: a source that is not configured counts as `_other`.
Never renders anything (probes do) and never decides what is counted (the table of codes does).
"""

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from gatewayd.cells import CounterCell, Counters, GaugeCell, Gauges, Histograms
from gatewayd.errors import TABLE
from gatewayd.ingress.signature import SCHEMES
from gatewayd.ingress.sources import UNKNOWN_SOURCE

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_CLASSES: Final = ("2xx", "4xx", "5xx")
_DEAD: Final = ("GW-003", "GW-009", "GW-013")
_OTHER_SUBJECT: Final = UNKNOWN_SOURCE.encode("ascii")


class _SourceCells:
    """The cells of one source: by hundreds of the status, by code, and each of its own."""

    __slots__ = ("classes", "codes", "compat", "duplicates", "duration")

    def __init__(self, families: "Metrics", source: str) -> None:
        self.classes = {int(name[0]): families.received.labels(source, name) for name in _CLASSES}
        self.duration = families.duration.labels(source)
        self.duplicates = families.duplicates.labels(source)
        self.compat = families.compat.labels(source)
        self.codes = {
            code: families.by_source[row.counted[0]].labels(source)
            for code, row in TABLE.items()
            if row.counted is not None and row.counted[0] in families.by_source
        }


class Metrics:
    """The families of this product; whoever counts has the cells or a method, and pays for an addition."""

    def __init__(self, registry: CollectorRegistry, *, version: str, subjects: Iterable[str], consumer: str) -> None:
        self.registry = registry

        def counters(name: str, text: str, *labels: str) -> Counters:
            return Counters(registry, f"gateway_{name}", text, labels)

        def counter(name: str, text: str) -> CounterCell:
            return counters(name, text).labels()

        def gauge(name: str, text: str) -> GaugeCell:
            return Gauges(registry, f"gateway_{name}", text).labels()

        def histograms(name: str, text: str, *labels: str) -> Histograms:
            return Histograms(registry, f"gateway_{name}", text, labels, bounds=_BUCKETS)

        self.received = counters("webhooks_received_total", "Webhooks answered.", "source", "status")
        self.duration = histograms("webhook_duration_seconds", "From complete request to answer.", "source")
        published = counters("nats_publish_total", "Messages published.", "subject", "status")
        publish_seconds = histograms("nats_publish_duration_seconds", "From write to acknowledgement.")
        self.publish_seconds = publish_seconds.labels().observe
        nats_errors = counters("nats_errors_total", "Failed or lost connections, refusals, timeouts.", "type")
        validation = counters("validation_errors_total", "Requests refused for what they are.", "type")
        normalization = counters("normalization_errors_total", "Valid bodies that failed here.", "source")
        limited = counters("rate_limit_exceeded_total", "Requests over a limit.", "source")
        conflicts = counter("idempotency_conflicts_total", "Keys used with another body.")
        self.duplicates = counters("duplicates_total", "Requests answered for an event stored before.", "source")
        backpressure = counter("backpressure_total", "Requests refused because something was full.")
        maintenance = counter("maintenance_mode_total", "Requests refused in maintenance.")
        self.compat = counters("compat_signature_total", "Requests signed over the body alone.", "source")
        self._auth = counters("auth_total", "Signatures that matched, by secret.", "source", "scheme", "key")
        self._dead = counters("dlq_total", "Dead letters stored.", "code")
        self._dead_lost = counter("dlq_lost_total", "Dead letters that could not be stored.")
        self._repairs = counters("repairs_total", "Halves of signals that were completed, or not.", "result")
        self._orphans = counter("orphans_total", "Normalised events found without their raw event.")
        store_errors = self.store_errors = counters("store_errors_total", "Stores that could not be reached.", "kind")
        internal = counter("internal_errors_total", "Faults of the gateway.")
        self.late_ack = counter("late_acks_total", "Acknowledgements after their deadline.").inc
        self.cache_entries = gauge("idempotency_cache_entries", "Nonces, identities and keys remembered.")
        cache_hits = counter("idempotency_cache_hits_total", "Duplicates and conflicts known from memory.")
        cache_evictions = counter("idempotency_cache_evictions_total", "Entries dropped at the bound.")
        self.inflight = gauge("inflight", "Requests being answered.")
        self.unacked = gauge("unacked_publishes", "Publications waiting for their acknowledgement.")
        lag = Gauges(registry, "gateway_consumer_lag_messages", "Messages the consumer has yet to see.", ("consumer",))
        self.lag = lag.labels(consumer)
        self.stream_bytes = gauge("stream_bytes", "Bytes in the stream.")
        self.connected = gauge("nats_connected", "1 while NATS is connected or degraded.")
        self.reactor_lag = gauge("reactor_lag_seconds", "How late the loop was at the worst in the last minute.")
        log_dropped = counter("log_dropped_total", "Log lines dropped at the queue's bound.")
        self.reloads = counters("config_reloads_total", "Reloads of the settings.", "result")
        refused_connections = counter("connections_refused_total", "Connections closed at a cap.")
        proxy_headers = counter("proxy_headers_refused_total", "Connections closed for their PROXY header.")
        Gauges(registry, "gatewayd_build_info", "1, with the version.", ("version",)).labels(version).set(1)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._totals = {
            "hits": cache_hits,
            "evictions": cache_evictions,
            "log_dropped": log_dropped,
            "refused_connections": refused_connections,
            "proxy_headers": proxy_headers,
        }
        self.by_source = {"rate_limit_exceeded": limited, "normalization_errors": normalization}
        self._by_code = self._bind_codes(
            {"validation_errors": validation, "nats_errors": nats_errors, "store_errors": store_errors},
            {
                "idempotency_conflicts": conflicts,
                "backpressure": backpressure,
                "maintenance_mode": maintenance,
                "internal_errors": internal,
            },
        )
        self._errors = {kind: nats_errors.labels(kind) for kind in ("connection", "timeout")}
        self._prepare(published, [*subjects, UNKNOWN_SOURCE][::-1])

    def _prepare(self, published: Counters, subjects: Iterable[str]) -> None:
        """
        Make every cell that can be known in advance, so that it is there at 0. The first of the subjects comes last on
        a page, where people look with `grep success | tail -1`; so do sources.
        """
        self._stored: dict[bytes, CounterCell] = {}
        self._given_up: dict[bytes, CounterCell] = {}
        for name in subjects:
            self._stored[name.encode("ascii")] = published.labels(name, "success")
            self._given_up[name.encode("ascii")] = published.labels(name, "error")
        for code in _DEAD:
            self._dead.labels(code)
        for result in ("ok", "failed"):
            self.reloads.labels(result)
        for result in ("normalized", "dead_letter", "failed"):
            self._repairs.labels(result)
        self._auth_cells: dict[tuple[str, str, int], CounterCell] = {}
        self._other = _SourceCells(self, UNKNOWN_SOURCE)
        self._sources = {UNKNOWN_SOURCE: self._other}

    def _bind_codes(
        self, labelled: Mapping[str, Counters], alone: Mapping[str, CounterCell]
    ) -> dict[str, CounterCell | None]:
        """What a refusal adds to by its code, every kind at 0 from now on; None: by the source, or nothing."""
        found: dict[str, CounterCell | None] = {}
        for code, row in TABLE.items():
            family, label = row.counted or ("", "")
            found[code] = labelled[family].labels(label) if family in labelled else alone.get(family)
        return found

    def know(self, sources: Iterable[tuple[str, int]]) -> None:
        """Make the cells of these configured sources, each with its number of secrets."""
        for source, keys in reversed(tuple(sources)):
            self._sources[source] = _SourceCells(self, source)
            for scheme in SCHEMES.values():
                for number in range(1, keys + 1):
                    self._auth_cells[source, scheme.name, number] = self._auth.labels(source, scheme.name, str(number))

    def webhook(self, source: str, status: int, seconds: float) -> None:
        """One webhook was answered."""
        cells = self._sources.get(source, self._other)
        cells.classes[status // 100].value += 1
        cells.duration.observe(seconds)

    def refused(self, code: str, source: str) -> None:
        """One request got this code."""
        cell = self._by_code[code] or self._sources.get(source, self._other).codes.get(code)
        if cell is not None:
            cell.value += 1

    def advance(self, name: str, total: int) -> None:
        """Bring a counter that a part keeps itself (hits, evictions, ...) to its present total, for a scrape."""
        self._totals[name].value = total

    # What the pipeline counts.

    def authenticated(self, source: str, scheme: str, key: int) -> None:
        """See pipeline.Counters."""
        self._auth_cells[source, scheme, key].value += 1
        if scheme == "sha256":
            self._sources[source].compat.value += 1

    def duplicate(self, source: str) -> None:
        """See pipeline.Counters."""
        self._sources[source].duplicates.value += 1

    def dead_letter(self, code: str) -> None:
        """See pipeline.Counters."""
        self._dead.labels(code).value += 1

    def dead_letter_lost(self) -> None:
        """See pipeline.Counters."""
        self._dead_lost.value += 1

    # What the repair counts.

    def repaired(self, result: str) -> None:
        """See repair.Counters."""
        self._repairs.labels(result).value += 1

    def orphaned(self, count: int) -> None:
        """See repair.Counters."""
        self._orphans.value += count

    # What the bus counts.

    def published(self, subject: bytes, ok: bool) -> None:
        """One message was acknowledged, or its publication was given up."""
        cells = self._stored if ok else self._given_up
        cells[subject if subject in cells else _OTHER_SUBJECT].value += 1

    def error(self, kind: str) -> None:
        """A connect failed or a connection was lost ("connection"), or a publication timed out ("timeout")."""
        self._errors[kind].value += 1
