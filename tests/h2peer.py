"""The other side of an HTTP/2 connection, frame by frame: what it sends need not make sense."""

from dataclasses import dataclass
from socket import socket

from hpack import Decoder, Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PROMISE, PING, GOAWAY, UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20

GRPC = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/gatewayd.edge.v1.EdgeGateway/ExecuteCommand"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of a RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[:4] if self.kind == RESET else self.payload[4:8], "big")


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(
        SETTINGS, payload=b"".join(name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in pairs)
    )


def update(stream: int, size: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(UPDATE, 0, stream, size.to_bytes(4, "big"))


def block(headers: tuple[tuple[str, str], ...]) -> bytes:
    """A header block that uses no dynamic table, so that any number of them may be sent in any order."""
    encoder = Encoder()
    encoder.header_table_size = 0
    encoded: bytes = encoder.encode(headers)
    return encoded


def head(stream: int = 1, *more: tuple[str, str], ended: bool = False, **instead: str) -> bytes:
    """A request's HEADERS; `instead` changes pseudo-headers and others, "" leaves one out."""
    replaced = {name.replace("_", "-"): value for name, value in instead.items()}
    kept = []
    for name, value in GRPC:
        now = replaced.get(name.lstrip(":"), value)
        if now:
            kept.append((name, now))
    return frame(HEADERS, END_HEADERS | (END_STREAM if ended else 0), stream, block((*kept, *more)))


def message(body: bytes) -> bytes:
    """A gRPC message behind its prefix."""
    return b"\0" + len(body).to_bytes(4, "big") + body


class Peer:
    """A connection of a client's."""

    def __init__(self, connection: socket, *, begun: bool = True) -> None:
        self.connection = connection
        self._received = b""
        self._decoder = Decoder()
        if begun:
            self.send(PREFACE + settings())

    def send(self, *frames: bytes) -> None:
        """Send it all; a connection that is closed already is noticed when it is read."""
        try:
            self.connection.sendall(b"".join(frames))
        except (BrokenPipeError, ConnectionResetError):
            return

    def read(self) -> Frame | None:
        """The next frame; None when the connection is closed."""
        length = 1 << 24
        while len(self._received) < 9 + length:
            if len(self._received) >= 9:
                length = int.from_bytes(self._received[:3], "big")
                if len(self._received) >= 9 + length:
                    break
            try:
                piece = self.connection.recv(65536)
            except ConnectionResetError:
                return None
            if not piece:
                return None
            self._received += piece
        got, self._received = self._received[: 9 + length], self._received[9 + length :]
        return Frame(got[3], got[4], int.from_bytes(got[5:9], "big"), got[9:])

    def read_to_end(self, *stop: int) -> list[Frame]:
        """All frames until one of these kinds, or the end of the connection."""
        frames = []
        while (one := self.read()) is not None:
            frames.append(one)
            if one.kind in stop and not (one.kind == SETTINGS and one.flags & ACK):
                break
        return frames

    def headers_of(self, frames: list[Frame]) -> dict[int, dict[str, str]]:
        """What was answered on each stream, heads and trailers together; all header blocks must be among the frames."""
        found: dict[int, dict[str, str]] = {}
        for one in frames:
            if one.kind == HEADERS:
                found.setdefault(one.stream, {}).update(self._decoder.decode(one.payload))
        return found

    def is_alive(self) -> bool:
        """True when a PING is answered."""
        self.send(frame(PING, payload=b"is-alive"))
        while (one := self.read()) is not None:
            if one.kind == PING and one.flags & ACK and one.payload == b"is-alive":
                return True
        return False
