"""
IRoute to a service by HTTP: one POST.

Decides how a command looks as a request, and which answers count as the service's. Never follows, never tries twice.
"""

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from zope.interface import implementer

from gatewayd.commands.api import IRoute
from gatewayd.commands.received import Cause, Posting, Received, Unanswered
from gatewayd.commands.trace import SPAN_BYTES, traceparent_of
from gatewayd.sessions.endings import UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending
from gatewayd.sessions.values import Answered, Command

RESULT_CODE: Final = b"x-result-code"
OK: Final = "ok"
_TRANSIENT: Final = frozenset({408, 425, 429})


@implementer(IRoute)
class HttpRoute:
    """
    The service at `url`.

    It gets the payload as the body (application/octet-stream), and the headers X-Device-Session-Id, X-User-Id,
    X-Message-Type, X-Request-Id, X-Trace-Id (when there is one) and traceparent. A 2xx is its answer, a 4xx too: the
    body is the payload, the header X-Result-Code the result code, without one "ok" or "http_" and the status. 408, 425,
    429, redirects and 5xx are no answers. `random` gives random bytes; `complain` takes a line for the log.
    """

    def __init__(
        self, upstream: Posting, url: str, *, random: Callable[[int], bytes], complain: Callable[[str], object]
    ) -> None:
        self._upstream = upstream
        self._url = url
        self._random = random
        self._complain = complain

    def call(self, command: Command, deadline_s: float) -> Deferred[Answered | Ending]:
        """See IRoute."""
        headers = headers_of(command, self._random(SPAN_BYTES))
        return self._upstream.post(self._url, headers, command.payload, deadline_s).addCallback(self._read)

    def _read(self, answer: Received | Unanswered) -> Answered | Ending:
        if isinstance(answer, Unanswered):
            self._complain(answer.text)
            return UPSTREAM_TIMED_OUT if answer.cause is Cause.TIMED_OUT else UPSTREAM_FAILED
        code = answer.headers.get(RESULT_CODE, b"").decode("latin-1")
        if 200 <= answer.status < 300:
            return Answered(code or OK, answer.body)
        if 400 <= answer.status < 500 and answer.status not in _TRANSIENT:
            return Answered(code or f"http_{answer.status}", answer.body)
        self._complain(f"status {answer.status}")
        return UPSTREAM_FAILED


def headers_of(command: Command, span: bytes) -> dict[str, str]:
    """The headers of a command. Its words are visible ASCII: sessions.envelope and .snapshots see to that."""
    headers = {
        "Content-Type": "application/octet-stream",
        "X-Device-Session-Id": command.device_session_id,
        "X-User-Id": command.user_id,
        "X-Message-Type": command.message_type,
        "X-Request-Id": command.request_id,
    }
    if command.trace_id:
        headers["X-Trace-Id"] = command.trace_id
    traceparent = traceparent_of(command.trace_id, span)
    return headers if traceparent is None else {**headers, "traceparent": traceparent}
