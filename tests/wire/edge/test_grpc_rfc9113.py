"""
RFC 9113 and 7541 against the gRPC server: what a peer may do and what it must be told, case by case, in the order of
the RFC. Each case sends bytes on a connection that has begun and names what must come.
"""

from collections.abc import Callable
from dataclasses import dataclass
from socket import socket

import pytest
import pytest_twisted

from tests.h2peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    GRPC,
    HEADERS,
    PING,
    PRIORITIZED,
    PRIORITY,
    PROMISE,
    RESET,
    SETTINGS,
    UPDATE,
    Frame,
    Peer,
    block,
    frame,
    head,
    message,
    settings,
    update,
)
from tests.wire.edge.grpc_serving import request, serving

NO_ERROR, PROTOCOL, _, FLOW, _, CLOSED, SIZE, REFUSED, _, COMPRESSION = range(10)

COMMAND = message(request().SerializeToString())
NEVER = message(request("never").SerializeToString())
BLOCK = block(GRPC)


@dataclass(frozen=True)
class Case:
    """What is sent, and what must come: see the functions below."""

    name: str
    sent: bytes
    wanted: Callable[[Peer], str]


def answered(peer: Peer) -> str:
    """The call on stream 1 is answered with status 0."""
    return status("0")(peer)


def status(code: str) -> Callable[[Peer], str]:
    """The call on stream 1 ends with this gRPC status."""

    def judge(peer: Peer) -> str:
        seen: list[Frame] = []
        while (one := peer.read()) is not None:
            seen.append(one)
            if one.kind == HEADERS and one.flags & END_STREAM:
                got = peer.headers_of(seen).get(1, {})
                return "" if got.get("grpc-status") == code else f"got {got}"
        return f"the connection was closed after {seen}"

    return judge


def http(code: str) -> Callable[[Peer], str]:
    """The request on stream 1 is no gRPC's and gets this HTTP status."""

    def judge(peer: Peer) -> str:
        seen = peer.read_to_end(HEADERS)
        got = peer.headers_of(seen).get(1, {})
        return "" if got.get(":status") == code else f"got {got} of {seen}"

    return judge


def alive(peer: Peer) -> str:
    """The connection goes on."""
    return "" if peer.is_alive() else "a PING was not answered"


def connection_error(*codes: int) -> Callable[[Peer], str]:
    """GOAWAY with one of these codes, then the end of the connection."""

    def judge(peer: Peer) -> str:
        seen = peer.read_to_end()
        got = [one.code for one in seen if one.kind == GOAWAY]
        return "" if got and got[-1] in codes else f"GOAWAY {got} among {seen}"

    return judge


def stream_error(*codes: int) -> Callable[[Peer], str]:
    """RST_STREAM with one of these codes, or a connection error, which a stream error may be taken for (5.4.2)."""

    def judge(peer: Peer) -> str:
        seen = peer.read_to_end(RESET, GOAWAY)
        got = [one.code for one in seen if one.kind in (RESET, GOAWAY)]
        return "" if got and got[-1] in codes else f"{got} among {seen}"

    return judge


def ended_by(code: int) -> Callable[[Peer], str]:
    """The connection ends, with GOAWAY of this code or with nothing."""

    def judge(peer: Peer) -> str:
        got = [one.code for one in peer.read_to_end() if one.kind == GOAWAY]
        return "" if got in ([], [code]) else f"GOAWAY {got}"

    return judge


def call(stream: int = 1, body: bytes = COMMAND) -> bytes:
    """A whole request."""
    return head(stream) + frame(DATA, END_STREAM, stream, body)


def raw(*fields: bytes, stream: int = 1) -> bytes:
    """A request whose header block has these bytes behind a good one."""
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, BLOCK + b"".join(fields))


WAITING = head() + frame(DATA, END_STREAM, 1, NEVER)
"""Stream 1 is half-closed (remote), and stays so."""

