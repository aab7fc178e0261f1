"""What is said of an answer: the metrics it counts in and its line in the log."""

import json

from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.accesslog import AccessLog
from gatewayd.http.message import Request, Response
from gatewayd.journal import Journal
from gatewayd.lines import Form, Level
from gatewayd.metrics import Metrics
from gatewayd.redaction import Redactor
from gatewayd.times import Monotonic, Wall, format_wall


class Lines:
    """Takes the place of a writer."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.lines.append(line)


class JournalTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.now = Wall(1_705_314_600.25)
        self.written = Lines()
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry, version="1", subjects=("s",), consumer="c")
        metrics.know([("tv", 1)])
        access = AccessLog(self.written, Form.JSON, Redactor(), Level.INFO)  # type: ignore[arg-type]
        self.journal = Journal(access, metrics, self.clock, lambda: self.now)

    def finished(self, target: bytes, response: Response, took_s: float = 0.0, *, written: bool = True) -> None:
        request = Request(b"POST", target, {}, peer="192.0.2.1", received_at=Monotonic(self.clock.seconds()))
        self.clock.advance(took_s)
        self.journal.finished(request, response, written=written)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"gateway_{name}", labels)

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.written.lines]

    def test_a_webhook(self) -> None:
        """Counted by source and class, timed from the complete request on, and one line; also when the client left."""
        for written in (True, False):
            self.finished(b"/webhook/tv", Response(202, source="tv"), 0.25, written=written)
        self.assertEqual(self.value("webhooks_received_total", source="tv", status="2xx"), 2)
        self.assertEqual(self.value("webhook_duration_seconds_sum", source="tv"), 0.5)
        self.assertEqual([line["latency_ms"] for line in self.lines()], [250.0, 250.0])

    def test_another_path_is_no_webhook(self) -> None:
        """Probes and unknown paths have a line, and their code counts, but no webhook is counted."""
        self.finished(b"/healthz", Response(200))
        self.finished(b"/webhooks", Response(429, code="GW-004"))
        for status in ("2xx", "4xx"):
            self.assertEqual(self.value("webhooks_received_total", source="_other", status=status), 0)
        self.assertEqual(self.value("rate_limit_exceeded_total", source="_other"), 1)
        self.assertEqual([line["path"] for line in self.lines()], ["/healthz", "/webhooks"])

    def test_no_request(self) -> None:
        """What could not be parsed counts under its code, took no time, and has a line."""
        self.journal.finished(None, Response(400, code="GW-015"), written=True)
        self.assertEqual(self.value("validation_errors_total", type="http"), 1)
        self.assertEqual([(line["status"], line["latency_ms"]) for line in self.lines()], [(400, 0.0)])

    def test_every_line_has_its_own_time(self) -> None:
        """To the millisecond, rounded, over the ends of seconds and when the wall clock steps back."""
        instants = [0.0, 0.9994, 0.9996, 1.0, 1.5, 59.9999, 86_400.001, 3.25, 1_705_314_600.25, 1_705_314_600.2504]
        for instant in instants:
            self.now = Wall(instant)
            self.finished(b"/healthz", Response(200))
        self.assertEqual([line["timestamp"] for line in self.lines()], [format_wall(instant) for instant in instants])

    def test_latency_is_in_milliseconds_with_three_digits(self) -> None:
        """As a number, rounded to the microsecond."""
        for took_s in (0.0, 0.0000004, 0.0000016, 0.0012345678, 2.5, 12.3456789):
            self.finished(b"/healthz", Response(200), took_s)
        self.assertEqual([line["latency_ms"] for line in self.lines()], [0.0, 0.0, 0.002, 1.235, 2500.0, 12345.679])
