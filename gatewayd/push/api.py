"""
The seam between the push hub and the transports that carry its streams.

Decides nothing: gRPC, WebSocket and SSE implement IOutlet; push.delivery gives each a PushStream and calls it.
"""

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from gatewayd.push.frames import Event
from gatewayd.sessions.endings import Ending
from gatewayd.sessions.values import Envelope, Reply


class IOutlet(Interface):
    """Where one stream's events go. Every call comes on the reactor's thread; none may raise."""

    transport: str = Attribute('"grpc", "websocket" or "sse": the metric\'s label.')

    def send(event: Event, *, last: bool = False) -> bool:
        """
        Take one event, always; `last`: no other one comes in this turn, so that none need be waited for. True: another
        may follow at once. False: the peer or the path is full; nothing more is sent until the transport calls
        PushStream.writable(). What send() has taken and not yet written is bounded by that: at most one event beyond
        the transport's own window.
        """

    def close(ending: Ending) -> None:
        """
        End the stream with this reason, after what send() has taken where that can still be written. Called at most
        once; nothing is sent afterwards, and the transport need not call gone() any more (it may).
        """


class PushStream(Protocol):
    """
    What a transport holds of an open stream. It begins as not writable: the transport writes its own head first, then
    calls writable(), upon which the first event (gateway.server_time) is sent.
    """

    def writable(self) -> None:
        """Send what waits, until send() says False or nothing waits any more. May call send() before it returns."""

    def gone(self, reason: str) -> None:
        """
        The client went away, or the transport ended the stream on its own; `reason` is the metric's label: "client",
        "deadline", "idle", "protocol" or "lost". Idempotent.
        """


Subscribe = Callable[[Envelope, object], Deferred[PushStream | Ending]]
"""
Check the envelope in the order of the contract and open a stream for an IOutlet: the open stream, or why not. Never
fails with anything expected. Cancelling it gives the attempt up; no send() or close() comes before it has fired.
"""

Execute = Callable[[Envelope, float | None], Deferred[Reply | Ending]]
"""Check and run a command; the second argument is the caller's own deadline in seconds from now, or None."""
