"""
IRoute to a service on NATS: request and reply on the connection that the gateway has.

Decides how a command looks as a message, and what a reply says. Opens no connection, and tries nothing twice.
"""

from collections.abc import Callable
from typing import Final, Protocol

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from zope.interface import implementer

from gatewayd.bus.publication import Cause, Unpublished
from gatewayd.bus.requests import NO_RESPONDERS, Answer
from gatewayd.commands.api import IRoute
from gatewayd.commands.trace import SPAN_BYTES, traceparent_of
from gatewayd.sessions.endings import UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending, malformed
from gatewayd.sessions.values import Answered, Command

RESULT_CODE: Final = "result_code"
OK: Final = "ok"
SERVICE_ERROR: Final = "service_error"
"""The result code of a reply that says, as services of NATS' own framework do, that it is an error, and no more."""

NOT_CONNECTED: Final = replace(UPSTREAM_FAILED, retry_after_ms=1000)
"""NATS is away, or the connection went with the answer: an outage of it must not open the breakers of all services."""

_SERVICE_ERROR_HEADER: Final = "Nats-Service-Error-Code"
_HEAD_BYTES: Final = 4096  # of what the server takes, for headers: five ids and words of at most 512 characters
_TOO_LARGE: Final = malformed("payload_bytes", "has more bytes than its route takes")


class Asking(Protocol):
    """What is needed of NatsBus."""

    @property
    def max_payload(self) -> int:
        """Bytes that the server takes as headers and body of one message."""

    def ask(self, subject: str, payload: bytes, timeout_s: float, headers: bytes = b"") -> Deferred[Answer]:
        """One request; see NatsBus."""


@implementer(IRoute)
class NatsRoute:
    """
    The service that answers on `subject`.

    It gets the payload as the message, and as headers device_session_id, user_id, message_type, request_id, trace_id
    (when there is one) and traceparent. Its reply is the answer's payload; its header result_code is the answer's,
    "ok" without one. `random` gives random bytes; `complain` takes a line for the log.
    """

    def __init__(
        self, bus: Asking, subject: str, *, random: Callable[[int], bytes], complain: Callable[[str], object]
    ) -> None:
        self._bus = bus
        self._subject = subject
        self._random = random
        self._complain = complain

    def call(self, command: Command, deadline_s: float) -> Deferred[Answered | Ending]:
        """See IRoute."""
        bound = self._bus.max_payload  # 0 before the first connection, which is refused below
        if bound and len(command.payload) + _HEAD_BYTES > bound:
            refused: Deferred[Answered | Ending] = Deferred()
            refused.callback(_TOO_LARGE)
            return refused
        headers = headers_of(command, self._random(SPAN_BYTES))
        return self._bus.ask(self._subject, command.payload, deadline_s, headers).addCallback(self._read)

    def _read(self, answer: Answer) -> Answered | Ending:
        if isinstance(answer, Unpublished):
            self._complain(answer.error or answer.cause.value)
            return UPSTREAM_TIMED_OUT if answer.cause is Cause.TIMEOUT else NOT_CONNECTED
        if answer.status:
            none = answer.status == NO_RESPONDERS
            self._complain("nobody listens on its subject" if none else f"status {answer.status}")
            return UPSTREAM_FAILED
        fallback = SERVICE_ERROR if _SERVICE_ERROR_HEADER in answer.headers else OK
        return Answered(answer.headers.get(RESULT_CODE, fallback), answer.body)


def headers_of(command: Command, span: bytes) -> bytes:
    """The header lines of a command. Its words are visible ASCII: sessions.envelope and .snapshots see to that."""
    traceparent = traceparent_of(command.trace_id, span)
    return "".join(
        [
            f"device_session_id: {command.device_session_id}\r\n",
            f"user_id: {command.user_id}\r\n",
            f"message_type: {command.message_type}\r\n",
            f"request_id: {command.request_id}\r\n",
            f"trace_id: {command.trace_id}\r\n" if command.trace_id else "",
            f"traceparent: {traceparent}\r\n" if traceparent is not None else "",
        ]
    ).encode("ascii")
