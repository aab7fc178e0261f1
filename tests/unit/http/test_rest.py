"""A connection whose sender was told to wait is not read for about a second; nobody else's is."""

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.errors import Refused
from gatewayd.http.message import Response, refusal
from gatewayd.http.site import REST_S, WAKE_S
from tests.fakes.connection import WALL, Leaf, Transport, World, get, post, send, statuses

TOLD_TO_WAIT = Refused("GW-010", {"reason": "overload"}, rest=True)


class RestTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.overloaded = True
        self.webhook = Leaf(refusal=self.refuse)
        self.world = World({b"/webhook/tradingview": self.webhook, b"/healthz": Leaf(methods=(b"GET",))})

    def refuse(self) -> Response:
        assert self.overloaded
        return refusal(TOLD_TO_WAIT, "req_1", WALL)

    def recover(self) -> None:
        self.overloaded = False
        self.webhook.refusal = None

    def pass_by(self, seconds: float) -> None:
        for _ in range(round(seconds / WAKE_S)):
            self.world.clock.advance(WAKE_S)

    def refused(self) -> Transport:
        """A connection that was refused a moment ago."""
        transport = self.world.connect()
        send(transport, post())
        self.assertEqual(statuses(transport), [503])
        self.assertEqual(transport.producerState, "paused")
        return transport

    def test_what_comes_meanwhile_waits(self) -> None:
        """The answer is there at once; the next request is answered when the rest is over, within a second."""
        transport = self.refused()
        self.recover()
        send(transport, post())
        self.pass_by(REST_S - 2 * WAKE_S)
        self.assertEqual(statuses(transport), [503])
        self.pass_by(REST_S + 2 * WAKE_S)
        self.assertEqual(statuses(transport), [503, 202])
        self.assertEqual(transport.producerState, "producing")
        send(transport, post())
        self.assertEqual(statuses(transport), [503, 202, 202])

    def test_what_came_before_waits_too(self) -> None:
        """Requests in one packet behind the refused one are not refused in one go: one a second."""
        transport = self.world.connect()
        send(transport, post() * 3)
        self.assertEqual(statuses(transport), [503])
        self.pass_by(2 * REST_S)
        self.assertEqual(statuses(transport), [503, 503])
        self.recover()
        self.pass_by(1.0)
        self.assertEqual(statuses(transport), [503, 503, 202])

    def test_the_others_go_on(self) -> None:
        """Another connection of the same client is read; so is one that comes after it."""
        self.refused()
        other = self.world.connect()
        send(other, get("/healthz") * 2)
        self.assertEqual(statuses(other), [202, 202])

    def test_many(self) -> None:
        """Those that were refused together are read again one after the other, all within their second."""
        transports = [self.refused() for _ in range(75)]
        self.recover()
        for transport in transports:
            send(transport, post())
        answered = [0]
        for _ in range(round(2 * REST_S / WAKE_S)):
            self.world.clock.advance(WAKE_S)
            answered.append(sum(statuses(transport) == [503, 202] for transport in transports))
        self.assertEqual(answered[-1], 75)
        self.assertLessEqual(max(after - before for before, after in pairwise(answered)), 3)

    def test_a_client_that_leaves(self) -> None:
        """It is gone when it is gone; its rest wakes nobody."""
        self.refused().client_resets()
        transport = self.refused()
        transport.client_closes()
        self.world.advance(2)
        self.assertTrue(transport.lost)
        self.assertEqual(self.world.site.open, 0)

    def test_a_drain(self) -> None:
        """Resting connections do not hold up a stop."""
        transport = self.refused()
        drained = self.world.site.drain()
        self.world.advance(2)
        self.successResultOf(drained)
        self.assertTrue(transport.lost)

    def test_whoever_does_not_read_either(self) -> None:
        """A client that is not read and does not read is read again when it has read."""
        transport = self.world.connect()
        transport.stuck, transport.buffer = True, 10
        send(transport, post() + get("/healthz"))
        self.pass_by(2 * REST_S)
        self.assertEqual(statuses(transport), [503])
        transport.read_all()
        self.assertEqual(statuses(transport), [503, 202])
