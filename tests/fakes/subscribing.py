"""
A push hub of few words, for the transports' tests: it opens what it is told to and keeps every outlet's waiting events.

It knows no sessions: whoever asks has a stream, unless `endings` has a refusal for the envelope's session.
"""

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred, succeed

from gatewayd.push.api import PushStream
from gatewayd.push.frames import Event, EventSigner
from gatewayd.sessions.endings import Ending
from gatewayd.sessions.signing import event_input
from gatewayd.sessions.values import Envelope, Reply


def unsigned(_: bytes) -> bytes:
    """No signature at all."""
    return bytes(64)


class FakeStream:
    """One open stream: what waits for it, and what its transport said."""

    def __init__(self, hub: "FakeHub", outlet: Any, envelope: Envelope) -> None:
        self.outlet = outlet
        self.envelope = envelope
        self.waiting: deque[Event] = deque()
        self.ready = False
        self.reasons: list[str] = []
        self._hub = hub

    def writable(self) -> None:
        self.ready = True
        while self.ready and self.waiting:
            self.ready = self.outlet.send(self.waiting.popleft())

    def gone(self, reason: str) -> None:
        self.reasons.append(reason)
        self._hub.streams.discard(self)

    def push(self, event: Event) -> None:
        self.waiting.append(event)
        if self.ready:
            self.writable()

    def close(self, ending: Ending) -> None:
        self._hub.streams.discard(self)
        self.outlet.close(ending)


class FakeHub:
    """
    Subscribe and Execute. `holds`: an attempt is held until release(); `opens_late`: it is opened when it is cancelled.
    """

    def __init__(self, signer: EventSigner | None = None) -> None:
        self.signer = signer or EventSigner(unsigned, event_input)
        self.streams: set[FakeStream] = set()
        self.ever: list[FakeStream] = []
        self.endings: dict[str, Ending] = {}
        self.holds = self.opens_late = False
        self.held: list[Deferred[PushStream | Ending]] = []
        self.asked: list[tuple[Envelope, object]] = []
        self.cancelled = 0
        self.commands: list[Envelope] = []
        self.executing: list[Deferred[Reply | Ending]] = []
        self.first = True
        self.timestamp_ms = 1_700_000_000_000

    def subscribe(self, envelope: Envelope, outlet: object) -> Deferred[PushStream | Ending]:
        """See push.api.Subscribe."""
        if self.holds:
            held: Deferred[PushStream | Ending] = Deferred(self._cancelled)
            self.held.append(held)
            self.asked.append((envelope, outlet))
            return held
        return succeed(self.opened(envelope, outlet))

    def _cancelled(self, held: Deferred[PushStream | Ending]) -> None:
        self.cancelled += 1
        if self.opens_late:
            self.release(self.held.index(held))

    def release(self, which: int = -1) -> None:
        """Open a stream that was held."""
        self.held[which].callback(self.opened(*self.asked[which]))

    def opened(self, envelope: Envelope, outlet: object) -> PushStream | Ending:
        """The stream, or its refusal."""
        ending = self.endings.get(envelope.device_session_id)
        if ending is not None:
            return ending
        stream = FakeStream(self, outlet, envelope)
        self.streams.add(stream)
        self.ever.append(stream)
        if self.first:
            now = self.timestamp_ms.to_bytes(8, "big")
            stream.push(self.event("gateway.server_time", now, "ea.0-0", envelope.request_id, envelope.trace_id))
        return stream

    def execute(self, envelope: Envelope, deadline_s: float | None) -> Deferred[Reply | Ending]:
        """See push.api.Execute."""
        self.commands.append(envelope)
        executing: Deferred[Reply | Ending] = Deferred()
        self.executing.append(executing)
        return executing

    def event(self, event_type: str, payload: bytes, position: str, request_id: str = "", trace_id: str = "") -> Event:
        """One event."""
        return Event(
            self.signer,
            event_type=event_type,
            event_id=f"id-{position}",
            timestamp_ms=self.timestamp_ms,
            payload=payload,
            position=position,
            request_id=request_id,
            trace_id=trace_id,
        )

    def publish(self, event: Event) -> None:
        """To everybody."""
        for stream in tuple(self.streams):
            stream.push(event)


def reply(request_id: str, payload: bytes = b"done") -> Reply:
    """The answer to a command."""
    return Reply("v1", request_id, 1_700_000_000_000, "ok", payload, bytes(32), bytes(64))


def envelope_members(session: str = "session-1", request_id: str = "request-1", **changed: object) -> dict[str, object]:
    """An envelope's JSON members; the signature is none."""
    return {
        "protocol_version": "v1",
        "device_session_id": session,
        "message_type": "events.subscribe",
        "timestamp_ms": 1_700_000_000_000,
        "request_id": request_id,
        "payload_bytes": "",
        "payload_hash": "A" * 43,
        "signature": "A" * 86,
        "trace_id": "trace-1",
        **changed,
    }
