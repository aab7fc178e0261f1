"""A command from its envelope to the signed answer."""

import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.edge_metrics import OTHER, EdgeMetrics
from gatewayd.sessions.endings import NO_ROUTE, REVOKED, UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending
from gatewayd.sessions.envelope import MAX_PAYLOAD_BYTES
from gatewayd.sessions.execution import Execution
from gatewayd.sessions.signing import response_input, verify
from gatewayd.sessions.values import Answered, Command, Envelope, Reply, Session
from gatewayd.times import Monotonic, Wall
from tests.edge_requests import NOW_MS, SESSION, USER, private_key, request, session


class Upstream:
    """A route that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.outcome: Answered | Ending | Deferred[Answered | Ending] = Answered("ok", b"done")
        self.asked: list[tuple[Command, float | None]] = []

    def call(self, command: Command, deadline_s: float | None) -> Awaitable[Answered | Ending]:
        self.asked.append((command, deadline_s))
        return self.outcome if isinstance(self.outcome, Deferred) else succeed(self.outcome)

    def find(self, message_type: str) -> "Upstream | None":
        return self if message_type == "user.command" else None


class ExecutionTests(SynchronousTestCase):
    """With verification's outcome given."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.verified: Session | Ending = session()
        self.verifying_s = 0.0
        self.upstream = Upstream()
        self.registry = CollectorRegistry()
        self.key = private_key(9)
        self.execution = Execution(
            self.verify,
            self.upstream,
            sign=self.key.sign,
            now=lambda: Monotonic(self.clock.seconds()),
            wall=lambda: Wall(NOW_MS / 1000),
            counts=EdgeMetrics(self.registry, message_types=("user.command",)),
            group=lambda message_type: message_type if self.upstream.find(message_type) else OTHER,
        )

    def verify(self, envelope: Envelope) -> Awaitable[Session | Ending]:
        self.clock.advance(self.verifying_s)
        return succeed(self.verified)

    def begin(self, envelope: Envelope, deadline_s: float | None = None) -> Deferred[Reply | Ending]:
        running: Coroutine[Deferred[Any], Any, Reply | Ending] = self.execution.execute(envelope, deadline_s)
        return Deferred.fromCoroutine(running)

    def execute(self, envelope: Envelope, deadline_s: float | None = None) -> Reply | Ending:
        return self.successResultOf(self.begin(envelope, deadline_s))

    def counted(self, code: str, message_type: str = "user.command") -> float:
        labels = {"message_type": message_type, "code": code}
        return self.registry.get_sample_value("edge_commands_total", labels) or 0.0

    def test_answer(self) -> None:
        """The service's code and payload come back, hashed and signed by the gateway, bound to the request's id."""
        reply = self.execute(request())
        assert isinstance(reply, Reply)
        self.assertEqual((reply.protocol_version, reply.request_id, reply.result_code), ("v1", "request-1", "ok"))
        self.assertEqual((reply.payload, reply.timestamp_ms), (b"done", NOW_MS))
        self.assertEqual(reply.payload_hash, hashlib.sha256(b"done").digest())
        signed = response_input("v1", "request-1", NOW_MS, "ok", reply.payload_hash)
        self.assertTrue(verify(self.key.public_key().public_bytes_raw(), reply.signature, signed))
        self.assertEqual(self.counted("ok"), 1)
        self.assertEqual(self.registry.get_sample_value("edge_command_duration_seconds_count"), 1)

    def test_what_the_service_gets(self) -> None:
        """The payload as it was received, who signed it (as the session says, not the client), and the ids."""
        self.execute(request(payload=b"\0\xff"))
        ((command, deadline_s),) = self.upstream.asked
        self.assertEqual(command, Command(b"\0\xff", SESSION, USER, "user.command", "request-1", "trace-1"))
        self.assertIsNone(deadline_s)

    def test_refused(self) -> None:
        """A refused request reaches no service, and is counted by its reason."""
        self.verified = REVOKED
        self.assertIs(self.execute(request()), REVOKED)
        self.assertEqual(self.upstream.asked, [])
        self.assertEqual(self.counted("revoked"), 1)

    def test_no_route(self) -> None:
        """Without a route UNIMPLEMENTED, after every check; the message type is no label then."""
        self.assertIs(self.execute(request(message_type="canary")), NO_ROUTE)
        self.assertEqual(self.counted("no_route", OTHER), 1)
        self.verified = REVOKED
        self.assertIs(self.execute(request(message_type="canary")), REVOKED)

    def test_deadline(self) -> None:
        """The service gets what verification has left of the caller's deadline; nothing left: no call."""
        self.verifying_s = 0.5
        self.execute(request(), 2.0)
        self.assertEqual(self.upstream.asked[0][1], 1.5)
        self.assertIs(self.execute(request(), 0.5), UPSTREAM_TIMED_OUT)
        self.assertEqual(len(self.upstream.asked), 1)

    def test_service_ending(self) -> None:
        """A route's ending is the command's."""
        self.upstream.outcome = UPSTREAM_TIMED_OUT
        self.assertIs(self.execute(request()), UPSTREAM_TIMED_OUT)
        self.assertEqual(self.counted("deadline"), 1)

    def test_other_codes(self) -> None:
        """A service's own code is signed and returned, and counted as one of all others."""
        self.upstream.outcome = Answered("insufficient_funds", b"")
        reply = self.execute(request())
        assert isinstance(reply, Reply)
        self.assertEqual(reply.result_code, "insufficient_funds")
        self.assertEqual(self.counted("other"), 1)

    def test_unfit_answers(self) -> None:
        """What must not be signed is a failed service: no code, a code that is no word, a payload over the bound."""
        for wrong in (
            Answered("", b""),
            Answered("two words", b""),
            Answered("x" * 129, b""),
            Answered("é", b""),
            Answered("ok", bytes(MAX_PAYLOAD_BYTES + 1)),
        ):
            self.upstream.outcome = wrong
            self.assertIs(self.execute(request()), UPSTREAM_FAILED)

    def test_given_up(self) -> None:
        """A client that goes away cancels the call, and is counted."""
        gone: list[bool] = []
        self.upstream.outcome = Deferred(lambda _: gone.append(True))
        running = self.begin(request())
        failures: list[object] = []
        running.addErrback(failures.append)
        running.cancel()
        self.assertEqual((gone, len(failures)), ([True], 1))
        self.assertEqual(self.counted("unanswered"), 1)

    def test_bug(self) -> None:
        """A route that raises fails the command, counted, and nothing is signed."""

        def broken(message_type: str) -> Upstream:
            raise ZeroDivisionError

        self.upstream.find = broken  # type: ignore[method-assign]
        self.execution._group = _same
        self.failureResultOf(self.begin(request()), ZeroDivisionError)
        self.assertEqual(self.counted("unanswered"), 1)


_same: Callable[[str], str] = str
