"""
The opening of a WebSocket, as RFC 6455 4.2 has it, and who may open a stream from a web page. Pure.

Decides whether a request may become a WebSocket, which pages are let in, and the head of the answer. Never reads a
frame. The channel has seen to the rest: `Upgrade` is only there on an HTTP/1.1 GET without a body whose Connection
names it.
"""

import re
from base64 import b64encode
from hashlib import sha1
from typing import Final

from gatewayd.http.message import Request
from gatewayd.push.refusals import Problem

SUBPROTOCOL: Final = b"gatewayd.edge.v1"

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# 16 bytes in base64: the last character but the padding carries two bits.
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")

# RFC 9110 15.5.22 and 7.8: a 426 names what to upgrade to, and Connection names Upgrade.
_TO: Final = ((b"Upgrade", b"websocket"), (b"Connection", b"upgrade"))
UPGRADE_REQUIRED: Final = Problem(426, "upgrade_required", "GET opens a WebSocket here", _TO)
_VERSION: Final = Problem(
    426, "version", "only WebSocket version 13 is spoken", (*_TO, (b"Sec-WebSocket-Version", b"13"))
)
_BAD_KEY: Final = Problem(400, "malformed", "Sec-WebSocket-Key is missing or malformed")
_BAD_SUBPROTOCOL: Final = Problem(400, "malformed", "the subprotocol spoken here is gatewayd.edge.v1")
FORBIDDEN_ORIGIN: Final = Problem(403, "origin", "this origin may not open streams")


def refuse_handshake(request: Request) -> Problem | None:
    """Why this GET cannot become a WebSocket; None when it can."""
    if b"websocket" not in _tokens(request, b"upgrade"):
        return UPGRADE_REQUIRED
    if request.values(b"sec-websocket-version") != [b"13"]:
        return _VERSION
    keys = request.values(b"sec-websocket-key")
    if len(keys) != 1 or _KEY.fullmatch(keys[0]) is None:
        return _BAD_KEY
    offered = _tokens(request, b"sec-websocket-protocol")
    if offered and SUBPROTOCOL not in offered:
        # A client that named others would fail the connection itself (RFC 6455 4.1), and not know why.
        return _BAD_SUBPROTOCOL
    return None


def refuse_origin(request: Request, allowed: frozenset[bytes]) -> Problem | None:
    """
    Why this page may open nothing; None when it may, or when no page asks: programs send no Origin.

    `allowed` holds origins as browsers write them, for they are compared byte by byte.
    """
    origins = request.values(b"origin")
    if not origins or (len(origins) == 1 and origins[0] in allowed):
        return None
    return FORBIDDEN_ORIGIN


def handshake_head(request: Request, corr_id: str) -> bytes:
    """The 101 that answers it. No extension is ever agreed to, so that nothing is compressed."""
    key = request.headers[b"sec-websocket-key"]
    accept = b64encode(sha1(key + _GUID, usedforsecurity=False).digest())
    lines = [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        b"Sec-WebSocket-Accept: %b\r\nX-Correlation-ID: %b\r\n" % (accept, corr_id.encode("ascii")),
    ]
    if SUBPROTOCOL in _tokens(request, b"sec-websocket-protocol"):
        lines.append(b"Sec-WebSocket-Protocol: %b\r\n" % SUBPROTOCOL)
    return b"".join((*lines, b"\r\n"))


def _tokens(request: Request, name: bytes) -> list[bytes]:
    """The members of a comma-separated header; those of Upgrade in lower case."""
    values = b",".join(request.values(name))
    if name == b"upgrade":
        values = values.lower()
    return [token.strip() for token in values.split(b",") if token.strip()]
