"""
A small gRPC client: one call on a connection of its own, blocking, on h2.

Decides how a call is framed and what its status means. Never sends a call twice, and never decides what is in a
message.
"""

import socket
import ssl
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

from gatewayd.cli.caller import AGENT, Target, describe
from gatewayd.cli.console import Code, Failed, plain
from gatewayd.cli.edge_client import Ended, Received, as_protobuf, read_event, read_reply
from gatewayd.sessions import endings
from gatewayd.sessions.values import Envelope, Reply

EXECUTE: Final = "/gatewayd.edge.v1.EdgeGateway/ExecuteCommand"
SUBSCRIBE: Final = "/gatewayd.edge.v1.EdgeGateway/SubscribeEvents"
CONNECT_S: Final = 10.0

_NAMES: Final = {
    getattr(endings, name): name
    for name in (
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "UNAUTHENTICATED",
    )
}
_FINAL: Final = frozenset(
    {endings.INVALID_ARGUMENT, endings.FAILED_PRECONDITION, endings.UNIMPLEMENTED, endings.UNAUTHENTICATED}
)
_PREFIX_BYTES: Final = 5
_LONGEST_BYTES: Final = 16 * 1024 * 1024
_FRAME_HEAD_BYTES: Final = 9
_GOAWAY: Final = 7


class GrpcChannel:
    """Calls to one gateway. `silence_s`: after so long without a byte a connection counts as lost."""

    def __init__(self, target: Target, silence_s: float, context: ssl.SSLContext | None) -> None:
        self._target = target
        self._silence_s = silence_s
        self._context = context
        if context is not None:
            context.set_alpn_protocols(["h2"])

    def subscribe(self, envelope: Envelope) -> Iterator[Received]:
        """See Channel."""
        for message in self._call(SUBSCRIBE, as_protobuf(envelope), None):
            yield read_event(message)
        raise Failed(Code.UNREACHABLE, f"{self._target}: the stream ended without a reason")

    def execute(self, envelope: Envelope, deadline_s: float) -> Reply:
        """One command; Ended when it is refused."""
        replies = list(self._call(EXECUTE, as_protobuf(envelope), deadline_s))
        if len(replies) != 1:
            raise Failed(Code.NOT_IN_ORDER, f"{self._target}: {len(replies)} replies to one command")
        return read_reply(replies[0])

    def _call(self, path: str, message: bytes, deadline_s: float | None) -> Iterator[bytes]:
        """The messages of the answer, in order, until its end; Ended when that is not OK."""
        try:
            with self._connect() as connection:
                yield from _Call(connection, self._target).run(path, message, deadline_s)
        except H2Error as error:
            raise Failed(Code.UNREACHABLE, f"{self._target}: no gRPC: {describe(error)}") from None
        except OSError as error:
            raise Failed(Code.UNREACHABLE, f"{self._target}: {describe(error)}") from None

    def _connect(self) -> socket.socket:
        target = self._target
        plain_socket = socket.create_connection((target.host, target.port), min(self._silence_s, CONNECT_S))
        try:
            plain_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = plain_socket
            if self._context is not None:
                connection = self._context.wrap_socket(plain_socket, server_hostname=target.host)
        except BaseException:
            plain_socket.close()
            raise
        connection.settimeout(self._silence_s)
        return connection


class _Call:
    """One call on a new connection."""

    def __init__(self, connection: socket.socket, target: Target) -> None:
        self._connection = connection
        self._target = target
        self._machine = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._held = b""
        self._ended = False

    def run(self, path: str, message: bytes, deadline_s: float | None) -> Iterator[bytes]:
        """The whole call."""
        stream = self._begin(path, deadline_s)
        self._send(stream, b"\0" + len(message).to_bytes(4, "big") + message)
        while True:
            while (answer := self._take()) is not None:
                yield answer
            if self._ended:
                break
            self._read()
        self._judge()

    def _begin(self, path: str, deadline_s: float | None) -> int:
        machine, target = self._machine, self._target
        authority = str(target).removesuffix(target.path).split("://", 1)[1]
        machine.initiate_connection()
        stream = machine.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "https" if target.secure else "http"),
            (":authority", authority),
            (":path", path),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", AGENT),
        ]
        if deadline_s is not None:
            headers.append(("grpc-timeout", f"{max(1, round(deadline_s * 1000))}m"))
        machine.send_headers(stream, headers)
        return stream

    def _send(self, stream: int, body: bytes) -> None:
        """All of the body, as windows allow."""
        machine, at = self._machine, 0
        while at < len(body) and not self._ended:
            room = min(machine.local_flow_control_window(stream), machine.max_outbound_frame_size)
            if room <= 0:
                self._flush()
                self._read()
                continue
            piece = body[at : at + room]
            at += len(piece)
            machine.send_data(stream, piece, end_stream=at == len(body))
        self._flush()

    def _flush(self) -> None:
        self._connection.sendall(self._machine.data_to_send())

    def _read(self) -> None:
        data = self._connection.recv(65536)
        if not data:
            raise ConnectionError("the connection was closed")
        for event in self._machine.receive_data(self._frames(data)):
            self._see(event)
        self._flush()

    def _frames(self, data: bytes) -> bytes:
        """
        The whole frames so far, but for a GOAWAY without an error: after that h2 would take no trailers, which say why
        the stream ends.
        """
        data, kept, at = self._held + data, [], 0
        while len(data) >= at + _FRAME_HEAD_BYTES:
            end = at + _FRAME_HEAD_BYTES + int.from_bytes(data[at : at + 3], "big")
            if end - at > _LONGEST_BYTES:
                raise ConnectionError("what answers speaks no HTTP/2")
            if len(data) < end:
                break
            if data[at + 3] != _GOAWAY or any(data[at + 13 : at + 17]):
                kept.append(data[at:end])
            at = end
        self._held = data[at:]
        return b"".join(kept)

    def _see(self, event: Event) -> None:
        if isinstance(event, ResponseReceived | TrailersReceived):
            self._headers |= {str(name): str(value) for name, value in event.headers or ()}
        elif isinstance(event, DataReceived):
            self._body += event.data or b""
            self._machine.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        elif isinstance(event, StreamEnded):
            self._ended = True
        elif isinstance(event, StreamReset) and not self._ended:
            raise ConnectionError(f"the stream was reset ({event.error_code})")
        elif isinstance(event, ConnectionTerminated):
            raise ConnectionError(f"the connection was ended ({event.error_code})")

    def _take(self) -> bytes | None:
        """The next whole message."""
        if len(self._body) < _PREFIX_BYTES:
            return None
        end = _PREFIX_BYTES + int.from_bytes(self._body[1:_PREFIX_BYTES], "big")
        if self._body[0] or end > _LONGEST_BYTES:
            raise Failed(Code.NOT_IN_ORDER, f"{self._target}: a message that is compressed or too long")
        if len(self._body) < end:
            return None
        message = bytes(self._body[_PREFIX_BYTES:end])
        del self._body[:end]
        return message

    def _judge(self) -> None:
        """Nothing when the call ended well."""
        status = self._headers.get("grpc-status", "")
        if not status.isdigit():
            raise Failed(Code.UNREACHABLE, f"{self._target}: no gRPC: HTTP {self._headers.get(':status')}")
        if status == "0":
            return
        number, wait_ms = int(status), self._headers.get("retry-after-ms", "")
        text = plain(unquote(self._headers.get("grpc-message", "")))
        raise Ended(
            f"{_NAMES.get(number, status)} {text}",
            final=number in _FINAL,
            wait_s=int(wait_ms) / 1000 if wait_ms.isdigit() else None,
        )
