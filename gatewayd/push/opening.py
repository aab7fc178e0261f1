"""
/edge/v1/events: GET opens a WebSocket, POST a stream of server-sent events.

Decides who may open either, and answers those who may not. Never checks an envelope (subscribe does), never writes to
a connection that has changed hands.

A page of another origin that is allowed may read a POST's answer too (Fetch, 3.2: CORS): without that no browser shows
it the stream.
"""

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from zope.interface import implementer

from gatewayd.answers import random_corr_id
from gatewayd.http.exchange import HandOver
from gatewayd.http.message import TEXT, Request, Response
from gatewayd.ingress.headers import refuse_media_type
from gatewayd.interfaces import ILeaf
from gatewayd.push.api import PushStream
from gatewayd.push.connections import Connections
from gatewayd.push.handshake import handshake_head, refuse_handshake, refuse_origin
from gatewayd.push.refusals import Problem, answer, problem_of
from gatewayd.push.sse import SseStream
from gatewayd.push.websocket import Services, WebSocketStream
from gatewayd.sessions.endings import SHUTTING_DOWN, Ending

PATH: Final = b"/edge/v1/events"
MAX_ENVELOPE_BYTES: Final = 65536
PREFLIGHT_S: Final = 600

_METHODS: Final = b"GET, POST, OPTIONS"
_READABLE: Final = b"Retry-After, X-Correlation-ID"
_NOT_ALLOWED: Final = Problem(405, "method_not_allowed", "GET or POST", ((b"Allow", _METHODS),))
_TOO_LARGE: Final = Problem(413, "too_large", "an envelope has at most 64 KiB here")
_NOT_JSON: Final = Problem(415, "media_type", "the body must be application/json; charset=utf-8, not compressed")

Gate = Callable[[Request], Ending | None]
"""Why a request is refused before anything is read of it (its address's limit, say); None to let it in."""


@implementer(ILeaf)
class Opening:
    """`origins` gives those of web pages that may open streams, as browsers write them: `https://app.example`."""

    def __init__(
        self, *, services: Services, connections: Connections, origins: Callable[[], frozenset[bytes]], gate: Gate
    ) -> None:
        self._services = services
        self._connections = connections
        self._origins = origins
        self._gate = gate

    def begin(self, request: Request) -> Response | int:
        """See ILeaf."""
        problem = self._refuse_head(request)
        if problem is not None:
            return self._refuse(request, problem)
        return MAX_ENVELOPE_BYTES if request.method == b"POST" else 0

    def _refuse_head(self, request: Request) -> Problem | None:
        if request.method not in (b"GET", b"POST", b"OPTIONS"):
            return _NOT_ALLOWED
        problem = refuse_origin(request, self._origins())
        if problem is not None or request.method == b"OPTIONS":
            return problem
        if request.method == b"GET":
            problem = refuse_handshake(request)
        else:
            length = request.headers.get(b"content-length", b"0")
            if len(length) > 10 or int(length) > MAX_ENVELOPE_BYTES:
                return _TOO_LARGE
            problem = _NOT_JSON if refuse_media_type(request) is not None else None
        if problem is None:
            ending = SHUTTING_DOWN if self._connections.stopping else self._gate(request)
            problem = None if ending is None else problem_of(ending)
        return problem

    def answer(self, request: Request) -> Response | Deferred[Response]:
        """See ILeaf."""
        corr_id = random_corr_id()
        if request.method == b"OPTIONS":
            return Response(200, b"", TEXT, self._preflight(request), corr_id=corr_id)
        if request.method == b"GET":
            head = handshake_head(request, corr_id)
            return _hand_over(WebSocketStream(self._connections, self._services, head), 101, corr_id)
        envelope = self._services.read_envelope(request.body)
        if isinstance(envelope, Ending):
            return self._refuse(request, problem_of(envelope))
        headers = b"".join(b"%b: %b\r\n" % line for line in self._cors(request))
        stream = SseStream(self._connections, corr_id, headers)

        def opened(opened: PushStream | Ending) -> Response:
            if isinstance(opened, Ending):
                return self._refuse(request, problem_of(opened))
            stream.opened(opened)
            return _hand_over(stream, 200, corr_id)

        return self._services.subscribe(envelope, stream).addCallback(opened)

    def _refuse(self, request: Request, problem: Problem) -> Response:
        return answer(problem, random_corr_id(), self._cors(request))

    def _cors(self, request: Request) -> tuple[tuple[bytes, bytes], ...]:
        """What lets the page that asks read the answer, when it may."""
        origin = request.headers.get(b"origin")
        if origin is None:
            return ()
        vary = (b"Vary", b"Origin")
        if origin not in self._origins():
            return (vary,)
        return (vary, (b"Access-Control-Allow-Origin", origin), (b"Access-Control-Expose-Headers", _READABLE))

    def _preflight(self, request: Request) -> tuple[tuple[bytes, bytes], ...]:
        return (
            *self._cors(request),
            (b"Access-Control-Allow-Methods", b"POST"),
            (b"Access-Control-Allow-Headers", b"content-type"),
            (b"Access-Control-Max-Age", b"%d" % PREFLIGHT_S),
        )


def _hand_over(stream: SseStream | WebSocketStream, status: int, corr_id: str) -> HandOver:
    handed = HandOver(stream, status)
    handed.corr_id = corr_id
    return handed
