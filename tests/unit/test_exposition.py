"""What /metrics answers is prometheus_client's text, byte for byte, for less."""

from collections.abc import Callable
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.utils import floatToGoString
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.cells import Counters, Gauges, Histograms, number
from gatewayd.exposition import Exposition
from gatewayd.metrics import Metrics

ACCEPTED: Final = (
    "",
    "*/*",
    "text/plain",
    "text/plain;version=0.0.4",
    "text/plain; version=1.0.0",
    "text/plain;version=1.0.0;escaping=allow-utf-8",
    "text/plain;version=1.0.0;escaping=dots",
    "text/plain;version=1.0.0;escaping=values;q=0.5",
    "application/openmetrics-text",
    "application/openmetrics-text; version=0.0.1",
    "application/openmetrics-text;version=1.0.0",
    "application/openmetrics-text;version=1.0.0;escaping=underscores",
    "application/openmetrics-text;version=1.0.0;escaping=dots",
    "application/openmetrics-text;version=1.0.0;escaping=anything",
    "application/openmetrics-text;version=2.0.0;escaping=allow-utf-8",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "application/json, text/html;q=0.3",
)
"""What scrapers say; the longest is Prometheus 3, shortened."""

VALUES = st.floats() | st.integers(-(10**20), 10**20) | st.booleans() | st.sampled_from([0, 999_999, 1_000_000, 1e16])
TEXTS = st.text(max_size=6) | st.sampled_from(['"', "\\", "\n", '\\n"', "ä€😀", "a\rb"])


def encode(registry: CollectorRegistry) -> bytes:
    text: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
    return text


class ExpositionTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.registry = CollectorRegistry()
        self.refreshed = 0
        self.soon: list[Callable[[], object]] = []
        self.exposition = Exposition(self.registry, self.refresh, self.soon.append)

    def refresh(self) -> None:
        self.refreshed += 1

    def check(self) -> None:
        """Both formats, against prometheus_client's own writers."""
        self.assertEqual(self.exposition.render(openmetrics=False), generate_latest(self.registry))
        self.assertEqual(self.exposition.render(openmetrics=True), encode(self.registry))

    @settings(max_examples=100, deadline=None)
    @given(TEXTS, st.lists(st.tuples(TEXTS, TEXTS, VALUES), max_size=5))
    def test_any_state(self, text: str, cells: list[tuple[str, str, float]]) -> None:
        """Whatever stands in help, labels and values: special characters, not a number, infinities, exponents."""
        self.setUp()
        names = ("b", "a", "le2", "a1", "A")
        counters = Counters(self.registry, "c_total", text, names)
        gauges = Gauges(self.registry, "g", text, names)
        alone = Gauges(self.registry, "alone", text).labels()
        histograms = Histograms(self.registry, "h_seconds", text, names, bounds=(0.5, 1.0, 2.5e7))
        for first, second, value in cells:
            labels = (first, second, "", "x", "y")
            counters.labels(*labels).value = value  # type: ignore[assignment] # a counter takes what it is given
            gauges.labels(*labels).set(value)
            alone.set(value)
            if value == value:
                histograms.labels(*labels).observe(value)
        self.check()

    @given(VALUES)
    def test_any_number(self, value: float) -> None:
        """Written as Go would."""
        self.assertEqual(number(value), floatToGoString(value))  # type: ignore[no-untyped-call]

    def test_the_product(self) -> None:
        """Every family of the product, with collectors of prometheus_client's before, between and behind them."""
        GCCollector(self.registry)
        metrics = Metrics(self.registry, version='1"2', subjects=("s.raw", "s.norm"), consumer="reader")
        PlatformCollector(self.registry, OtherPlatform())
        metrics.know([("tv", 2)])
        for status in (202, 422, 503):
            metrics.webhook("tv", status, 0.0042 * status)
        metrics.stream_bytes.set(123_456_789.5)
        self.registry = without_process(self.registry)
        self.exposition = Exposition(self.registry, self.refresh, self.soon.append)
        self.check()
        self.assertGreater(self.exposition.render(openmetrics=False).count(b"\n"), 100)

    def test_nothing(self) -> None:
        """A registry with nothing in it, and a family without cells."""
        self.check()
        Counters(self.registry, "c_total", "x", ("a",))
        self.check()

    def test_the_format_is_the_client_s_choice(self) -> None:
        """Body and Content-Type are those of prometheus_client's own negotiation, for everything that scrapers say."""
        Counters(self.registry, "one_two_total", "x", ("label_name",)).labels("v").inc()
        for accept in ACCEPTED:
            encoder, kind = choose_encoder(accept)
            self.assertEqual(self.exposition.answer(accept.encode()), (encoder(self.registry), kind.encode()), accept)

    def test_what_is_no_version(self) -> None:
        """A version that is none, or as long as a header may be, gets the default."""
        default = self.exposition.answer(b"")
        for version in (b"abc", b"1.x", b"9" * 5000, b"1.0.0." + b"0." * 200, b"\xb2", b""):
            for kind in (b"text/plain", b"application/openmetrics-text"):
                body, answered = self.exposition.answer(kind + b";version=" + version)
                self.assertIn(body.removesuffix(b"# EOF\n"), default[0])
                self.assertLess(len(answered), 130)

    def test_one_text_a_turn(self) -> None:
        """All who ask in one turn of the loop get one text; in the next turn it is what stands there then."""
        cell = Counters(self.registry, "c_total", "x").labels()
        first = self.exposition.answer(b"")
        cell.inc()
        self.assertIs(self.exposition.answer(b"text/plain")[0], first[0])
        self.assertIn(b"c_total 1.0", self.exposition.answer(b"application/openmetrics-text")[0])
        self.assertEqual((self.refreshed, len(self.soon)), (1, 1))
        self.soon.pop()()
        self.assertIn(b"c_total 1.0", self.exposition.answer(b"")[0])
        self.assertEqual((self.refreshed, len(self.soon)), (2, 1))


class OtherPlatform:
    """A second platform collector has to have another name."""

    def system(self) -> str:
        return "Java"

    def python_version_tuple(self) -> tuple[str, str, str]:
        return ("3", "1", '4"')

    def python_version(self) -> str:
        return "3.1.4\n"

    def python_implementation(self) -> str:
        return "other\\"

    def java_ver(self) -> tuple[str, str, tuple[str, str, str], str]:
        return ("", "", ("", "", ""), "")


class Unchanging:
    """What was collected once."""

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics = metrics

    def collect(self) -> list[Metric]:
        return self.metrics


def without_process(registry: CollectorRegistry) -> CollectorRegistry:
    """The same families; those whose values change between two looks at them as they stand now."""
    made = CollectorRegistry()
    made.register(Unchanging(list(registry.collect())))
    return made
