"""Who may open a WebSocket, and what the answer looks like."""

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.http.framing import Framing
from gatewayd.http.message import Request
from gatewayd.http.rules import Limits
from gatewayd.push.handshake import handshake_head, refuse_handshake, refuse_origin
from tests.websockets import ACCEPT, upgrade


def read(data: bytes) -> Request:
    """The request as the channel has it."""
    framing = Framing(Limits())
    framing.push(data)
    request = framing.read_head()
    assert isinstance(request, Request), request
    return request


class HandshakeTests(SynchronousTestCase):
    def test_example(self) -> None:
        """The RFC's example is accepted with the RFC's answer, the subprotocol and nothing else."""
        request = read(upgrade())
        self.assertIsNone(refuse_handshake(request))
        head = handshake_head(request, "req_1").decode()
        self.assertEqual(
            head.split("\r\n"),
            [
                "HTTP/1.1 101 Switching Protocols",
                "Upgrade: websocket",
                "Connection: Upgrade",
                f"Sec-WebSocket-Accept: {ACCEPT}",
                "X-Correlation-ID: req_1",
                "Sec-WebSocket-Protocol: gatewayd.edge.v1",
                "",
                "",
            ],
        )

    def test_spellings(self) -> None:
        """Tokens are compared as the RFCs say: case, lists and repeated lines do not matter."""
        for changed in (
            {"upgrade": "WebSocket"},
            {"connection": "keep-alive, UPGRADE"},
            {"sec_websocket_protocol": "chat, gatewayd.edge.v1"},
            {"sec_websocket_protocol": None},
            {"sec_websocket_extensions": "permessage-deflate"},
        ):
            request = read(upgrade(**changed))
            self.assertIsNone(refuse_handshake(request), changed)
            self.assertNotIn(b"Extensions", handshake_head(request, "req_1"))
        self.assertNotIn(b"Protocol:", handshake_head(read(upgrade(sec_websocket_protocol=None)), "req_1"))

    def test_refusals(self) -> None:
        """Whatever RFC 6455 4.2.1 asks for and is not there is refused, with the status that says what to change."""
        for changed, status, code in (
            ({"upgrade": None, "connection": None}, 426, "upgrade_required"),
            ({"upgrade": "h2c"}, 426, "upgrade_required"),
            ({"connection": "keep-alive"}, 426, "upgrade_required"),
            ({"sec_websocket_version": "8"}, 426, "version"),
            ({"sec_websocket_version": None}, 426, "version"),
            ({"sec_websocket_version": "13\r\nSec-WebSocket-Version: 8"}, 426, "version"),
            ({"sec_websocket_key": None}, 400, "malformed"),
            ({"sec_websocket_key": "c2hvcnQ="}, 400, "malformed"),
            ({"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZR=="}, 400, "malformed"),
            ({"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: x"}, 400, "malformed"),
            ({"sec_websocket_protocol": "chat"}, 400, "malformed"),
        ):
            problem = refuse_handshake(read(upgrade(**changed)))
            assert problem is not None, changed
            self.assertEqual((problem.status, problem.code), (status, code), changed)
        version = refuse_handshake(read(upgrade(sec_websocket_version="7")))
        assert version is not None
        self.assertIn((b"Sec-WebSocket-Version", b"13"), version.headers)

    def test_http_1_0(self) -> None:
        """HTTP/1.0 cannot be upgraded."""
        problem = refuse_handshake(read(upgrade().replace(b"HTTP/1.1", b"HTTP/1.0")))
        assert problem is not None
        self.assertEqual(problem.status, 426)

    def test_origins(self) -> None:
        """A page is let in only from an origin that is listed, byte by byte; a program sends none."""
        allowed = frozenset({b"https://app.example"})
        for origin, refused in (
            (None, False),
            ("https://app.example", False),
            ("https://app.example:443", True),
            ("https://app.example.evil", True),
            ("http://app.example", True),
            ("null", True),
            ("", True),
            ("https://app.example\r\nOrigin: https://app.example", True),
        ):
            found = refuse_origin(read(upgrade(origin=origin)), allowed)
            self.assertEqual(found is not None, refused, origin)
            self.assertIsNotNone(refuse_origin(read(upgrade(origin=origin or "x")), frozenset()))
