"""
The public authentication paths: forwarded to the service that GATEWAY_AUTH_SERVICE_BASE_URL names.

Decides who may ask how often, and passes on what comes of it. Never looks at a code or at who an email belongs to, and
never logs either: the service does what is done here.
"""

import math
from collections.abc import Callable
from typing import Final

import msgspec
from twisted.internet.defer import Deferred
from zope.interface import implementer

from gatewayd.address_gate import AddressGate
from gatewayd.answers import random_corr_id
from gatewayd.commands import auth_requests as asked
from gatewayd.commands.breaker import Breaker
from gatewayd.commands.received import Cause, Posting, Received
from gatewayd.errors import Refused
from gatewayd.http.message import Request, Response
from gatewayd.ingress.admission import Buckets, Limited
from gatewayd.ingress.headers import refuse_media_type
from gatewayd.interfaces import ILeaf
from gatewayd.push.refusals import Problem, answer
from gatewayd.sessions.limits import BOUND
from gatewayd.times import Monotonic

DEADLINE_S: Final = 10.0
"""What the service has: it hands a mail over to somebody else."""

UNDER_WAY: Final = 64
"""Requests to the service at once; more find it unavailable."""

Refuse = Callable[[Request | None, Refused], Response]


class AuthService:
    """The service at `base_url`: asked through `upstream`, left alone while it fails."""

    def __init__(
        self,
        base_url: str,
        upstream: Posting,
        *,
        now: Callable[[], Monotonic],
        complain: Callable[[str], object],
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._base_url = base_url
        self._upstream = upstream
        self._now = now
        self._complain = complain
        self._deadline_s = deadline_s
        self._breaker = Breaker()
        self._under_way = 0

    async def ask(self, path: bytes, headers: dict[str, str], body: bytes) -> asked.Passed | Problem:
        """Forward one request; the answer, or what is answered without one."""
        ticket = self._breaker.enter(self._now()) if self._under_way < UNDER_WAY else None
        if ticket is None:
            wait_ms = math.ceil(self._breaker.wait_s(self._now()) * 1000)
            return msgspec.structs.replace(asked.UNAVAILABLE, retry_after_ms=wait_ms)
        self._under_way += 1
        ok: bool | None = None
        try:
            url = self._base_url + path.decode("ascii")
            received = await self._upstream.post(url, headers, body, self._deadline_s)
            if isinstance(received, Received):
                ok = received.status < 500
                return asked.judge(received.status, received.headers, received.body)
            ok = False
            self._complain(received.text)
            return _PROBLEMS[received.cause]
        finally:
            self._under_way -= 1
            self._breaker.settle(ticket, self._now(), ok=ok)


_PROBLEMS: Final = {
    Cause.DOWN: asked.UNAVAILABLE,
    Cause.BROKEN: asked.BROKEN,
    Cause.TIMED_OUT: asked.TIMED_OUT,
}


@implementer(ILeaf)
class PublicAuth:
    """
    Everything below asked.PREFIX. `service` None: there is none, 503. `closed` says why nothing is taken now, None when
    it is; `gate` has the limit of an address.
    """

    def __init__(
        self,
        service: AuthService | None,
        gate: AddressGate,
        *,
        closed: Callable[[], Problem | None],
        now: Callable[[], Monotonic],
    ) -> None:
        self._service = service
        self._gate = gate
        self._closed = closed
        self._now = now
        self._subjects = Buckets(BOUND)

    def begin(self, request: Request) -> Response | int:
        """See ILeaf."""
        problem = self._refuse_head(request)
        return asked.MAX_BODY_BYTES if problem is None else answer(problem, random_corr_id())

    def _refuse_head(self, request: Request) -> Problem | None:
        if request.path not in asked.ACTIONS:
            return asked.NOT_FOUND
        if request.method != b"POST":
            return asked.NOT_ALLOWED
        problem = self._closed()
        if problem is not None:
            return problem
        limited = self._gate.refuse(request)
        if limited is not None:
            return _limited(limited)
        if self._service is None:
            return asked.NO_SERVICE
        length = request.headers.get(b"content-length", b"0")
        if len(length) > 10 or int(length) > asked.MAX_BODY_BYTES:
            return asked.TOO_LARGE
        return asked.NOT_JSON if refuse_media_type(request) is not None else None

    def answer(self, request: Request) -> Response | Deferred[Response]:
        """See ILeaf."""
        corr_id = random_corr_id()
        if self._service is None:
            return answer(asked.NO_SERVICE, corr_id)
        action = asked.ACTIONS[request.path]
        subject = asked.subject_of(action, request.body)
        if isinstance(subject, Problem):
            return answer(subject, corr_id)
        limited = self._subjects.take(subject, action.limit, self._now())
        if limited is not None:
            return answer(_limited(limited), corr_id)
        return Deferred.fromCoroutine(_forward(self._service, request, corr_id))


async def _forward(service: AuthService, request: Request, corr_id: str) -> Response:
    headers = asked.forwarded(request.headers, request.client_ip, corr_id)
    found = await service.ask(request.path, headers, request.body)
    if isinstance(found, Problem):
        return answer(found, corr_id)
    return Response(found.status, found.body, found.content_type, found.headers, corr_id=corr_id)


def _limited(limited: Limited) -> Problem:
    return msgspec.structs.replace(asked.LIMITED, retry_after_ms=math.ceil(limited.wait_s * 1000))


def in_this_shape(refuse: Refuse) -> Refuse:
    """
    What the channel refuses by itself (a body that turns out too long, broken framing) below asked.PREFIX in the shape
    of these paths, everything else as `refuse` does it.
    """

    def shaped(request: Request | None, refused: Refused) -> Response:
        response = refuse(request, refused)
        if request is None or not request.path.startswith(asked.PREFIX):
            return response
        wait_ms = None if refused.retry_after is None else math.ceil(refused.retry_after * 1000)
        problem = Problem(refused.http_status, refused.slug, refused.row.message, refused.headers, wait_ms)
        ours = answer(problem, response.corr_id)
        ours.close, ours.code, ours.logged = response.close, response.code, response.logged
        return ours

    return shaped
