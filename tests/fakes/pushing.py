"""The server's end of a connection that was handed over, without a socket: what was written, and how it ended."""

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.connections import Connections


class Soon:
    """Calls that wait for the end of the turn, which is turn()."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []
        self.scheduled = 0

    def __call__(self, function: Callable[[], object]) -> None:
        self.waiting.append(function)
        self.scheduled += 1

    def turn(self) -> None:
        """The end of this turn, and of those that it makes."""
        while self.waiting:
            waiting, self.waiting = self.waiting, []
            for function in waiting:
                function()


class Handle:
    """A socket of which only the options are looked at."""

    def __init__(self) -> None:
        self.options: list[tuple[int, int, int]] = []

    def setsockopt(self, level: int, name: int, value: int) -> None:
        self.options.append((level, name, value))


class FakeConnection:
    """A transport. `room`: bytes that it takes before it pauses its producer, None for any number."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.handle = Handle()
        self.bufferSize = 65536
        self.writes: list[bytes] = []
        self.producer: Any = None
        self.half_closed = self.aborted = self.gone = False
        self.room: int | None = None
        protocol.makeConnection(self)

    @property
    def sent(self) -> bytes:
        """Everything written."""
        return b"".join(self.writes)

    def take(self) -> bytes:
        """What was written since the last look."""
        sent = self.sent
        self.writes.clear()
        return sent

    def getHandle(self) -> Handle:
        return self.handle

    def write(self, data: bytes) -> None:
        assert not self.half_closed, data
        assert not self.gone, data
        assert isinstance(data, bytes)
        self.writes.append(data)
        if self.room is not None:
            self.room -= len(data)
            if self.room < 0 and self.producer is not None:
                self.room = None
                self.producer.pauseProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        self.aborted = True
        self.lose(ConnectionAborted())

    def lose(self, error: Exception | None = None) -> None:
        """The connection is gone: by the client's FIN, or by what is given."""
        if not self.gone:
            self.gone = True
            self.protocol.connectionLost(Failure(error or ConnectionDone()))

    def reset(self) -> None:
        """The client resets it."""
        self.lose(ConnectionLost("ECONNRESET"))


class Pushing:
    """Connections on a Clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.soon = Soon()
        self.connections = Connections(self.clock, self.soon)

    def advance(self, seconds: float) -> None:
        """Let time pass, sweep by sweep."""
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)
            self.soon.turn()


class PushingCase(SynchronousTestCase):
    """A test whose bugs of ours are logged, and looked at."""

    @pytest.fixture(autouse=True)
    def _failures(self, no_logged_failures: list[LogEvent]) -> None:
        self.failures = no_logged_failures

    def assert_failed(self, event: str) -> None:
        """One bug was logged, as this event."""
        self.assertEqual([failure["event"] for failure in self.failures], [event])
        self.failures.clear()
        self.flushLoggedErrors(ZeroDivisionError)
