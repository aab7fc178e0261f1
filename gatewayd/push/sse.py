"""
One stream over HTTP: server-sent events, for clients that read a response as it comes (WHATWG HTML 9.2).

Decides the head, the first comment and the last event. Never decides which events there are: the hub does, heartbeats
included. The body's end is the connection's; an end without `event: close` was none of ours.
"""

from typing import Final

import msgspec
from twisted.internet.interfaces import IProtocol, IPushProducer
from zope.interface import implementer

from gatewayd.push.api import IOutlet, PushStream
from gatewayd.push.connections import Connections
from gatewayd.push.frames import Event
from gatewayd.push.outlet import OPEN, Outlet
from gatewayd.push.refusals import error_members
from gatewayd.sessions.endings import Ending
from gatewayd.times import Monotonic

RETRY_MS: Final = 2000
"""What a client waits before it comes again, where nothing else is said."""

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    # nginx would keep events until it has a buffer full of them.
    b"X-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\nX-Correlation-ID: %b\r\n%b\r\n"
    # A comment, which has proxies and fetch() pass the head on before there is an event.
    b": open\nretry: %d\n\n"
)


@implementer(IProtocol, IPushProducer, IOutlet)
class SseStream(Outlet):
    """A response that goes on. `headers` are further lines of its head, each with its CR LF."""

    __slots__ = ("_head",)

    transport = "sse"

    def __init__(self, connections: Connections, corr_id: str, headers: bytes = b"") -> None:
        super().__init__(connections)
        self._head = _HEAD % (corr_id.encode("ascii"), headers, RETRY_MS)

    def opened(self, stream: PushStream) -> None:
        """The hub has opened the stream; the connection is handed over next."""
        self._stream = stream

    def begin(self) -> None:
        """See Outlet."""
        head, self._head = self._head, b""
        self._put(head)
        self._phase = OPEN
        if self._stream is not None and not self._paused:
            self._stream.writable()

    def dataReceived(self, data: bytes) -> None:
        """Nothing is asked of a client any more; what it sends is dropped."""
        self._drop(data)

    def send(self, event: Event, *, last: bool = False) -> bool:
        """See IOutlet."""
        return (self._write if last else self._put)(event.sse_frame)

    def close(self, ending: Ending) -> None:
        """See IOutlet. The reason, and when to come back, for the client to read."""
        if self._phase is not OPEN:
            return
        error = msgspec.json.encode(error_members(ending.reason, ending.message, ending.retry_after_ms))
        retry = b"" if ending.retry_after_ms is None else b"retry: %d\n" % ending.retry_after_ms
        self._put(b"%bevent: close\ndata: %b\n\n" % (retry, error))
        self._finish()

    def expire(self, now: Monotonic) -> None:
        """See Outlet: only an end has a deadline, for heartbeats and the kernel find out who is gone."""
        self.cut()

    def retire(self) -> None:
        """See Outlet: an open stream is the hub's."""
