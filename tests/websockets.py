"""A WebSocket client's bytes: the handshake, masked frames, and what a server sends, frame by frame."""

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from socket import socket
from typing import Any

KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The example of RFC 6455 1.3."""

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def upgrade(path: str = "/edge/v1/events", **changed: str | None) -> bytes:
    """The opening request; `changed` replaces headers (underscores for hyphens), None leaves one out."""
    headers: dict[str, str | None] = {
        "host": "gateway.example",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec_websocket_key": KEY,
        "sec_websocket_version": "13",
        "sec_websocket_protocol": "gatewayd.edge.v1",
        **changed,
    }
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items() if value is not None]
    return f"GET {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = b"\x12\x34\x56\x78") -> bytes:
    """One frame of a client; `mask` None leaves it unmasked, which only servers may."""
    size = len(payload)
    masked = 0 if mask is None else 0x80
    if size < 126:
        length = bytes([masked | size])
    elif size < 65536:
        length = bytes([masked | 126]) + struct.pack("!H", size)
    else:
        length = bytes([masked | 127]) + struct.pack("!Q", size)
    if mask is not None:
        repeated = mask * (size // 4 + 1)
        payload = bytes(a ^ b for a, b in zip(payload, repeated, strict=False))
    return bytes([(0x80 if fin else 0) | opcode]) + length + (mask or b"") + payload


def text(payload: str | bytes) -> bytes:
    """A text message in one frame."""
    return frame(TEXT, payload.encode() if isinstance(payload, str) else payload)


def close(code: int | None = None, reason: str = "") -> bytes:
    """A client's close frame."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())


@dataclass(frozen=True)
class Frame:
    """One frame of the server."""

    opcode: int
    payload: bytes

    @property
    def code(self) -> int | None:
        """A close frame's code."""
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else None

    @property
    def reason(self) -> str:
        """A close frame's text."""
        return self.payload[2:].decode()


def split_frames(data: bytes) -> Iterator[tuple[Frame, int]]:
    """The whole frames in `data`, each with where it ends; the server's are final, unmasked and without extensions."""
    start = 0
    while len(data) >= start + 2:
        first, size = data[start], data[start + 1]
        assert first & 0xF0 == 0x80, hex(first)
        assert not size & 0x80, "a server must not mask"
        begin = start + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(data) < begin + width:
                return
            size = int.from_bytes(data[begin : begin + width], "big")
            begin += width
        if len(data) < begin + size:
            return
        start = begin + size
        yield Frame(first & 15, data[begin:start]), start


def frames_in(data: bytes) -> list[Frame]:
    """Every frame of `data`, which must hold nothing else."""
    found = list(split_frames(data))
    assert (found[-1][1] if found else 0) == len(data), data
    return [each for each, _ in found]


class Client:
    """A blocking client on an open socket, for a thread of its own."""

    def __init__(self, connection: Any) -> None:
        self.connection: socket = connection
        self.head = b""
        self._held = b""

    def open(self, request: bytes, more: bytes = b"") -> str:
        """Send the opening request, and `more` with it; gives the status line, and keeps the head."""
        self.connection.sendall(request + more)
        while b"\r\n\r\n" not in self._held:
            self._read()
        self.head, _, self._held = self._held.partition(b"\r\n\r\n")
        return self.head.split(b"\r\n")[0].decode()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.connection.sendall(data)

    def receive(self) -> Frame:
        """The next frame; EOFError when there is none any more."""
        while True:
            for found, end in split_frames(self._held):
                self._held = self._held[end:]
                return found
            self._read()

    def receive_to_end(self, *, answers: bool = True) -> list[Frame]:
        """Every frame up to the server's FIN; a close frame is answered, as a client has to."""
        received: list[Frame] = []
        while True:
            try:
                received.append(self.receive())
            except EOFError:
                return received
            if answers and received[-1].opcode == CLOSE:
                with suppress(OSError):
                    self.send(close(received[-1].code))

    def _read(self) -> None:
        piece = self.connection.recv(65536)
        if not piece:
            raise EOFError(self._held)
        self._held += piece
