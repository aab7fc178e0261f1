"""The services, the log and the signals in a real twistd: what it prints, and with which status it ends."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater

APPLICATION = """
import os, signal, time
from twisted.application.service import Application, Service
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, Logger
from gatewayd.lifecycle import Ending, Notifier, OrderedServices, Signals, StartFailed, Ticker
from gatewayd.log import make_log

reactor.seconds = time.monotonic
mode = os.environ["MODE"]
events = Logger(namespace="gatewayd.test")
log = make_log(reactor, time.time, environ=os.environ)
ending = Ending(reactor, log.writer.flush)

class Part(Service):
    name = "part"
    def startService(self):
        super().startService()
        print("printed")
        if mode == "fails at once":
            raise StartFailed("no key file")
        if mode == "fails later":
            return Deferred.fromCoroutine(self.fail())
        if mode == "flood":
            self.flood()
    async def fail(self):
        await deferLater(reactor, 0.05)
        raise StartFailed("no answer from Redis")
    def flood(self):
        for _ in range(200):
            events.info("x" * 1000)
        reactor.callLater(0.01, self.flood)
    def stopService(self):
        super().stopService()
        if mode == "hangs at stop":
            return Deferred(lambda _: None)
        if mode == "stuck at stop":
            time.sleep(60)

application = Application("test")
application.setComponent(ILogObserver, log.observer)
tree = OrderedServices(reactor, ending, stop_budget_s=0.5, started=lambda: events.info("ready", event="ready"))
calls = {signal.SIGHUP: lambda: events.info("reloaded", event="reloaded")}
for service in (log.writer, Signals(reactor, ending, calls), Part()):
    service.setServiceParent(tree)
tree.setServiceParent(application)
"""


class Twistd(ProcessProtocol):
    """A twistd; `lines` are what it printed, parsed."""

    def __init__(self, directory: Path, mode: str) -> None:
        self.directory = directory
        self.text = b""
        self.exited: Deferred[None] = Deferred()
        self.ended: Deferred[Any] = Deferred()
        (directory / "test.tac").write_text(APPLICATION)
        twistd = str(Path(sys.executable).parent / "twistd")
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "MODE": mode}
        arguments = [twistd, "--reactor=asyncio", "-n", "-y", "test.tac", "--pidfile", "twistd.pid"]
        self.transport: Any
        reactor.spawnProcess(self, twistd, arguments, env, str(directory))

    def outReceived(self, data: bytes) -> None:
        self.text += data

    def errReceived(self, data: bytes) -> None:
        self.text += b"stderr: " + data

    def processExited(self, reason: Any) -> None:
        self.exited.callback(None)

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(reason.value.exitCode if reason.value.signal is None else -reason.value.signal)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    async def until(self, event: str, within_s: float = 10.0) -> None:
        """Wait for an event in what it printed."""
        deadline = time.monotonic() + within_s
        while f'"event":"{event}"'.encode() not in self.text:
            assert time.monotonic() < deadline, self.text
            await deferLater(reactor, 0.02)


@pytest.mark.parametrize(
    ("mode", "reason"), [("fails at once", "no key file"), ("fails later", "no answer from Redis")]
)
@pytest_twisted.ensureDeferred
async def test_a_failed_start_ends_with_one_clear_line_and_status_1(tmp_path: Path, mode: str, reason: str) -> None:
    """Not 0, as reactor.stop() alone would give; no pid file stays; what was up is stopped; every line is JSON."""
    twistd = Twistd(tmp_path, mode)
    assert await twistd.ended == 1
    failed = [line for line in twistd.lines if line["event"] == "process.failed"]
    assert [line["msg"] for line in failed] == [f"part did not start: {reason}"]
    assert "failure" not in failed[0]
    stopped = [line["service"] for line in twistd.lines if line["event"] == "service.stopped"]
    assert stopped == ["part", "signals", "log"]
    assert not (tmp_path / "twistd.pid").exists()
    assert not any(line["event"] == "ready" for line in twistd.lines)
    assert twistd.lines[-1]["msg"] == "Server Shut Down."


@pytest_twisted.ensureDeferred
async def test_the_first_sigterm_stops_and_gives_its_status(tmp_path: Path) -> None:
    """Everything is stopped in order, then the process ends by SIGTERM, which systemd calls clean; SIGHUP reloads."""
    twistd = Twistd(tmp_path, "runs")
    await twistd.until("ready")
    twistd.transport.signalProcess("HUP")
    await twistd.until("reloaded")
    twistd.transport.signalProcess("TERM")
    assert await twistd.ended == -signal.SIGTERM
    assert [line["service"] for line in twistd.lines if line["event"] == "service.stopped"] == [
        "part",
        "signals",
        "log",
    ]
    assert [line["event"] for line in twistd.lines if line["msg"] == "printed"] == ["stdout"]


@pytest_twisted.ensureDeferred
async def test_a_part_that_hangs_at_its_stop_is_left_behind(tmp_path: Path) -> None:
    """Its budget is over, the others are stopped, and the status is still SIGTERM's."""
    twistd = Twistd(tmp_path, "hangs at stop")
    await twistd.until("ready")
    twistd.transport.signalProcess("TERM")
    assert await twistd.ended == -signal.SIGTERM
    assert [line["service"] for line in twistd.lines if line["event"] == "service.stop_overrun"] == ["part"]
    assert [line["service"] for line in twistd.lines if line["event"] == "service.stopped"] == ["signals", "log"]


@pytest_twisted.ensureDeferred
async def test_the_second_sigterm_ends_at_once_though_the_reactor_is_stuck(tmp_path: Path) -> None:
    """A component that blocks the process for a minute at its stop cannot keep it: 143 within a moment."""
    twistd = Twistd(tmp_path, "stuck at stop")
    await twistd.until("ready")
    twistd.transport.signalProcess("TERM")
    await deferLater(reactor, 0.3)
    began = time.monotonic()
    twistd.transport.signalProcess("TERM")
    assert await twistd.ended == 128 + signal.SIGTERM
    assert time.monotonic() - began < 2.0


@pytest_twisted.ensureDeferred
async def test_a_log_that_nobody_reads_does_not_stop_the_process(tmp_path: Path) -> None:
    """20 MB a second into a pipe that is not read: the process still reloads, and still stops in its time."""
    twistd = Twistd(tmp_path, "flood")
    await twistd.until("ready")
    reader = twistd.transport.pipes[1]
    reader.pauseProducing()
    await deferLater(reactor, 1.0)
    began = time.monotonic()
    twistd.transport.signalProcess("TERM")
    await twistd.exited.addTimeout(4.0, reactor)
    assert 0.4 < time.monotonic() - began < 3.0
    reader.resumeProducing()
    assert await twistd.ended == -signal.SIGTERM
