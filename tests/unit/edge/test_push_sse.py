"""A stream of server-sent events, without a socket."""

import json

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from gatewayd.push.api import IOutlet
from gatewayd.push.outlet import DROPPED_BYTES
from gatewayd.push.sse import SseStream
from gatewayd.sessions.endings import REVOKED, Ending
from gatewayd.sessions.envelope import read_json
from gatewayd.sessions.values import Envelope
from tests.fakes.pushing import FakeConnection, Pushing
from tests.fakes.subscribing import FakeHub, FakeStream, envelope_members


class SseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = Pushing()
        self.hub = FakeHub()

    def opened(self, headers: bytes = b"") -> tuple[FakeStream, FakeConnection]:
        """An open stream, its head and first event still to be looked at."""
        outlet = SseStream(self.world.connections, "req_1", headers)
        envelope = read_json(json.dumps(envelope_members()))
        assert isinstance(envelope, Envelope)
        stream = self.hub.opened(envelope, outlet)
        assert isinstance(stream, FakeStream)
        outlet.opened(stream)
        connection = FakeConnection(outlet)
        self.world.soon.turn()
        return stream, connection

    def test_interface(self) -> None:
        """It is an outlet, and says which."""
        stream, connection = self.opened()
        self.assertTrue(verifyObject(IOutlet, stream.outlet))
        self.assertEqual(stream.outlet.transport, "sse")
        self.assertEqual(connection.bufferSize, 32768)

    def test_head(self) -> None:
        """Head, a comment, the time to come back and the first event are one write; proxies are told not to wait."""
        _, connection = self.opened(b"Vary: Origin\r\n")
        (written,) = connection.writes
        head, _, body = written.decode().partition("\r\n\r\n")
        line, *fields = head.split("\r\n")
        self.assertEqual(line, "HTTP/1.1 200 OK")
        self.assertEqual(
            sorted(fields),
            [
                "Cache-Control: no-store",
                "Connection: close",
                "Content-Type: text/event-stream",
                "Vary: Origin",
                "X-Accel-Buffering: no",
                "X-Content-Type-Options: nosniff",
                "X-Correlation-ID: req_1",
            ],
        )
        comment, retry, empty, identity, data, *rest = body.split("\n")
        self.assertEqual((comment, retry, empty, identity, rest), (": open", "retry: 2000", "", "id: ea.0-0", ["", ""]))
        self.assertEqual(json.loads(data.removeprefix("data: "))["event_type"], "gateway.server_time")

    def test_events(self) -> None:
        """The events of one turn are one write of the shared frames."""
        _, connection = self.opened()
        connection.take()
        events = [self.hub.event("trade", b"\n\ndata: x", f"{i}-0") for i in range(3)]
        for event in events:
            self.hub.publish(event)
        self.world.soon.turn()
        self.assertEqual(connection.writes, [b"".join(event.sse_frame for event in events)])

    def test_full(self) -> None:
        """A client that does not read stops the hub, and goes on where it was."""
        stream, connection = self.opened()
        connection.producer.pauseProducing()
        connection.take()
        self.hub.publish(self.hub.event("trade", b"x", "1-0"))
        self.hub.publish(self.hub.event("trade", b"x", "2-0"))
        self.world.soon.turn()
        self.assertEqual(connection.take().count(b"id: "), 1)
        self.assertFalse(stream.ready)
        connection.producer.resumeProducing()
        self.world.soon.turn()
        self.assertIn(b"id: 2-0", connection.take())

    def test_close(self) -> None:
        """The end has a reason, and the time to come back where that is known, behind everything sent; then FIN."""
        for wait_ms, retry in ((None, ""), (1500, "retry: 1500\n")):
            stream, connection = self.opened()
            self.hub.publish(self.hub.event("trade", b"x", "1-0"))
            stream.close(Ending("shutdown", 14, 1012, "gateway is shutting down", wait_ms))
            error = {"code": "shutdown", "message": "gateway is shutting down"}
            if wait_ms is not None:
                error["retry_after_ms"] = wait_ms  # type: ignore[assignment]
            last = connection.take().decode().split("\n\n")[-2]
            self.assertEqual(last.partition("data: ")[0], f"{retry}event: close\n")
            self.assertEqual(json.loads(last.partition("data: ")[2]), error)
            self.assertTrue(connection.half_closed)
            stream.outlet.close(REVOKED)
            self.world.soon.turn()
            self.assertEqual(connection.take(), b"")
            connection.lose()
            self.assertEqual(stream.reasons, [])

    def test_close_is_not_taken(self) -> None:
        """When the reason cannot leave the connection is reset soon."""
        stream, connection = self.opened()
        connection.producer.pauseProducing()
        stream.close(REVOKED)
        self.world.advance(3.25)
        self.assertTrue(connection.aborted)
        self.assertEqual(self.world.connections.open, 0)

    def test_gone(self) -> None:
        """FIN is the client's leaving, a reset a loss; a quiet client is left alone, one that talks on is not."""
        for end, reason in ((FakeConnection.lose, "client"), (FakeConnection.reset, "lost")):
            stream, connection = self.opened()
            self.world.advance(120.0)
            connection.protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
            self.assertFalse(connection.gone)
            end(connection)
            self.assertEqual(stream.reasons, [reason])
        stream, connection = self.opened()
        connection.protocol.dataReceived(bytes(DROPPED_BYTES + 1))
        self.assertEqual((connection.aborted, stream.reasons), (True, ["lost"]))
        self.assertEqual(self.world.connections.open, 0)

    def test_stop(self) -> None:
        """A stop leaves it to the hub."""
        stream, connection = self.opened()
        connection.take()
        stopped = self.world.connections.stop(5.0)
        self.world.soon.turn()
        self.assertEqual(connection.take(), b"")
        stream.close(REVOKED)
        connection.lose()
        self.successResultOf(stopped)
