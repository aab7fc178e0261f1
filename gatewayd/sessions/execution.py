"""
One command from signed request to signed answer. Pure.

Decides what is measured and what of an answer may be signed. Never checks a request (sessions.verification does) and
never calls a service itself (its route does).
"""

from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Final, Protocol

from gatewayd.sessions.endings import NO_ROUTE, UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending
from gatewayd.sessions.envelope import ID, MAX_PAYLOAD_BYTES
from gatewayd.sessions.signing import response_input
from gatewayd.sessions.values import Answered, Command, Envelope, Reply, Session
from gatewayd.sessions.verification import VERSION
from gatewayd.times import Monotonic, Wall

OK: Final = "ok"
OTHER_CODE: Final = "other"
UNANSWERED: Final = "unanswered"
"""How a command is counted whose client went away, or that failed on a bug."""


class Route(Protocol):
    """Where commands of a message type go."""

    def call(self, command: Command, deadline_s: float | None) -> Awaitable[Answered | Ending]:
        """The service's answer; `deadline_s` is what the caller has left, None for as long as the route's own."""


class Router(Protocol):
    """The table of routes."""

    def find(self, message_type: str) -> Route | None:
        """The route of a message type; None where there is none."""


class Counts(Protocol):
    """What is counted; see edge_metrics.EdgeMetrics."""

    def command(self, message_type: str, code: str) -> None:
        """One command was answered."""

    def command_seconds(self, seconds: float) -> None:
        """It took this long."""


class Execution:
    """
    Verifies, routes and signs. `group` says under which name a message type is counted: that of its route; `sign` is
    the gateway's Ed25519.
    """

    def __init__(
        self,
        verify: Callable[[Envelope], Awaitable[Session | Ending]],
        router: Router,
        *,
        sign: Callable[[bytes], bytes],
        now: Callable[[], Monotonic],
        wall: Callable[[], Wall],
        counts: Counts,
        group: Callable[[str], str],
    ) -> None:
        self._verify = verify
        self._router = router
        self._sign = sign
        self._now = now
        self._wall = wall
        self._counts = counts
        self._group = group

    async def execute(self, envelope: Envelope, deadline_s: float | None) -> Reply | Ending:
        """Check and run a command; `deadline_s` is the caller's own, in seconds from now."""
        began = self._now()
        code = UNANSWERED
        try:
            outcome = await self._answer(envelope, began, deadline_s)
            code = outcome.reason if isinstance(outcome, Ending) else _counted(outcome.result_code)
            return outcome
        finally:
            self._counts.command(self._group(envelope.message_type), code)
            self._counts.command_seconds(self._now() - began)

    async def _answer(self, envelope: Envelope, began: Monotonic, deadline_s: float | None) -> Reply | Ending:
        session = await self._verify(envelope)
        if isinstance(session, Ending):
            return session
        route = self._router.find(envelope.message_type)
        if route is None:
            return NO_ROUTE
        left_s = None if deadline_s is None else deadline_s - (self._now() - began)
        if left_s is not None and left_s <= 0.0:
            return UPSTREAM_TIMED_OUT
        command = Command(
            envelope.payload,
            session.device_session_id,
            session.user_id,
            envelope.message_type,
            envelope.request_id,
            envelope.trace_id,
        )
        answered = await route.call(command, left_s)
        if isinstance(answered, Ending):
            return answered
        if ID.fullmatch(answered.result_code) is None or len(answered.payload) > MAX_PAYLOAD_BYTES:
            return UPSTREAM_FAILED
        return self._reply(envelope.request_id, answered)

    def _reply(self, request_id: str, answered: Answered) -> Reply:
        at_ms = int(self._wall() * 1000)
        digest = sha256(answered.payload).digest()
        signature = self._sign(response_input(VERSION, request_id, at_ms, answered.result_code, digest))
        return Reply(VERSION, request_id, at_ms, answered.result_code, answered.payload, digest, signature)


def _counted(result_code: str) -> str:
    """A service's own codes are without number: only "ok" is told from the others."""
    return OK if result_code == OK else OTHER_CODE