RESET_1 = head() + frame(RESET, 0, 1, bytes(3) + b"\x08")
PRIORITY_OF = b"\0\0\0\0\x0f"
OVERLONG = 16385

CASES = [
    # 3.4: the preface
    Case("3.4 a preface without settings waits", b"", alive),
    # 4.1: frames
    Case("4.1 unknown frame types are ignored", frame(0x16, 0, 0, b"12345678"), alive),
    Case("4.1 unknown flags are ignored", frame(PING, 0x16, 0, b"12345678"), alive),
    Case("4.1 the reserved bit is ignored", frame(PING, 0, 1 << 31, b"12345678"), alive),
    Case("4.2 a DATA frame of 2^14 bytes", head() + frame(DATA, 0, 1, message(bytes(20_000))[:16384]), alive),
    Case("4.2 a longer one", head() + frame(DATA, 0, 1, bytes(OVERLONG)), stream_error(SIZE)),
    Case("4.2 a longer HEADERS", frame(HEADERS, END_HEADERS, 1, BLOCK + bytes(OVERLONG)), connection_error(SIZE)),
    Case("4.2 a length of 16 MiB is not waited for", b"\xff\xff\xff\0\0\0\0\0\1", connection_error(SIZE)),
    # 4.3, and RFC 7541: header blocks
    Case("4.3 a block that is none", frame(HEADERS, END_HEADERS, 1, b"\x40"), connection_error(COMPRESSION, PROTOCOL)),
    Case(
        "4.3 PRIORITY in a block", frame(HEADERS, 0, 1, BLOCK) + frame(PRIORITY, 0, 1, PRIORITY_OF), connection_error(1)
    ),
    Case("4.3 another stream's HEADERS in a block", frame(HEADERS, 0, 1, BLOCK) + head(3), connection_error(PROTOCOL)),
    Case("7541 2.3.3 an index beyond the tables", raw(b"\xff\x50"), connection_error(COMPRESSION, PROTOCOL)),
    Case("7541 4.2 a size update at the end", raw(b"\x20"), connection_error(COMPRESSION, PROTOCOL)),
    Case("7541 4.2 a size update in front", frame(HEADERS, 5, 1, b"\x20" + BLOCK), status("3")),
    Case("7541 5.2 Huffman padding of 8 bits", raw(b"\x00\x01x\x82\xff\xff"), connection_error(COMPRESSION, PROTOCOL)),
    Case("7541 5.2 Huffman padding with zeros", raw(b"\x00\x01x\x81\x18"), connection_error(COMPRESSION, PROTOCOL)),
    Case(
        "7541 5.2 Huffman end of string", raw(b"\x00\x01x\x84\xff\xff\xff\xff"), connection_error(COMPRESSION, PROTOCOL)
    ),
    Case("7541 6.1 index 0", raw(b"\x80"), connection_error(COMPRESSION, PROTOCOL)),
    Case("7541 6.3 a table above the setting", raw(b"\x3f\xe2\x1f"), connection_error(COMPRESSION, PROTOCOL)),
    Case("7541 6.2.1 literal, indexed, new name", raw(b"\x40\x01x\x01y"), status("3")),
    Case("7541 6.2.1 literal, indexed, known name", raw(b"\x7a\x01y"), status("3")),
    Case("7541 6.2.2 literal, not indexed", raw(b"\x00\x01x\x01y"), status("3")),
    Case("7541 6.2.3 literal, never indexed", raw(b"\x10\x01x\x01y"), status("3")),
    Case("7541 6.2 an endless integer", raw(b"\xff" + b"\xff" * 200), connection_error(COMPRESSION, PROTOCOL)),
    # 5.1: states of a stream
    Case("5.1 DATA on an idle stream", frame(DATA, END_STREAM, 1, b"x"), connection_error(PROTOCOL)),
    Case("5.1 RST_STREAM on an idle stream", frame(RESET, 0, 1, b"\0\0\0\x08"), connection_error(PROTOCOL)),
    Case("5.1 WINDOW_UPDATE on an idle stream", update(1, 100), connection_error(PROTOCOL)),
    Case("5.1 CONTINUATION on an idle stream", frame(CONTINUATION, END_HEADERS, 1, BLOCK), connection_error(PROTOCOL)),
    Case("5.1 PRIORITY on an idle stream", frame(PRIORITY, 0, 1, PRIORITY_OF), alive),
    Case("5.1 DATA on a half-closed stream", WAITING + frame(DATA, END_STREAM, 1, b"x"), stream_error(CLOSED)),
    Case("5.1 HEADERS on a half-closed stream", WAITING + head(1, ended=True), stream_error(CLOSED)),
    Case(
        "5.1 CONTINUATION on a half-closed stream",
        WAITING + frame(CONTINUATION, END_HEADERS, 1, BLOCK),
        stream_error(CLOSED, PROTOCOL),
    ),
    Case("5.1 WINDOW_UPDATE on a half-closed stream", WAITING + update(1, 100), alive),
    Case("5.1 PRIORITY on a half-closed stream", WAITING + frame(PRIORITY, 0, 1, PRIORITY_OF), alive),
    Case("5.1 DATA after a reset", RESET_1 + frame(DATA, END_STREAM, 1, b"x"), stream_error(CLOSED)),
    Case("5.1 HEADERS after a reset", RESET_1 + head(1, ended=True), stream_error(CLOSED)),
    Case(
        "5.1 CONTINUATION after a reset",
        RESET_1 + frame(CONTINUATION, END_HEADERS, 1, BLOCK),
        stream_error(CLOSED, PROTOCOL),
    ),
    Case("5.1 WINDOW_UPDATE after a reset", RESET_1 + update(1, 100), alive),
    Case("5.1 a second reset", RESET_1 + frame(RESET, 0, 1, b"\0\0\0\x08"), alive),
    Case("5.1 DATA on a closed stream", call() + frame(DATA, END_STREAM, 1, b"x"), stream_error(CLOSED)),
    Case("5.1 HEADERS on a closed stream", call() + head(1, ended=True), stream_error(CLOSED)),
    Case(
        "5.1 CONTINUATION on a closed stream",
        call() + frame(CONTINUATION, END_HEADERS, 1, BLOCK),
        stream_error(CLOSED, PROTOCOL),
    ),
    Case("5.1.1 an even stream", head(2, ended=True), connection_error(PROTOCOL)),
    Case("5.1.1 a lower stream", call(5) + call(3), connection_error(PROTOCOL)),
    Case("5.1.2 a stream too many", b"".join(map(head, range(1, 203, 2))), stream_error(REFUSED)),
    # 5.3: priorities, which are deprecated and ignored
    Case(
        "5.3.1 HEADERS that depend on themselves",
        frame(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED, 1, b"\0\0\0\x01\xff" + BLOCK),
        stream_error(PROTOCOL),
    ),
    Case("5.3.1 PRIORITY on itself", frame(PRIORITY, 0, 1, b"\0\0\0\x01\xff"), stream_error(PROTOCOL)),
    Case("5.3 HEADERS with a priority", frame(HEADERS, 0x25, 1, PRIORITY_OF + BLOCK), status("3")),
    # 5.5: extensions
    Case("5.5 an unknown frame in a block", frame(HEADERS, 0, 1, BLOCK) + frame(0x16), connection_error(PROTOCOL)),
    # 6.1: DATA
    Case("6.1 DATA on stream 0", frame(DATA, 0, 0, b"x"), connection_error(PROTOCOL)),
    Case("6.1 padding longer than the frame", head() + frame(DATA, 9, 1, b"\xffxx"), connection_error(PROTOCOL)),
    Case("6.1 padding", head() + frame(DATA, 9, 1, b"\x05" + COMMAND + bytes(5)), answered),
    Case("6.1 pieces", head() + frame(DATA, 0, 1, COMMAND[:3]) + frame(DATA, 1, 1, COMMAND[3:]), answered),
    Case("6.1 an empty end", head() + frame(DATA, 0, 1, COMMAND) + frame(DATA, END_STREAM, 1), answered),
    # 6.2: HEADERS
    Case("6.2 HEADERS on stream 0", head(0), connection_error(PROTOCOL)),
    Case("6.2 padding longer than the frame", frame(HEADERS, 0xD, 1, b"\xff" + BLOCK), connection_error(PROTOCOL)),
    Case("6.2 padding", frame(HEADERS, 0xD, 1, b"\x05" + BLOCK + bytes(5)), status("3")),
    # 6.3: PRIORITY
    Case("6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, PRIORITY_OF), connection_error(PROTOCOL)),
    Case("6.3 PRIORITY of 4 bytes", head() + frame(PRIORITY, 0, 1, bytes(4)), stream_error(SIZE)),
    # 6.4: RST_STREAM
    Case("6.4 RST_STREAM on stream 0", frame(RESET, 0, 0, bytes(4)), connection_error(PROTOCOL)),
    Case("6.4 RST_STREAM of 3 bytes", head() + frame(RESET, 0, 1, bytes(3)), connection_error(SIZE)),
    Case("6.4 RST_STREAM", RESET_1, alive),
    # 6.5: SETTINGS
    Case("6.5 an ACK with a payload", frame(SETTINGS, ACK, 0, bytes(6)), connection_error(SIZE)),
    Case("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, bytes(6)), connection_error(PROTOCOL)),
    Case("6.5 SETTINGS of 3 bytes", frame(SETTINGS, 0, 0, bytes(3)), connection_error(SIZE)),
    Case("6.5.2 ENABLE_PUSH 2", settings((2, 2)), connection_error(PROTOCOL)),
    Case("6.5.2 INITIAL_WINDOW_SIZE 2^31", settings((4, 1 << 31)), connection_error(FLOW)),
    Case("6.5.2 MAX_FRAME_SIZE 2^14 - 1", settings((5, 16383)), connection_error(PROTOCOL)),
    Case("6.5.2 MAX_FRAME_SIZE 2^24", settings((5, 1 << 24)), connection_error(PROTOCOL)),
    Case("6.5.2 an unknown setting", settings((0xFF, 1)), alive),
    Case("6.5.2 as many settings as there are", b"".join(settings((n, 1)) for n in range(100, 140)), alive),
    # 6.6: PUSH_PROMISE
    Case("6.6 PUSH_PROMISE", head() + frame(PROMISE, 4, 1, b"\0\0\0\x02" + BLOCK), connection_error(PROTOCOL)),
    # 6.7: PING
    Case("6.7 PING on a stream", frame(PING, 0, 1, bytes(8)), connection_error(PROTOCOL)),
    Case("6.7 PING of 6 bytes", frame(PING, 0, 0, bytes(6)), connection_error(SIZE)),
    Case("6.7 an ACK that answers nothing", frame(PING, ACK, 0, bytes(8)), alive),
    # 6.8: GOAWAY
    Case("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, bytes(8)), connection_error(PROTOCOL)),
    Case("6.8 GOAWAY of 4 bytes", frame(GOAWAY, 0, 0, bytes(4)), connection_error(SIZE)),
    Case("6.8 GOAWAY with nothing open", frame(GOAWAY, 0, 0, bytes(8)), ended_by(NO_ERROR)),
    Case("6.8 a call goes on behind GOAWAY", head() + frame(GOAWAY, 0, 0, bytes(8)) + call(1)[len(head()) :], answered),
    Case(
        "6.8 an unknown error code",
        head() + frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\xff") + call(1)[len(head()) :],
        answered,
    ),
    # 6.9: WINDOW_UPDATE
    Case("6.9 an update by 0", update(0, 0), connection_error(PROTOCOL)),
    Case("6.9 a stream's update by 0", WAITING + update(1, 0), stream_error(PROTOCOL)),
    Case("6.9 WINDOW_UPDATE of 3 bytes", frame(UPDATE, 0, 0, bytes(3)), connection_error(SIZE)),
    Case("6.9.1 a window above 2^31 - 1", update(0, (1 << 31) - 1), connection_error(FLOW)),
    Case("6.9.1 a stream's window above it", WAITING + update(1, (1 << 31) - 1), stream_error(FLOW)),
    Case(
        "6.9.2 all windows above it", WAITING + update(1, 1000) + settings((4, (1 << 31) - 1)), connection_error(FLOW)
    ),
    # 6.10: CONTINUATION
    Case(
        "6.10 a block in pieces",
        frame(HEADERS, END_STREAM, 1, BLOCK[:9])
        + b"".join(frame(CONTINUATION, 0, 1, BLOCK[n : n + 9]) for n in range(9, len(BLOCK), 9))
        + frame(CONTINUATION, END_HEADERS, 1),
        status("3"),
    ),
    Case("6.10 on another stream", frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 4, 3), connection_error(PROTOCOL)),
    Case("6.10 on stream 0", frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 4, 0), connection_error(PROTOCOL)),
    Case("6.10 behind a whole block", head() + frame(CONTINUATION, 4, 1), connection_error(PROTOCOL)),
    Case("6.10 DATA in a block", frame(HEADERS, 0, 1, BLOCK) + frame(DATA, 0, 1, b"x"), connection_error(PROTOCOL)),
    # 7: error codes
    Case("7 RST_STREAM with an unknown code", head() + frame(RESET, 0, 1, b"\0\0\0\xff"), alive),
    # 8: HTTP in HTTP/2
    Case("8.1 a second head", head() + head(), stream_error(PROTOCOL)),
    Case("8.1 trailers", head() + frame(DATA, 0, 1, COMMAND) + frame(HEADERS, 5, 1, block((("x-t", "1"),))), answered),
    Case(
        "8.1 a pseudo-header in trailers",
        head() + frame(HEADERS, 5, 1, block(((":path", "/"),))),
        stream_error(PROTOCOL),
    ),
    Case("8.2.1 an upper-case name", raw(b"\x00\x03X-A\x01y"), stream_error(PROTOCOL)),
    Case("8.2.1 an empty name", raw(b"\x00\x00\x01y"), stream_error(PROTOCOL)),
    Case("8.2.1 CR LF in a value", raw(b"\x00\x01x\x04a\r\nb"), stream_error(PROTOCOL)),
    Case("8.2.1 NUL in a value", raw(b"\x00\x01x\x03a\x00b"), stream_error(PROTOCOL)),
    Case("8.2.1 a blank in front of a value", raw(b"\x00\x01x\x02 b"), stream_error(PROTOCOL)),
    Case("8.2.1 a colon in a name", raw(b"\x00\x03a:b\x01y"), stream_error(PROTOCOL)),
    Case("8.2.2 connection", head(1, ("connection", "keep-alive"), ended=True), stream_error(PROTOCOL)),
    Case("8.2.2 transfer-encoding", head(1, ("transfer-encoding", "chunked"), ended=True), stream_error(PROTOCOL)),
    Case("8.2.2 te: gzip", head(1, te="gzip", ended=True), stream_error(PROTOCOL)),
    Case("8.3 an unknown pseudo-header", head(1, (":test", "1"), ended=True), stream_error(PROTOCOL)),
    Case("8.3 :status in a request", head(1, (":status", "200"), ended=True), stream_error(PROTOCOL)),
    Case("8.3 a pseudo-header behind others", head(1, (":authority", "b"), ended=True), stream_error(PROTOCOL)),
    Case("8.3.1 an empty path", frame(HEADERS, 5, 1, b"\x04\x00" + block(GRPC[:2] + GRPC[3:])), stream_error(PROTOCOL)),
    Case("8.3.1 no method", head(1, method="", ended=True), stream_error(PROTOCOL)),
    Case("8.3.1 no scheme", head(1, scheme="", ended=True), stream_error(PROTOCOL)),
    Case("8.3.1 no path", head(1, path="", ended=True), stream_error(PROTOCOL)),
    Case("8.3.1 two methods", frame(HEADERS, 5, 1, b"\x83" + BLOCK), stream_error(PROTOCOL)),
    Case("8.3.1 two paths", frame(HEADERS, 5, 1, b"\x84" + BLOCK), stream_error(PROTOCOL)),
    Case(
        "8.1.1 a content-length that is too long",
        head(1, ("content-length", "1000")) + call()[len(head()) :],
        stream_error(1),
    ),
    Case(
        "8.1.1 one that is too short", head(1, ("content-length", "1")) + call()[len(head()) :], stream_error(PROTOCOL)
    ),
    Case("8.1.1 one that is right", head(1, ("content-length", str(len(COMMAND)))) + call()[len(head()) :], answered),
    # gRPC over HTTP/2
    Case("gRPC a command", call(), answered),
    Case("gRPC GET", head(1, method="GET", ended=True), http("405")),
    Case("gRPC no content-type", head(1, content_type="", ended=True), http("415")),
    Case("gRPC JSON", head(1, content_type="application/json", ended=True), http("415")),
    Case("gRPC-Web", head(1, content_type="application/grpc-web+proto", ended=True), http("415")),
    Case("gRPC +proto", head(1, content_type="application/grpc+proto") + call()[len(head()) :], answered),
    Case("gRPC no te", head(1, te="", ended=True), status("13")),
    Case("gRPC no message", head(1, ended=True), status("3")),
    Case("gRPC two messages", call(1, COMMAND + COMMAND), status("3")),
    Case("gRPC half a message", call(1, COMMAND[:-1]), status("3")),
    Case("gRPC half a prefix", call(1, COMMAND[:3]), status("3")),
    Case("gRPC a compressed message", call(1, b"\x01" + COMMAND[1:]), status("12")),
    Case("gRPC an unknown flag", call(1, b"\x02" + COMMAND[1:]), status("3")),
    Case("gRPC a message of 4 GiB is not waited for", head() + frame(DATA, 0, 1, b"\0\xff\xff\xff\xff"), status("8")),
    Case("gRPC a deadline of nothing", head(1, ("grpc-timeout", "0n")) + call()[len(head()) :], status("4")),
    Case("gRPC the longest deadline", head(1, ("grpc-timeout", "99999999H")) + call()[len(head()) :], answered),
    Case("gRPC a deadline that passes", head(1, ("grpc-timeout", "100m")) + frame(DATA, 1, 1, NEVER), status("4")),
    Case("gRPC one that passes before the message", head(1, ("grpc-timeout", "100m")), status("4")),
    *(
        Case(f"gRPC a deadline of {wrong!r}", head(1, ("grpc-timeout", wrong)), status("3"))
        for wrong in ("-1S", "1X", "123456789n", "1", "S", "1.5S", "1 S")
    ),
    Case(
        "gRPC good binary metadata", head(1, ("x-bin", "YWI"), ("y-bin", "YWI=,YQ==")) + call()[len(head()) :], answered
    ),
    Case("gRPC bad binary metadata", head(1, ("grpc-status-details-bin", "?")) + call()[len(head()) :], status("3")),
    Case("gRPC binary metadata of 5 characters", head(1, ("x-bin", "abcde")) + call()[len(head()) :], status("3")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest_twisted.ensureDeferred
async def test_case(case: Case) -> None:
    """What the RFC wants comes."""

    def client(connection: socket) -> str:
        peer = Peer(connection)
        peer.send(case.sent)
        return case.wanted(peer)

    async with serving() as served:
        assert await served.talk(client) == ""
