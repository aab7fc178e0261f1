"""/.well-known/gatewayd/keys, and the address gate in front of it."""

import json

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.address_gate import AddressGate
from gatewayd.answers import Answers
from gatewayd.http.message import Request, Response, render
from gatewayd.ingress.sources import make_rules
from gatewayd.published_keys import PATH, PublishedKeys
from gatewayd.times import Monotonic, Wall
from tests.unit.settings_case import HOME, load_from


class PublishedKeysTest(SynchronousTestCase):
    def setUp(self) -> None:
        loaded = load_from({**HOME, "RATE_LIMIT_ADDRESS_RPS": "2"})
        assert loaded.settings is not None
        rules = make_rules(loaded.settings)
        clock = Clock()
        gate = AddressGate(lambda: rules, lambda: Monotonic(clock.seconds()))
        self.document = b'{"keys":[]}'
        self.leaf = PublishedKeys(lambda: self.document, gate, Answers(lambda: Wall(1.7e9)))

    def test_the_document(self) -> None:
        """What stands there now, for everybody, to be kept for some seconds."""
        request = Request(b"GET", PATH, {}, peer="192.0.2.1")
        self.assertEqual(self.leaf.begin(request), 0)
        self.document = b'{"keys":[1]}'
        head, _, body = render(self.leaf.answer(request), keep_alive=True).partition(b"\r\n\r\n")
        self.assertEqual(body, self.document)
        lines = head.split(b"\r\n")
        for line in (
            b"HTTP/1.1 200 OK",
            b"Content-Type: application/json",
            b"Cache-Control: public, max-age=10",
            b"X-Content-Type-Options: nosniff",
            b"Access-Control-Allow-Origin: *",
        ):
            self.assertIn(line, lines)
        self.assertEqual(sum(line.startswith(b"Cache-Control") for line in lines), 1)

    def test_who_may_ask(self) -> None:
        """GET and HEAD; each address as often as its limit says."""
        for method in (b"POST", b"PUT", b"OPTIONS"):
            refused = self.leaf.begin(Request(method, PATH, {}))
            assert isinstance(refused, Response)
            self.assertEqual((refused.status, dict(refused.headers)[b"Allow"]), (405, b"GET, HEAD"))
        for method in (b"GET", b"HEAD"):
            self.assertEqual(self.leaf.begin(Request(method, PATH, {}, peer="192.0.2.1")), 0)
        limited = self.leaf.begin(Request(b"GET", PATH, {}, peer="192.0.2.1"))
        assert isinstance(limited, Response)
        self.assertEqual((limited.status, json.loads(limited.body)["code"]), (429, "GW-004"))
        self.assertEqual(self.leaf.begin(Request(b"GET", PATH, {}, peer="192.0.2.2")), 0)
