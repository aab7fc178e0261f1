"""What the head of a webhook is refused for, in which order, and whose connection rests afterwards."""

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.answers import Answers
from gatewayd.bus.publication import BusState
from gatewayd.config import load
from gatewayd.health import Health, Phase
from gatewayd.http.message import Request, Response
from gatewayd.ingress.addresses import AddressBuckets
from gatewayd.ingress.resource import FLOOD, WebhookResource
from gatewayd.ingress.shedding import INTERVAL_S, STANDING_S, STEP_S, Shedding
from gatewayd.ingress.sources import make_rules
from gatewayd.ingress.turns import Turns
from gatewayd.maintenance import Maintenance
from gatewayd.times import Monotonic, Wall
from tests.clients import SECRET
from tests.fakes.bus import DoubleBus

NOW = Wall(1_700_000_000.0)
LIMIT = 10
CLIENT, PROXY = "192.0.2.7", "127.0.0.1"


class HeadTest(SynchronousTestCase):
    def setUp(self) -> None:
        environ = {
            "API_KEY_HMAC_SECRET": SECRET.decode(),
            "RATE_LIMIT_ADDRESS_RPS": str(LIMIT),
            "TRUSTED_PROXIES": f"{PROXY}/32",
        }
        loaded = load({"HOME": "/nonexistent", **environ}, None, lambda path: b"")
        assert loaded.settings is not None, loaded.problems
        rules = make_rules(loaded.settings)
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.bus = DoubleBus(self.clock)
        self.bus.state = BusState.CONNECTED
        self.shedding = Shedding()
        answers = Answers(lambda: NOW)
        maintenance = Maintenance(lambda: NOW, on=False, until=None, retry_after_s=300.0)
        self.health = Health(maintenance=maintenance, now=self.now, wall=lambda: NOW, version="1", warnings=list)
        self.health.phase = Phase.READY
        self.turns = Turns(self.clock, lambda call: None, self.shedding, self.work, lambda request: Response(503))
        self.resource = WebhookResource(
            rules=lambda: rules,
            health=self.health,
            bus=self.bus,
            buckets=AddressBuckets(),
            answers=answers,
            turns=self.turns,
            clock=self.clock,
        )

    def now(self) -> Monotonic:
        return Monotonic(self.clock.seconds())

    async def work(self, request: Request, source: object) -> Response:
        raise AssertionError("nothing is begun here")

    def overload(self) -> None:
        """Webhooks have been waiting for too long, and do."""
        for _ in range(int(INTERVAL_S / STEP_S) + 2):
            self.clock.advance(STEP_S)
            self.shedding.waited(2 * STANDING_S, self.now())
        self.patch(self.turns, "_oldest_s", lambda now: 2 * STANDING_S)

    def begin(self, *, peer: str = CLIENT, forwarded: str = "", path: bytes = b"/webhook/tradingview") -> Any:
        headers = {b"host": b"gw", b"content-type": b"application/json", b"content-length": b"2"}
        if forwarded:
            headers[b"x-forwarded-for"] = forwarded.encode()
        return self.resource.begin(Request(b"POST", path, headers, peer=peer, received_at=self.now()))

    def test_an_overload(self) -> None:
        """503 GW-010, counted for the source; behind what says that nothing can be taken at all."""
        self.assertIsInstance(self.begin(), int)
        self.overload()
        answer = self.begin()
        self.assertEqual((answer.status, answer.code, answer.source), (503, "GW-010", "tradingview"))
        self.assertIn((b"Retry-After", b"1"), answer.headers)
        self.assertIn(b'"details":{"reason":"overload"}', answer.body)
        self.assertEqual(self.begin(path=b"/webhook/nobody").status, 404)
        self.bus.state = BusState.DISCONNECTED
        self.assertEqual(self.begin().code, "GW-005")

    def test_an_overload_takes_no_token(self) -> None:
        """Whoever is refused for it has its whole limit afterwards."""
        self.overload()
        for _ in range(3 * LIMIT):
            self.assertEqual(self.begin().code, "GW-010")
        self.patch(self.turns, "_oldest_s", lambda now: 0.0)
        self.assertEqual([type(self.begin()) for _ in range(LIMIT)], [int] * LIMIT)

    def test_whose_connection_rests(self) -> None:
        """That of a client that is refused for overload, and never one that a trusted proxy shares out."""
        self.overload()
        self.assertTrue(self.begin().rest)
        self.assertFalse(self.begin(peer=PROXY, forwarded=CLIENT).rest)
        self.assertFalse(self.begin(peer="").rest)
        self.assertTrue(self.begin(peer=CLIENT, forwarded="203.0.113.1").rest)

    def test_a_flood(self) -> None:
        """An address a little over its limit is refused; only one that sends a multiple of it has to rest."""
        answers = [self.begin() for _ in range(FLOOD * LIMIT + 5)]
        self.assertEqual([isinstance(answer, int) for answer in answers], [True] * LIMIT + [False] * (LIMIT + 5))
        refused = answers[LIMIT:]
        self.assertEqual({answer.code for answer in refused}, {"GW-004"})
        self.assertEqual([answer.rest for answer in refused], [False] * LIMIT + [True] * 5)
        self.assertFalse(self.begin(peer=PROXY, forwarded=CLIENT).rest)

    def test_what_is_said_while_the_bus_is_down(self) -> None:
        """The log learns when it last worked, as it stands now."""
        self.bus.state = BusState.DISCONNECTED
        self.bus.last_success = None
        self.assertEqual(self.begin().logged["last_success"], None)
        self.bus.last_success = 1_700_000_000.0
        for _ in range(2):
            self.assertEqual(self.begin().logged["last_success"], "2023-11-14T22:13:20.000Z")
        self.bus.last_success = 1_700_000_001.0
        self.assertEqual(self.begin().logged["last_success"], "2023-11-14T22:13:21.000Z")
