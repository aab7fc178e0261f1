"""What a line looks like, what is taken out of it, and what happens when nobody reads."""

import base64
import fcntl
import json
import os
import pty
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.accesslog import PATHS, AccessLog
from gatewayd.http.message import Request, Response
from gatewayd.lines import Form, Level
from gatewayd.log import Log, RepeatFilter, form_for, make_log
from gatewayd.logwriter import LogWriter, Output, open_path
from gatewayd.redaction import Redactor
from gatewayd.times import Wall
from tests.directories import temporary_path

NOW = Wall(1_705_314_600.25)
AT = "2024-01-15T10:30:00.250Z"
SECRET = b"correct horse battery \xc3\xa4 +/&staple"


class Lines:
    """Takes the place of a writer."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.lines.append(line)


class LogTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.path = temporary_path(self)
        self.publisher = LogPublisher()
        self.ours = Logger(namespace="gatewayd.test", observer=self.publisher)
        self.foreign = Logger(namespace="twisted.web", observer=self.publisher)
        self.log = self.opened()

    def opened(self, level: Level = Level.INFO, secrets: tuple[bytes, ...] = (SECRET,)) -> Log:
        """A log to a fresh file, which observes the publisher."""
        log = make_log(self.clock, lambda: NOW, environ={}, path=str(self.path), level=level, secrets=secrets)
        self.addCleanup(os.close, log.writer._output.fd)
        self.publisher.addObserver(log.observer)
        return log

    def lines(self) -> list[dict[str, Any]]:
        """What was written since, each line parsed; each must be one JSON object."""
        text = self.path.read_bytes()
        self.path.write_bytes(b"")
        return [json.loads(line) for line in text.splitlines()]


class ObserverTest(LogTest):
    def test_members_in_their_order(self) -> None:
        """timestamp, level, msg, event, then the event's own fields, whether the format names them or not."""
        self.ours.warn("{count} halves repaired", event="repair.done", count=3, stream="trading-events")
        text = self.path.read_text()
        (line,) = self.lines()
        self.assertRegex(line["timestamp"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(
            line,
            {
                "timestamp": line["timestamp"],
                "level": "warning",
                "msg": "3 halves repaired",
                "event": "repair.done",
                "count": 3,
                "stream": "trading-events",
            },
        )
        self.assertEqual(list(line)[:4], ["timestamp", "level", "msg", "event"])
        self.assertTrue(text.endswith("}\n"))

    def test_another_modules_event_gives_its_formats_fields_only(self) -> None:
        """Twisted's own events carry objects of all kinds: only plain fields of the format are taken."""
        self.foreign.info("{peer} asked {what.name}", peer="10.0.0.1", what=LogLevel.info, hidden="x", event=7)
        (line,) = self.lines()
        self.assertEqual(line["event"], "twisted.web")
        self.assertEqual(line["msg"], "10.0.0.1 asked info")
        self.assertEqual(set(line), {"timestamp", "level", "msg", "event", "peer"})

    def test_what_is_printed_is_a_line_too(self) -> None:
        """print() under twistd arrives as an event of the namespace stdout."""
        from twisted.logger import LogBeginner  # its own, so that the process's streams stay as they are

        streams = type("Streams", (), {"stdout": sys.stdout, "stderr": sys.stderr})()
        warnings = type("Warnings", (), {"showwarning": None})()
        beginner = LogBeginner(LogPublisher(), sys.stderr, streams, warnings)
        beginner.beginLoggingTo([self.log.observer])
        print("hello", file=streams.stdout)
        print("oh", file=streams.stderr)
        first, second = self.lines()
        self.assertEqual((first["msg"], first["level"], first["event"]), ("hello", "info", "stdout"))
        self.assertEqual((second["msg"], second["level"]), ("oh", "error"))

    def test_a_failure_is_one_member_of_one_line(self) -> None:
        """The traceback is a text in the member `failure`."""
        try:
            raise ZeroDivisionError("nought")
        except ZeroDivisionError:
            self.ours.failure("tick failed", event="tick.failed")
        (line,) = self.lines()
        self.assertEqual(line["level"], "critical")
        self.assertIn("ZeroDivisionError: nought\n", line["failure"])

    def test_a_long_traceback_keeps_its_end(self) -> None:
        """What went wrong stands at the end of a traceback."""
        self.ours.failure("x", Failure(ValueError("y" * 20_000 + " the end")))
        (line,) = self.lines()
        self.assertTrue(line["failure"].rstrip().endswith("the end"))
        self.assertLess(len(line["failure"]), 17_000)

    def test_control_characters_cannot_make_a_line_or_command_a_terminal(self) -> None:
        """Line feeds, escape sequences and C1 stand escaped in the bytes, and come back when parsed."""
        text = 'a\r\n{"level":"error"}\x1b[2J\x7f\x9b2J'
        self.ours.info("{text}", text=text)
        raw = self.path.read_bytes()
        self.assertEqual(raw.count(b"\n"), 1)
        for byte in (b"\x1b", b"\x7f", b"\xc2\x9b", b"\r"):
            self.assertNotIn(byte, raw)
        self.assertEqual(self.lines()[0]["text"], text)

    def test_values_that_are_no_json(self) -> None:
        """Objects and bytes are left out; lone surrogates, endless numbers and large ones are written as text."""
        deep: Any = [[[[[["x"]]]]]]
        self.ours.info(
            "m", obj=object(), raw=b"x", lone="\udcff", nan=float("nan"), large=2**70, deep=deep, yes=True, none=None
        )
        (line,) = self.lines()
        self.assertNotIn("obj", line)
        self.assertNotIn("raw", line)
        self.assertNotIn("none", line)
        self.assertEqual((line["lone"], line["nan"], line["large"]), ("\\udcff", "nan", str(2**70)))
        self.assertIs(line["yes"], True)

    def test_a_long_text_is_cut(self) -> None:
        """No event makes a line of any length."""
        self.ours.info("{text}", text="x" * 1_000_000, many=["y" * 10_000] * 1000)
        self.assertLess(len(self.path.read_bytes()), 600_000)
        self.assertEqual(len(self.lines()[0]["msg"]), 8195)

    def test_the_level_changes_while_it_runs(self) -> None:
        """SIGHUP: the level holds for events and access lines at once."""
        self.ours.debug("unseen")
        self.log.set_level(Level.DEBUG)
        self.ours.debug("seen")
        self.log.set_level(Level.ERROR)
        self.ours.info("unseen")
        self.log.access.write(Request(b"GET", b"/", {}), Response(200), 0.0, NOW)
        self.assertEqual([line["msg"] for line in self.lines()], ["seen"])

    def test_a_repeating_failure_is_told_once_a_second(self) -> None:
        """Of a thousand failures in a second one line is left, and the next one says how many there were."""
        for _ in range(1000):
            self.ours.warn("no connection", event="bus.lost", repeats=True)
            self.ours.warn("no store", event="bus.lost", repeats="store")
            self.ours.warn("always", event="other")
        self.clock.advance(1.0)
        self.ours.warn("no connection", event="bus.lost", repeats=True)
        lines = self.lines()
        self.assertEqual(sum(line["msg"] == "always" for line in lines), 1000)
        lost = [line for line in lines if line["event"] == "bus.lost"]
        self.assertEqual([line["msg"] for line in lost], ["no connection", "no store", "no connection"])
        self.assertEqual([line.get("left_out") for line in lost], [None, None, 999])
        self.assertNotIn("repeats", lost[0])


class RedactionTest(LogTest):
    def test_no_form_of_a_secret_reaches_a_line(self) -> None:
        """As it is, in hex, in base64 at any alignment, percent-encoded, as repr, in a traceback, in a field's name."""
        import urllib.parse

        plain = SECRET.decode()
        forms = [
            plain,
            SECRET.hex(),
            SECRET.hex().upper(),
            repr(SECRET),
            json.dumps(plain, ensure_ascii=False),
            urllib.parse.quote(SECRET),
            urllib.parse.quote(SECRET, safe=""),
        ]
        forms += [base64.b64encode(b"x" * n + SECRET + b"tail").decode() for n in range(4)]
        forms += [base64.urlsafe_b64encode(b"user:"[n:] + SECRET).decode() for n in range(4)]
        cores = [SECRET.hex(), SECRET.hex().upper(), "horse", urllib.parse.quote(SECRET)[-12:]]
        cores += [base64.b64encode(b"xyz"[:n] + SECRET).decode()[8:24] for n in range(3)]
        cores += [base64.urlsafe_b64encode(b"xyz"[:n] + SECRET).decode()[8:24] for n in range(3)]
        for form in forms:
            self.ours.info("got {value}", value=f"<{form}>", nested={"list": [form], form: 1})
            self.ours.failure("failed", Failure(ValueError(form)))
            self.log.access.write(
                Request(b"GET", b"/p/" + form.encode(), {}), Response(404, logged={"reason": form}), 0.0, NOW
            )
        text = self.path.read_text()
        for core in cores:
            self.assertNotIn(core, text)
        self.assertEqual(len(self.lines()), 3 * len(forms))
        self.assertIn("[redacted]", text)

    def test_renewed_secrets_count_at_once(self) -> None:
        """After a reload the new secret is hidden, also in a path that was logged before."""
        request = Request(b"GET", b"/hook/brand-new-secret", {})
        self.log.access.write(request, Response(200), 0.0, NOW)
        self.log.renew_secrets([b"brand-new-secret"])
        self.log.access.write(request, Response(200), 0.0, NOW)
        self.assertEqual([line["path"] for line in self.lines()], ["/hook/brand-new-secret", "/hook/[redacted]"])

    def test_a_secret_is_hidden_before_a_text_is_cut(self) -> None:
        """A secret across the place where a text is cut does not leave its first half behind."""
        self.ours.info("{text}", text="." * 8180 + SECRET.decode())
        self.log.access.write(Request(b"GET", b"/" + b"." * 245 + SECRET, {}), Response(200), 0.0, NOW)
        self.assertNotIn("correct", self.path.read_text())

    def test_a_short_secret_does_not_hide_ordinary_words(self) -> None:
        """Under six bytes nothing is replaced."""
        self.assertEqual(Redactor([b"test", b""]).clean("a test of it"), "a test of it")

    def test_a_redactor_shows_nothing_of_what_it_knows(self) -> None:
        """repr, which a traceback may show, holds no secret."""
        self.assertNotIn("horse", repr(Redactor([SECRET])))

    @settings(max_examples=200)
    @given(st.binary(min_size=6, max_size=40), st.binary(max_size=9), st.binary(max_size=9))
    def test_any_secret_in_any_surroundings(self, secret: bytes, before: bytes, after: bytes) -> None:
        """Base64 over any text around any secret keeps no run of it longer than the edges."""
        encoded = base64.b64encode(before + secret + after).decode()
        cleaned = Redactor([secret]).clean(encoded)
        self.assertIn("[redacted]", cleaned)
        self.assertIn("[redacted]", Redactor([secret]).clean(f"<{secret.hex()}>"))


class RepeatFilterTest(SynchronousTestCase):
    def test_it_knows_a_bounded_number_of_keys(self) -> None:
        """An endless row of keys does not grow it; a forgotten key passes again."""
        repeats = RepeatFilter(lambda: 5.0)
        for i in range(5000):
            self.assertEqual(repeats.admit(("e", str(i))), 0)
        self.assertLessEqual(len(repeats._seen), RepeatFilter.KEYS)
        self.assertIsNone(repeats.admit(("e", "4999")))
        self.assertEqual(repeats.admit(("e", "0")), 0)


class AccessLineTest(LogTest):
    def request(self, target: bytes = b"/webhook/tradingview?x=1") -> Request:
        request = Request(b"POST", target, {}, peer="192.0.2.7")
        request.client_corr_id = "client-1"
        return request

    def test_members_in_their_order(self) -> None:
        """Every member in the fixed order, doubled names with one value, then the answer's own members."""
        answer = Response(
            401,
            corr_id="req_1",
            code="GW-002",
            source="tradingview",
            instrument="BTC/USD",
            validation_status="replay_window_exceeded",
            logged={"timestamp_provided": "1705314000", "window_sec": 300, "absent": None, "status": "not this"},
        )
        self.log.access.write(self.request(), answer, 0.0012345, NOW)
        text = self.path.read_text()
        (line,) = self.lines()
        self.assertEqual(
            list(line.items()),
            [
                ("timestamp", AT),
                ("level", "info"),
                ("msg", "Incoming request"),
                ("event", "request"),
                ("corr_id", "req_1"),
                ("requestId", "req_1"),
                ("client_ip", "192.0.2.7"),
                ("ip", "192.0.2.7"),
                ("method", "POST"),
                ("path", "/webhook/tradingview"),
                ("source", "tradingview"),
                ("instrument", "BTC/USD"),
                ("status", 401),
                ("code", "GW-002"),
                ("validation_status", "replay_window_exceeded"),
                ("latency_ms", 1.234),
                ("client_corr_id", "client-1"),
                ("timestamp_provided", "1705314000"),
                ("window_sec", 300),
            ],
        )
        self.assertEqual(text.count('"status"'), 1)

    def test_what_is_absent_is_left_out(self) -> None:
        """No null and no empty text; corr_id, status and latency are always there. Also without any request."""
        self.log.access.write(None, Response(400), 0.0, NOW, peer="192.0.2.9")
        (line,) = self.lines()
        self.assertEqual(
            list(line),
            ["timestamp", "level", "msg", "event", "corr_id", "requestId", "client_ip", "ip", "status", "latency_ms"],
        )
        self.assertEqual((line["client_ip"], line["corr_id"]), ("192.0.2.9", ""))

    def test_levels(self) -> None:
        """500 is an error, other 5xx warnings, the rest information."""
        for status in (202, 429, 500, 503):
            self.log.access.write(self.request(), Response(status), 0.0, NOW)
        self.assertEqual([line["level"] for line in self.lines()], ["info", "info", "error", "warning"])

    def test_a_path_is_bounded_and_harmless(self) -> None:
        """256 characters at most, bytes above ASCII as Latin-1, controls percent-encoded."""
        for target in (b"/" + b"a" * 9000, b"/\xe4\x9b\x1b[2J\x7f"):
            self.log.access.write(self.request(target), Response(404), 0.0, NOW)
            self.log.access.write(self.request(target), Response(404), 0.0, NOW)
        first, again, second, _ = self.lines()
        self.assertEqual(first["path"], "/" + "a" * 255)
        self.assertEqual(again["path"], first["path"])
        self.assertEqual(second["path"], "/\xe4%9B%1B[2J%7F")

    def test_endless_paths_do_not_grow_it(self) -> None:
        """The known paths are bounded in number and length."""
        for i in range(3000):
            self.log.access.write(self.request(b"/%d" % i), Response(404), 0.0, NOW)
            self.log.access.write(self.request(b"/%d" % i + b"x" * 300), Response(404), 0.0, NOW)
        self.assertLessEqual(len(self.log.access._paths), PATHS)
        self.assertLess(max(map(len, self.log.access._paths)), 257)

    def test_a_line_costs_little(self) -> None:
        """A request's line is made in a few microseconds, whatever the machine is busy with (the best of many)."""
        access = AccessLog(Lines(), Form.JSON, Redactor([os.urandom(16) for _ in range(20)]), Level.INFO)  # type: ignore[arg-type]
        request, answer = self.request(), Response(202, corr_id="req_1", source="tradingview", instrument="BTC/USD")
        best = 1.0
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(200):
                access.write(request, answer, 0.001, NOW)
            best = min(best, (time.perf_counter() - began) / 200)
        print("access line", best * 1e6, "us")
        self.assertLess(best, 10e-6)


class FormTest(LogTest):
    def rendered(self, form: Form, **fields: Any) -> bytes:
        lines = Lines()
        observer = self.log.observer
        other = type(observer)(lines, form, Redactor(), Level.DEBUG, RepeatFilter(self.clock.seconds))  # type: ignore[arg-type]
        other({"log_time": NOW, "log_level": LogLevel.warn, "log_namespace": "gatewayd.x", **fields})
        (line,) = lines.lines
        return line

    def test_the_journal_gets_the_priority_first(self) -> None:
        """<3> errors, <4> warnings, <6> information, <7> the rest; then clean JSON."""
        for level, prefix in (
            ("debug", b"<7>"),
            ("info", b"<6>"),
            ("warn", b"<4>"),
            ("error", b"<3>"),
            ("critical", b"<3>"),
        ):
            line = self.rendered(Form.JOURNAL, log_level=LogLevel.lookupByName(level), log_format="x")
            self.assertEqual(line[:4], prefix + b"{")
            self.assertEqual(json.loads(line[3:])["msg"], "x")
        lines = Lines()
        access = AccessLog(lines, Form.JOURNAL, Redactor(), Level.INFO)  # type: ignore[arg-type]
        access.write(None, Response(503), 0.0, NOW)
        self.assertEqual(lines.lines[0][:4], b"<4>{")

    def test_text_for_a_terminal(self) -> None:
        """Time, level, event, message, and what the message does not say."""
        line = self.rendered(Form.TEXT, event="a.b", log_format="{n} lost", n=3, stream="s")
        self.assertEqual(line, f"{AT} WARNING  [a.b] 3 lost stream=s\n".encode())

    def test_text_cannot_command_the_terminal(self) -> None:
        """Escape sequences, line feeds and marks of direction are written out; a traceback stands below, indented."""
        line = self.rendered(Form.TEXT, event="e", log_format="{t}", t="a\x1b[2J\nb\u202ec\x9b", u="\x1b]0;x\x07")
        self.assertEqual(line.count(b"\n"), 1)
        self.assertIn(b"a\\x1b[2J\\nb\\u202ec\\x9b u=\\x1b]0;x\\x07", line)
        failure = Failure(ValueError("bad\x1b[1m"))
        text = self.rendered(Form.TEXT, event="e", log_format="m", log_failure=failure).decode()
        self.assertIn("\n    Failure: builtins.ValueError: bad\\x1b[1m\n", text)

    def test_a_request_as_text(self) -> None:
        """The access line has the same members there."""
        lines = Lines()
        AccessLog(lines, Form.TEXT, Redactor(), Level.INFO).write(  # type: ignore[arg-type]
            Request(b"GET", b"/healthz", {}, peer="192.0.2.1"), Response(200, corr_id="req_9"), 0.001, NOW
        )
        self.assertEqual(
            lines.lines[0].decode(),
            f"{AT} INFO     [request] Incoming request corr_id=req_9 requestId=req_9 client_ip=192.0.2.1 ip=192.0.2.1 "
            "method=GET path=/healthz status=200 latency_ms=1.0\n",
        )

    def test_the_form_follows_what_stdout_is(self) -> None:
        """A terminal: text; the journal's own socket: journal; anything else: JSON."""
        master, slave = pty.openpty()
        left, right = socket.socketpair()
        try:
            self.assertIs(form_for(slave, {}), Form.TEXT)
            status = os.fstat(left.fileno())
            journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
            self.assertIs(form_for(left.fileno(), journal), Form.JOURNAL)
            self.assertIs(form_for(right.fileno(), journal), Form.JSON)
            self.assertIs(form_for(left.fileno(), {}), Form.JSON)
        finally:
            os.close(master)
            os.close(slave)
            left.close()
            right.close()


class WriterTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)

    def writer(self, fd: int, **more: Any) -> LogWriter:
        writer = LogWriter(Output(fd), self.clock, lambda count: b"%d dropped\n" % count, **more)
        self.addCleanup(os.close, writer._output.fd)
        self.addCleanup(writer.stopService)
        writer.startService()
        return writer

    def pipe(self) -> tuple[int, int]:
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        fcntl.fcntl(read, fcntl.F_SETFL, os.O_NONBLOCK)
        return read, write

    def drained(self, read: int) -> bytes:
        """Read and let the clock run, until nothing more comes."""
        text = b""
        idle = 0
        while idle < 30:
            try:
                text += os.read(read, 1 << 20)
                idle = 0
            except BlockingIOError:
                idle += 1
            self.clock.advance(0.01)
        return text

    def timed(self, call: Callable[[], object]) -> float:
        began = time.monotonic()
        call()
        return time.monotonic() - began

    def test_lines_leave_together_after_a_moment(self) -> None:
        """Nothing is written at once; one scheduled call writes all, and none is left when nothing waits."""
        read, write = self.pipe()
        writer = self.writer(write)
        for i in range(100):
            writer.write(b"%d\n" % i)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        with self.assertRaises(BlockingIOError):
            os.read(read, 1)
        self.clock.advance(0.02)
        self.assertEqual(os.read(read, 65536), b"".join([b"%d\n" % i for i in range(100)]))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(writer.waiting_bytes, 0)

    def test_a_pipe_that_nobody_reads_does_not_block(self) -> None:
        """The reactor goes on; beyond the bound lines are dropped and counted; a later line says how many."""
        read, write = self.pipe()
        writer = self.writer(write, limit_bytes=200_000)
        line = b"x" * 999 + b"\n"

        def flood() -> None:
            for _ in range(1000):
                writer.write(line)
                self.clock.advance(0.02)

        self.assertLess(self.timed(flood), 3.0)
        self.assertGreater(writer.dropped, 700)
        self.assertLessEqual(writer.waiting_bytes, 200_000)
        dropped = writer.dropped
        lines = self.drained(read).splitlines()
        self.assertEqual(lines[-1], b"%d dropped" % dropped)
        self.assertEqual(set(lines[:-1]), {line.strip()})
        self.assertEqual(len(lines) - 1 + dropped, 1000)
        self.assertEqual(writer.waiting_bytes, 0)

    def test_the_pipe_of_others_keeps_its_flags(self) -> None:
        """O_NONBLOCK is not set on a description that other processes share."""
        _, write = self.pipe()
        self.writer(write)
        self.assertEqual(fcntl.fcntl(write, fcntl.F_GETFL) & os.O_NONBLOCK, 0)

    def test_where_it_cannot_be_opened_again_poll_is_asked(self) -> None:
        """A blocking pipe as it is: at most PIPE_BUF for each write that poll allows, and never a wait."""
        read, write = self.pipe()
        writer = self.writer(write, limit_bytes=1_000_000)
        writer._output.fd, writer._output._asks, writer._output._most = write, True, 4096
        for _ in range(500):
            writer.write(b"y" * 999 + b"\n")
        self.assertLess(self.timed(lambda: self.clock.pump([0.02] * 20)), 1.0)
        self.assertGreater(writer.waiting_bytes, 400_000)
        self.assertEqual(self.drained(read).count(b"\n"), 500)

    def test_a_socket_that_nobody_reads(self) -> None:
        """journald's stream socket, stuck, does not block either."""
        left, right = socket.socketpair()
        self.addCleanup(left.close)
        self.addCleanup(right.close)
        left.setblocking(False)
        writer = self.writer(os.dup(right.fileno()), limit_bytes=3_000_000)
        for _ in range(2000):
            writer.write(b"z" * 999 + b"\n")
        self.assertLess(self.timed(lambda: self.clock.pump([0.02] * 20)), 1.0)
        self.assertGreater(writer.waiting_bytes, 1_000_000)
        text = b""
        for _ in range(3000):
            if select.select([left], [], [], 0)[0]:
                text += left.recv(1 << 20)
            self.clock.advance(0.02)
        self.assertEqual(text.count(b"\n"), 2000)

    def test_a_stopped_terminal(self) -> None:
        """A terminal whose other side does not read takes what it can; the process does not wait for it."""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, slave)
        writer = self.writer(slave, limit_bytes=100_000)
        for _ in range(90):
            writer.write(b"t" * 999 + b"\n")
        self.assertLess(self.timed(lambda: self.clock.pump([0.02] * 20)), 1.0)
        self.assertGreater(writer.waiting_bytes, 0)

    def test_a_reader_that_is_gone(self) -> None:
        """EPIPE: everything from then on is dropped and counted; nothing is raised, nothing scheduled."""
        read, write = os.pipe()
        writer = self.writer(write)
        writer.write(b"1\n")
        os.close(read)
        self.clock.advance(0.02)
        writer.write(b"2\n")
        self.clock.advance(0.02)
        self.assertEqual(writer.dropped, 2)
        self.assertEqual(writer.waiting_bytes, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_full_disk_is_tried_again(self) -> None:
        """ENOSPC keeps the lines that fit the bound; they are tried again each second, not each turn."""
        writer = self.writer(os.open("/dev/full", os.O_WRONLY), limit_bytes=1000)
        for _ in range(20):
            writer.write(b"d" * 99 + b"\n")
        self.clock.advance(0.02)
        self.assertEqual((writer.waiting_bytes, writer.dropped), (1000, 10))
        (call,) = self.clock.getDelayedCalls()
        self.assertEqual(call.getTime() - self.clock.seconds(), 1.0)
        os.dup2(os.open("/dev/null", os.O_WRONLY), writer._output.fd)
        self.clock.advance(1.0)
        self.assertEqual(writer.waiting_bytes, 0)

    def test_the_stop_writes_everything_for_half_a_second_at_most(self) -> None:
        """With a reader nothing is lost; without one the stop ends all the same."""
        read, write = self.pipe()
        writer = self.writer(write)
        writer.write(b"last\n")
        writer.stopService()
        self.assertEqual(os.read(read, 100), b"last\n")
        writer.startService()
        for _ in range(1000):
            writer.write(b"x" * 999 + b"\n")
        taken_s = self.timed(writer.stopService)
        self.assertTrue(0.4 < taken_s < 1.5, taken_s)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_before_the_start_and_after_the_stop_lines_go_at_once(self) -> None:
        """A failed start and twistd's last line are written though no reactor turns."""
        read, write = self.pipe()
        writer = LogWriter(Output(write), self.clock, lambda count: b"")
        self.addCleanup(os.close, writer._output.fd)
        writer.write(b"early\n")
        self.assertEqual(os.read(read, 100), b"early\n")
        writer.startService()
        writer.stopService()
        writer.write(b"late\n")
        self.assertEqual(os.read(read, 100), b"late\n")

    def test_a_rotated_file_is_opened_again(self) -> None:
        """Lines before the rotation are in the old file, later ones in the new; both with mode 0640 at most."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "gatewayd.log"
            path.write_text("from before\n")
            writer = LogWriter(Output(open_path(str(path)), str(path)), self.clock, lambda count: b"")
            writer.startService()
            writer.write(b"one\n")
            path.rename(path.with_suffix(".1"))
            writer.reopen()
            writer.write(b"two\n")
            writer.stopService()
            os.close(writer._output.fd)
            self.assertEqual(path.with_suffix(".1").read_text(), "from before\none\n")
            self.assertEqual(path.read_text(), "two\n")
            self.assertEqual(path.stat().st_mode & 0o137, 0)

    def test_a_path_that_cannot_be_opened_again_keeps_the_old_file(self) -> None:
        """A rotation gone wrong loses no line."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "logs" / "gatewayd.log"
            path.parent.mkdir()
            writer = LogWriter(Output(open_path(str(path)), str(path)), self.clock, lambda count: b"")
            path.parent.rename(Path(directory) / "moved")
            with self.assertRaises(OSError):
                writer.reopen()
            writer.write(b"still\n")
            os.close(writer._output.fd)
            self.assertEqual((Path(directory) / "moved" / "gatewayd.log").read_text(), "still\n")
