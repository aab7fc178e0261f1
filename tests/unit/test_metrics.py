"""What a scrape shows: the text that prometheus_client's own classes would give, every known label set, and nothing
that a client can make grow."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import prometheus_client
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.cells import Counters, Gauges, Histograms
from gatewayd.errors import TABLE
from gatewayd.metrics import Metrics

BOUNDS: Final = (0.001, 0.25, 1.0, 10.0)
SETS: Final = (("a", "b"), ("", 'quote " and \\'), ("line\nfeed", "ä€"))

SHOWN: Final = {
    "gateway_webhooks_received_total": ("source", "status"),
    "gateway_webhook_duration_seconds": ("source",),
    "gateway_nats_publish_total": ("subject", "status"),
    "gateway_nats_publish_duration_seconds": (),
    "gateway_nats_errors_total": ("type",),
    "gateway_validation_errors_total": ("type",),
    "gateway_normalization_errors_total": ("source",),
    "gateway_rate_limit_exceeded_total": ("source",),
    "gateway_idempotency_conflicts_total": (),
    "gateway_duplicates_total": ("source",),
    "gateway_backpressure_total": (),
    "gateway_maintenance_mode_total": (),
    "gateway_compat_signature_total": ("source",),
    "gateway_auth_total": ("source", "scheme", "key"),
    "gateway_dlq_total": ("code",),
    "gateway_dlq_lost_total": (),
    "gateway_repairs_total": ("result",),
    "gateway_orphans_total": (),
    "gateway_store_errors_total": ("kind",),
    "gateway_internal_errors_total": (),
    "gateway_late_acks_total": (),
    "gateway_idempotency_cache_entries": (),
    "gateway_idempotency_cache_hits_total": (),
    "gateway_idempotency_cache_evictions_total": (),
    "gateway_inflight": (),
    "gateway_unacked_publishes": (),
    "gateway_consumer_lag_messages": ("consumer",),
    "gateway_stream_bytes": (),
    "gateway_nats_connected": (),
    "gateway_reactor_lag_seconds": (),
    "gateway_log_dropped_total": (),
    "gateway_config_reloads_total": ("result",),
    "gateway_connections_refused_total": (),
    "gateway_proxy_headers_refused_total": (),
    "gatewayd_build_info": ("version",),
}
"""Names and labels that dashboards and alerts rely on."""


def texts(registry: CollectorRegistry) -> tuple[str, str]:
    """A scrape in both formats."""
    openmetrics: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry).decode(), openmetrics.decode()


class CellsTest(SynchronousTestCase):
    def setUp(self) -> None:
        # The reference would otherwise show when each of its children was made.
        disable_created_metrics()
        self.addCleanup(prometheus_client.enable_created_metrics)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["counter", "gauge", "histogram"]),
                st.sampled_from([None, *SETS]),
                st.integers(1, 10**12),
                st.floats(-1e12, 1e12) | st.sampled_from([0.0, *BOUNDS, 1e6, 123456.7, float("inf"), True]),
            ),
            max_size=40,
        )
    )
    def test_a_scrape_is_that_of_prometheus_client(
        self, given_values: list[tuple[str, tuple[str, str] | None, int, float]]
    ) -> None:
        """Byte for byte, in both formats, whatever was counted, in whatever order label sets appeared."""
        registry, reference = CollectorRegistry(), CollectorRegistry()
        text, names = 'A text with " and \\ and\na line feed.', ("one", "another")
        counters = {n: Counters(registry, f"c{len(n)}_total", text, n) for n in ((), names)}
        gauges = {n: Gauges(registry, f"g{len(n)}", text, n) for n in ((), names)}
        histograms = {n: Histograms(registry, f"h{len(n)}_seconds", text, n, bounds=BOUNDS) for n in ((), names)}
        their: dict[str, Any] = {}
        for n in ((), names):
            their["counter", n] = Counter(f"c{len(n)}_total", text, n, registry=reference)
        for n in ((), names):
            their["gauge", n] = Gauge(f"g{len(n)}", text, n, registry=reference)
        for n in ((), names):
            their["histogram", n] = Histogram(f"h{len(n)}_seconds", text, n, registry=reference, buckets=BOUNDS)
        for kind, values, count, number in given_values:
            n = () if values is None else names
            theirs = their[kind, n] if values is None else their[kind, n].labels(*values)
            if kind == "counter":
                counters[n].labels(*values or ()).value += count
                theirs.inc(count)
            elif kind == "gauge":
                gauges[n].labels(*values or ()).set(number)
                theirs.set(number)
            else:
                histograms[n].labels(*values or ()).observe(number)
                theirs.observe(number)
        self.assertEqual(texts(registry), texts(reference))

    def test_a_bound_includes_itself(self) -> None:
        """le means less or equal; what is above every bound is in +Inf only."""
        cell = Histograms(CollectorRegistry(), "h", "x", bounds=BOUNDS).labels()
        for value in (0.001, 0.0010001, 10.0, 10.5):
            cell.observe(value)
        self.assertEqual(cell.counts, [1, 1, 0, 1, 1])

    def test_one_cell_for_one_set_of_labels(self) -> None:
        """Asking again gives the same cell, and a wrong number of values none."""
        family = Counters(CollectorRegistry(), "c_total", "x", ("a", "b"))
        family.labels("1", "2").inc()
        self.assertEqual(family.labels("1", "2").value, 1)
        self.assertRaises(ValueError, family.labels, "1")
        self.assertRaises(ValueError, family.labels)

    def test_a_name_is_taken_once(self) -> None:
        """The registry refuses a second family whose series would have the same names."""
        registry = CollectorRegistry()
        Counters(registry, "c_total", "x")
        Histograms(registry, "h", "x", bounds=BOUNDS)
        self.assertRaises(ValueError, Gauges, registry, "c_total", "x")
        self.assertRaises(ValueError, Gauges, registry, "h_sum", "x")
        Gauges(registry, "other", "x")


class MetricsTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, version="1.2", subjects=("s.raw", "s.norm"), consumer="reader")
        self.metrics.know([("tv", 2), ("bare", 0)])

    def families(self) -> Iterable[Metric]:
        return (family for family in self.registry.collect() if family.name.startswith("gateway"))

    def counted(self) -> dict[str, float]:
        """Every series that is not 0, as it is written; without the gauges that never are."""
        lines = (line for line in texts(self.registry)[0].splitlines() if line.startswith("gateway_"))
        pairs = (line.rpartition(" ") for line in lines)
        return {name: float(value) for name, _, value in pairs if float(value) and "_bucket" not in name}

    def test_the_names_are_those_promised(self) -> None:
        """Each family once, with its labels; and those of process, platform and collector. No `_created` beside."""
        shown = {}
        for family in self.families():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            self.assertNotIn(name, shown)
            shown[name] = tuple(label for label in family.samples[0].labels if label != "le")
        self.assertEqual(shown, SHOWN)
        for text in texts(self.registry):
            for other in ("process_cpu_seconds", "python_info", "python_gc_collections"):
                self.assertIn(f"# TYPE {other}", text)
            self.assertNotIn("_created", text)

    def test_what_can_be_known_is_there_at_0(self) -> None:
        """A rate over a series that appears with its first event would miss that event."""
        self.assertEqual(self.counted(), {})
        text = texts(self.registry)[0]
        for line in (
            *(
                f'webhooks_received_total{{source="{s}",status="{n}xx"}}'
                for s in ("tv", "bare", "_other")
                for n in "245"
            ),
            *(f'webhook_duration_seconds_bucket{{le="+Inf",source="{s}"}}' for s in ("tv", "bare", "_other")),
            *(
                f'nats_publish_total{{status="{status}",subject="{subject}"}}'
                for subject in ("s.raw", "s.norm", "_other")
                for status in ("success", "error")
            ),
            *(
                f'auth_total{{key="{key}",scheme="{scheme}",source="tv"}}'
                for key in "12"
                for scheme in ("v1", "sha256")
            ),
            *(f'nats_errors_total{{type="{kind}"}}' for kind in ("connection", "timeout")),
            *(
                f'validation_errors_total{{type="{kind}"}}'
                for kind in ("signature", "replay", "schema", "source", "size", "json", "media_type", "http")
            ),
            *(f'dlq_total{{code="{code}"}}' for code in ("GW-003", "GW-009", "GW-013")),
            *(f'config_reloads_total{{result="{result}"}}' for result in ("ok", "failed")),
            'store_errors_total{kind="unavailable"}',
            'consumer_lag_messages{consumer="reader"}',
            "nats_connected",
        ):
            self.assertIn(f"\ngateway_{line} 0.0\n", text)
        self.assertIn('\ngatewayd_build_info{version="1.2"} 1.0\n', text)

    def test_a_scrape_is_that_of_prometheus_client(self) -> None:
        """The whole product's text, from prometheus_client's own classes fed with the same values."""
        observed = {
            ("gateway_webhook_duration_seconds", "tv"): [0.0042, 0.1, 2.5],
            ("gateway_nats_publish_duration_seconds",): [7.0],
        }
        for seconds in (0.0042, 0.1, 2.5):
            self.metrics.webhook("tv", 202, seconds)
        self.metrics.publish_seconds(7.0)
        self.metrics.stream_bytes.set(123_456_789)
        self.metrics.connected.set(True)
        disable_created_metrics()
        self.addCleanup(prometheus_client.enable_created_metrics)
        ours, reference = CollectorRegistry(), CollectorRegistry()
        for family in self.families():
            ours.register(Fixed(family))
            mirror(family, reference, observed)
        self.assertEqual(texts(ours), texts(reference))

    def test_a_webhook(self) -> None:
        """Counted under its class and timed; an unknown source, or none, is `_other`."""
        self.metrics.webhook("tv", 202, 0.25)
        self.metrics.webhook("nobody's", 401, 0.5)
        self.metrics.webhook("", 503, 0.5)
        self.assertEqual(
            self.counted(),
            {
                'gateway_webhooks_received_total{source="tv",status="2xx"}': 1,
                'gateway_webhooks_received_total{source="_other",status="4xx"}': 1,
                'gateway_webhooks_received_total{source="_other",status="5xx"}': 1,
                'gateway_webhook_duration_seconds_count{source="tv"}': 1,
                'gateway_webhook_duration_seconds_sum{source="tv"}': 0.25,
                'gateway_webhook_duration_seconds_count{source="_other"}': 2,
                'gateway_webhook_duration_seconds_sum{source="_other"}': 1.0,
            },
        )

    def test_every_code_counts_as_the_table_says(self) -> None:
        """One more in that one family, with its label or the source's; nothing for a code that counts as nothing."""
        for source, shown in (("tv", "tv"), ("nobody's", "_other")):
            for code, row in TABLE.items():
                before = self.counted()
                self.metrics.refused(code, source)
                after = self.counted()
                more = {name: value for name, value in after.items() if value != before.get(name)}
                if row.counted is None:
                    self.assertEqual(more, {})
                    continue
                family, label = row.counted
                name = f"gateway_{family}_total"
                if SHOWN[name]:
                    name += f'{{{SHOWN[name][0]}="{shown if SHOWN[name] == ("source",) else label}"}}'
                self.assertEqual(more, {name: before.get(name, 0) + 1})

    def test_what_the_pipeline_counts(self) -> None:
        """Secrets by number; the body alone signed; duplicates; dead letters."""
        self.metrics.authenticated("tv", "v1", 2)
        for _ in range(3):
            self.metrics.authenticated("tv", "sha256", 1)
        self.metrics.duplicate("bare")
        self.metrics.dead_letter("GW-013")
        self.metrics.dead_letter_lost()
        self.assertEqual(
            self.counted(),
            {
                'gateway_auth_total{key="2",scheme="v1",source="tv"}': 1,
                'gateway_auth_total{key="1",scheme="sha256",source="tv"}': 3,
                'gateway_compat_signature_total{source="tv"}': 3,
                'gateway_duplicates_total{source="bare"}': 1,
                'gateway_dlq_total{code="GW-013"}': 1,
                "gateway_dlq_lost_total": 1,
            },
        )

    def test_what_the_bus_counts(self) -> None:
        """Messages by subject, an unknown one as `_other`; errors by kind; late answers; durations."""
        self.metrics.published(b"s.raw", True)
        self.metrics.published(b"s.norm", False)
        self.metrics.published(b"anything", True)
        self.metrics.error("timeout")
        self.metrics.late_ack()
        self.metrics.publish_seconds(0.5)
        self.assertEqual(
            self.counted(),
            {
                'gateway_nats_publish_total{status="success",subject="s.raw"}': 1,
                'gateway_nats_publish_total{status="error",subject="s.norm"}': 1,
                'gateway_nats_publish_total{status="success",subject="_other"}': 1,
                'gateway_nats_errors_total{type="timeout"}': 1,
                "gateway_late_acks_total": 1,
                "gateway_nats_publish_duration_seconds_count": 1,
                "gateway_nats_publish_duration_seconds_sum": 0.5,
            },
        )

    def test_clients_cannot_make_it_grow(self) -> None:
        """No number of sources, subjects or codes adds a line to a scrape."""
        before = texts(self.registry)[0].count("\n")
        for number in range(300):
            self.metrics.webhook(f"s{number}", 404, 0.1)
            self.metrics.refused("GW-004", f"s{number}")
            self.metrics.published(b"%d" % number, False)
        self.assertEqual(texts(self.registry)[0].count("\n"), before)

    def test_a_reload_keeps_what_was_counted(self) -> None:
        """A source that stays goes on counting; a new one and a further secret appear at 0."""
        self.metrics.webhook("tv", 202, 0.5)
        self.metrics.authenticated("tv", "v1", 1)
        before = self.counted()
        self.metrics.know([("tv", 3), ("new", 1)])
        self.assertEqual(self.counted(), before)
        self.metrics.authenticated("tv", "v1", 3)
        self.metrics.webhook("new", 202, 0.5)
        more = self.counted().keys() - before.keys()
        self.assertIn('gateway_webhooks_received_total{source="new",status="2xx"}', more)
        self.assertIn('gateway_auth_total{key="3",scheme="v1",source="tv"}', more)

    def test_totals_kept_elsewhere(self) -> None:
        """A scrape shows the present total, however often it is brought up to date."""
        for hits in (3, 3, 8):
            self.metrics.advance("hits", hits)
        self.metrics.advance("evictions", 1)
        self.metrics.advance("log_dropped", 2)
        self.metrics.advance("refused_connections", 4)
        self.metrics.advance("proxy_headers", 5)
        self.assertEqual(
            self.counted(),
            {
                "gateway_idempotency_cache_hits_total": 8,
                "gateway_idempotency_cache_evictions_total": 1,
                "gateway_log_dropped_total": 2,
                "gateway_connections_refused_total": 4,
                "gateway_proxy_headers_refused_total": 5,
            },
        )

    def test_gauges(self) -> None:
        """Each shows what it was set to last."""
        self.metrics.inflight.set(7)
        self.metrics.inflight.set(5)
        self.metrics.lag.set(12)
        self.metrics.reloads.labels("ok").inc()
        self.assertEqual(
            self.counted(),
            {
                "gateway_inflight": 5,
                'gateway_consumer_lag_messages{consumer="reader"}': 12,
                'gateway_config_reloads_total{result="ok"}': 1,
            },
        )


class Fixed:
    """A collector of one family that was collected before."""

    def __init__(self, family: Metric) -> None:
        self.family = family

    def collect(self) -> Iterable[Metric]:
        return [self.family]


def mirror(family: Metric, registry: CollectorRegistry, observed: Mapping[tuple[str, ...], list[float]]) -> None:
    """The same family made of prometheus_client's own class; `observed` are a histogram's values by name and labels."""
    names = tuple(label for label in family.samples[0].labels if label != "le")
    made: Any
    if family.type == "histogram":
        bounds = [sample.labels["le"] for sample in family.samples if "le" in sample.labels]
        bounds = bounds[: bounds.index("+Inf")]
        made = Histogram(family.name, family.documentation, names, registry=registry, buckets=bounds)
    else:
        kind = Counter if family.type == "counter" else Gauge
        made = kind(family.name, family.documentation, names, registry=registry)
    for sample in family.samples:
        values = tuple(value for label, value in sample.labels.items() if label != "le")
        child = made.labels(*values) if names else made
        if family.type == "counter":
            child.inc(sample.value)
        elif family.type == "gauge":
            child.set(sample.value)
        elif sample.name.endswith("_sum"):
            for value in observed.get((family.name, *values), []):
                child.observe(value)
