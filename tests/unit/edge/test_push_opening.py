"""The leaf at /edge/v1/events: who is let in, and what the others are told."""

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from gatewayd.http.exchange import HandOver
from gatewayd.http.message import Request, Response
from gatewayd.interfaces import ILeaf
from gatewayd.push.opening import MAX_ENVELOPE_BYTES, Opening
from gatewayd.push.websocket import Services
from gatewayd.sessions.endings import AUTHENTICATION_FAILED, LIMITED, REPLAYED, REVOKED, SHUTTING_DOWN, Ending
from gatewayd.sessions.envelope import read_json, write_json
from tests.fakes.pushing import FakeConnection, Pushing
from tests.fakes.subscribing import FakeHub, envelope_members
from tests.unit.edge.test_push_handshake import read
from tests.websockets import upgrade

JSON = "application/json"
PAGE = b"https://app.example"


def post(**headers: str | None) -> bytes:
    """The head of a POST."""
    lines = {"host": "a", "content_type": JSON, "content_length": "10", **headers}
    text = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"POST /edge/v1/events HTTP/1.1\r\n{text}\r\n".encode()


class OpeningTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = Pushing()
        self.hub = FakeHub()
        self.refusal: Ending | None = None
        self.leaf = Opening(
            services=Services(self.hub.subscribe, self.hub.execute, read_json, write_json),
            connections=self.world.connections,
            origins=lambda: frozenset({PAGE}),
            gate=lambda request: self.refusal,
        )

    def begin(self, data: bytes) -> tuple[Request, Any]:
        """What the head alone is answered."""
        request = read(data)
        return request, self.leaf.begin(request)

    def refused(self, data: bytes) -> tuple[int, str]:
        """The status and the code of the refusal at the head."""
        _, answer = self.begin(data)
        return self.judged(answer)

    def judged(self, answer: object) -> tuple[int, str]:
        assert isinstance(answer, Response), answer
        self.assertTrue(answer.corr_id)
        return answer.status, json.loads(answer.body)["error"]["code"]

    def subscribe(self, headers: bytes | None = None, **members: object) -> Any:
        """What a whole POST is answered; a Deferred that has fired becomes its result."""
        request, bound = self.begin(headers or post())
        self.assertEqual(bound, MAX_ENVELOPE_BYTES)
        request.body = json.dumps(envelope_members(**members)).encode()  # type: ignore[arg-type]
        answer = self.leaf.answer(request)
        return self.successResultOf(answer) if isinstance(answer, Deferred) and answer.called else answer

    def test_interface(self) -> None:
        """It is a leaf."""
        self.assertTrue(verifyObject(ILeaf, self.leaf))

    def test_websocket(self) -> None:
        """A good handshake has no body and becomes a WebSocket."""
        request, bound = self.begin(upgrade(origin=PAGE.decode()))
        self.assertEqual(bound, 0)
        answer = self.leaf.answer(request)
        assert isinstance(answer, HandOver)
        self.assertEqual(answer.status, 101)
        connection = FakeConnection(answer.protocol)
        self.world.soon.turn()
        self.assertIn(b" 101 ", connection.sent)
        self.assertIn(answer.corr_id.encode(), connection.sent)

    def test_sse(self) -> None:
        """A good envelope becomes a stream that begins when it has the connection."""
        answer = self.subscribe()
        assert isinstance(answer, HandOver)
        self.assertEqual(answer.status, 200)
        connection = FakeConnection(answer.protocol)
        self.world.soon.turn()
        self.assertIn(b"gateway.server_time", connection.sent)
        self.assertIn(answer.corr_id.encode(), connection.sent)

    def test_endings(self) -> None:
        """A refused envelope is an HTTP answer, never a stream."""
        for ending, status in ((AUTHENTICATION_FAILED, 401), (REVOKED, 403), (REPLAYED, 409), (LIMITED, 429)):
            self.hub.endings["session-1"] = ending
            answer = self.subscribe()
            self.assertNotIsInstance(answer, HandOver)
            self.assertEqual(self.judged(answer), (status, ending.reason))
        self.assertEqual(self.judged(self.subscribe(request_id="")), (400, "malformed"))

    def test_client_leaves(self) -> None:
        """The channel cancels the attempt when the client goes: it is given up."""
        self.hub.holds = True
        answer = self.subscribe()
        answer.addErrback(lambda failure: None)
        answer.cancel()
        self.assertEqual(self.hub.cancelled, 1)

    def test_heads(self) -> None:
        """What the head alone can say is said before a byte of the body is read, in one shape."""
        for data, expected in (
            (b"PUT /edge/v1/events HTTP/1.1\r\nHost: a\r\n\r\n", (405, "method_not_allowed")),
            (b"HEAD /edge/v1/events HTTP/1.1\r\nHost: a\r\n\r\n", (405, "method_not_allowed")),
            (b"GET /edge/v1/events HTTP/1.1\r\nHost: a\r\n\r\n", (426, "upgrade_required")),
            (upgrade(sec_websocket_version="8"), (426, "version")),
            (upgrade(origin="https://evil.example"), (403, "origin")),
            (post(origin="https://evil.example"), (403, "origin")),
            (post(content_type=None), (415, "media_type")),
            (post(content_type="text/plain"), (415, "media_type")),
            (post(content_encoding="gzip"), (415, "media_type")),
            (post(content_length="65537"), (413, "too_large")),
            (post(content_length="99999999999"), (413, "too_large")),
        ):
            self.assertEqual(self.refused(data), expected, data)
        self.assertEqual(self.begin(post(content_length="65536"))[1], MAX_ENVELOPE_BYTES)

    def test_gate(self) -> None:
        """Whoever is kept out by the gate, or comes when the gateway stops, is told when to come back."""
        self.refusal = Ending("limit", 8, 1008, "too many", 2500)
        for data in (upgrade(), post()):
            _, answer = self.begin(data)
            self.assertEqual((answer.status, dict(answer.headers)[b"Retry-After"]), (429, b"3"))
        self.refusal = None
        self.world.connections.stop(1.0)
        for data in (upgrade(), post()):
            self.assertEqual(self.refused(data), (503, SHUTTING_DOWN.reason))

    def test_pages(self) -> None:
        """A listed page may read answers, good and bad, and ask beforehand; another one is told nothing."""
        origin = PAGE.decode()
        _, refused = self.begin(post(origin=origin, content_type="text/plain"))
        self.assertIn((b"Access-Control-Allow-Origin", PAGE), refused.headers)
        answer = self.subscribe(post(origin=origin))
        connection = FakeConnection(answer.protocol)
        self.world.soon.turn()
        self.assertIn(b"\r\nAccess-Control-Allow-Origin: https://app.example\r\n", connection.sent)
        self.assertIn(b"\r\nVary: Origin\r\n", connection.sent)
        _, other = self.begin(post(origin="https://evil.example"))
        self.assertEqual(other.headers, ((b"Vary", b"Origin"),))

    def test_preflight(self) -> None:
        """The question that browsers ask first is answered for a listed page only."""
        asked = b"OPTIONS /edge/v1/events HTTP/1.1\r\nHost: a\r\nOrigin: %b\r\n\r\n"
        request, bound = self.begin(asked % PAGE)
        self.assertEqual(bound, 0)
        answer = self.leaf.answer(request)
        assert isinstance(answer, Response)
        headers = dict(answer.headers)
        self.assertEqual(answer.status, 200)
        self.assertEqual(headers[b"Access-Control-Allow-Origin"], PAGE)
        self.assertEqual(headers[b"Access-Control-Allow-Methods"], b"POST")
        self.assertEqual(headers[b"Access-Control-Allow-Headers"], b"content-type")
        self.assertEqual(self.refused(asked % b"https://evil.example"), (403, "origin"))
