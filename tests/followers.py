"""
Clients of the edge as users have them: one stream each, over gRPC, WebSocket or server-sent events, in a thread.

A follower keeps every event it got and how its stream ended. One that is `loyal` comes back with its last position for
as long as it is wanted. Never decides whether an event is right: the tests do.
"""

import http.client
import json
import re
import secrets
import socket
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import grpc

from gatewayd.schemas.edge_v1_pb2 import ExecuteCommandResponse, GatewayEvent
from gatewayd.sessions.signing import event_input
from gatewayd.sessions.values import Envelope
from tests.edge_requests import as_json, as_protobuf, request
from tests.websockets import CLOSE, PING, PONG, TEXT, Client, frame, text, upgrade

SERVICE: Final = "/gatewayd.edge.v1.EdgeGateway"
OWN_CHANNEL: Final = (("grpc.use_local_subchannel_pool", 1),)
_PAUSE_S: Final = 0.05


@dataclass(frozen=True)
class Place:
    """Where a gatewayd serves its edge: two ports of this machine."""

    http: int
    grpc: int


@dataclass(frozen=True)
class Got:
    """One event as it arrived, `at` this (monotonic) time."""

    event_type: str
    event_id: str
    timestamp_ms: int
    payload: bytes
    payload_hash: bytes
    signature: bytes
    request_id: str
    trace_id: str
    position: str
    at: float

    @property
    def signed(self) -> bytes:
        """What the gateway has signed of it."""
        return event_input(
            event_type=self.event_type,
            event_id=self.event_id,
            timestamp_ms=self.timestamp_ms,
            request_id=self.request_id,
            trace_id=self.trace_id,
            payload_hash=self.payload_hash,
            position=self.position,
        )


@dataclass(frozen=True)
class End:
    """
    How a stream ended, or was refused: `code` is the transport's own word ("UNAVAILABLE", "4003", "revoked"), or "lost"
    when the connection was; `message` the same text on every transport.
    """

    code: str
    message: str = ""
    retry_after_ms: int | None = None
    at: float = 0.0


def now_ms() -> int:
    """The wall clock's."""
    return int(time.time() * 1000)


def ask(session: str, message_type: str = "events.subscribe", payload: bytes = b"", **others: Any) -> Envelope:
    """A request of this moment that was never sent before."""
    others.setdefault("at_ms", now_ms())
    request_id = others.pop("request_id", "") or secrets.token_hex(8)
    return request(request_id, payload=payload, device_session_id=session, message_type=message_type, **others)


class Follower:
    """One client of one session; start() begins, stop() leaves."""

    def __init__(
        self,
        place: Place,
        session: str,
        *,
        message_type: str = "events.subscribe",
        position: str = "",
        loyal: bool = False,
    ) -> None:
        self.place = place
        self.session = session
        self.message_type = message_type
        self.position = position
        self.loyal = loyal
        self.streams: list[list[Got]] = []
        """The events of each stream that was opened, one after the other."""
        self.ends: list[End] = []
        self._changed = threading.Condition()
        self._wanted = True
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "Follower":
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Leave, and wait until the thread has ended."""
        self._wanted = False
        self.cut()
        self._thread.join(10)

    @property
    def events(self) -> list[Got]:
        """Everything, in the order in which it came."""
        return [got for stream in self.streams for got in stream]

    def of_type(self, *event_types: str) -> list[Got]:
        """The events of these types; without any those that are not the gateway's own."""
        if event_types:
            return [got for got in self.events if got.event_type in event_types]
        return [got for got in self.events if not got.event_type.startswith("gateway.")]

    def until(self, true: Callable[["Follower"], object], timeout_s: float = 10.0) -> "Follower":
        """Wait until something is true of it."""
        with self._changed:
            if not self._changed.wait_for(lambda: true(self), timeout_s):
                tail = [(got.event_type, got.event_id, got.position) for got in self.events[-5:]]
                raise AssertionError(
                    f"{type(self).__name__} {self.session}: {len(self.events)} {tail} {self.ends[-3:]}"
                )
        return self

    def opened(self, times: int = 1) -> "Follower":
        """Wait until so many streams were opened."""
        return self.until(lambda it: len(it.of_type("gateway.server_time")) >= times, 20.0)

    def ended(self, timeout_s: float = 10.0) -> End:
        """Wait for the (first) end."""
        return self.until(lambda it: it.ends, timeout_s).ends[0]

    def cut(self) -> None:
        """Lose the connection now."""
        raise NotImplementedError

    def follow(self, envelope: Envelope) -> Iterator[Got | End]:
        """Open a stream: what comes, to the end."""
        raise NotImplementedError

    def _run(self) -> None:
        while self._wanted:
            self._follow(ask(self.session, self.message_type, self.position.encode()))
            if not self.loyal:
                return
            time.sleep(_PAUSE_S)

    def _follow(self, envelope: Envelope) -> None:
        stream: list[Got] = []
        found: Got | End
        self.streams.append(stream)
        try:
            for found in self.follow(envelope):
                with self._changed:
                    if isinstance(found, End):
                        self.ends.append(found)
                    else:
                        stream.append(found)
                        self.position = found.position or self.position
                    self._changed.notify_all()
        except (
            OSError,
            EOFError,
            http.client.HTTPException,
            ValueError,
        ) as error:  # ValueError: a file closed under it
            with self._changed:
                self.ends.append(End("lost", str(error), at=time.monotonic()))
                self._changed.notify_all()


class GrpcFollower(Follower):
    """Over gRPC, with the official client and a connection of its own."""

    _call: Any = None

    def cut(self) -> None:
        """See Follower."""
        if self._call is not None:
            self._call.cancel()

    def follow(self, envelope: Envelope) -> Iterator[Got | End]:
        """See Follower."""
        with grpc.insecure_channel(f"127.0.0.1:{self.place.grpc}", options=OWN_CHANNEL) as channel:
            subscribe = channel.unary_stream(
                f"{SERVICE}/SubscribeEvents",
                request_serializer=as_protobuf,
                response_deserializer=GatewayEvent.FromString,
            )
            self._call = subscribe(envelope)
            try:
                for event in self._call:
                    yield _of_protobuf(event)
            except grpc.RpcError as error:
                yield _of_error(error)
            finally:
                self._call.cancel()


class WebSocketFollower(Follower):
    """Over a WebSocket."""

    _socket: socket.socket | None = None

    def cut(self) -> None:
        """See Follower."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def follow(self, envelope: Envelope) -> Iterator[Got | End]:
        """See Follower."""
        with socket.create_connection(("127.0.0.1", self.place.http), 10) as connection:
            connection.settimeout(None)
            self._socket = connection
            client = Client(connection)
            status = client.open(upgrade(), text(as_json(envelope)))
            if " 101 " not in status:
                yield End("lost", status, at=time.monotonic())
                return
            while True:
                received = client.receive()
                if received.opcode == TEXT:
                    yield _of_json(json.loads(received.payload))
                elif received.opcode == PING:
                    client.send(frame(PONG, received.payload))
                elif received.opcode == CLOSE:
                    message, _, wait = received.reason.partition("; retry_after_ms=")
                    yield End(str(received.code), message, int(wait) if wait else None, time.monotonic())
                    return


class SseFollower(Follower):
    """Over server-sent events."""

    _socket: socket.socket | None = None

    def cut(self) -> None:
        """See Follower."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def follow(self, envelope: Envelope) -> Iterator[Got | End]:
        """See Follower."""
        connection = http.client.HTTPConnection("127.0.0.1", self.place.http, timeout=10)
        try:
            connection.connect()
            self._socket = connection.sock
            connection.request("POST", "/edge/v1/events", as_json(envelope), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                yield _of_members(json.loads(answer.read())["error"])
                return
            self._socket.settimeout(None)
            fields: dict[bytes, bytes] = {}
            for line in answer:
                name, _, value = line.rstrip(b"\n").partition(b": ")
                if name:
                    fields[name] = value
                    continue
                members = json.loads(fields.get(b"data", b"{}"))
                if fields.get(b"event") == b"close":
                    yield _of_members(members)
                    return
                if members:
                    assert fields[b"id"].decode() == members["position"]
                    yield _of_json(members)
                fields.clear()
            raise EOFError
        finally:
            connection.close()


FOLLOWERS: Final[Mapping[str, type[Follower]]] = {
    "grpc": GrpcFollower,
    "websocket": WebSocketFollower,
    "sse": SseFollower,
}


def execute(place: Place, envelope: Envelope, timeout_s: float = 5.0) -> ExecuteCommandResponse | End:
    """One command over gRPC on a connection of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{place.grpc}", options=OWN_CHANNEL) as channel:
        return execute_on(channel, envelope, timeout_s)


def execute_on(channel: grpc.Channel, envelope: Envelope, timeout_s: float = 5.0) -> ExecuteCommandResponse | End:
    """One command on a connection that is there."""
    call = channel.unary_unary(
        f"{SERVICE}/ExecuteCommand",
        request_serializer=as_protobuf,
        response_deserializer=ExecuteCommandResponse.FromString,
    )
    try:
        answer: ExecuteCommandResponse = call(envelope, timeout=timeout_s)
    except grpc.RpcError as error:
        return _of_error(error)
    return answer


def _of_error(error: Any) -> End:
    wait = dict(error.trailing_metadata() or ()).get("retry-after-ms")
    return End(error.code().name, error.details() or "", None if wait is None else int(wait), time.monotonic())


def _of_members(error: Mapping[str, Any]) -> End:
    return End(error["code"], error["message"], error.get("retry_after_ms"), time.monotonic())


def _of_protobuf(event: GatewayEvent) -> Got:
    return Got(
        event.event_type,
        event.event_id,
        event.timestamp_ms,
        event.payload_bytes,
        event.payload_hash,
        event.signature,
        event.request_id,
        event.trace_id,
        event.position,
        time.monotonic(),
    )


def _of_json(members: Mapping[str, Any]) -> Got:
    def octets(name: str) -> bytes:
        return urlsafe_b64decode(members[name] + "==")

    return Got(
        members["event_type"],
        members["event_id"],
        members["timestamp_ms"],
        octets("payload_bytes"),
        octets("payload_hash"),
        octets("signature"),
        members["request_id"],
        members["trace_id"],
        members["position"],
        time.monotonic(),
    )


def places(position: str) -> dict[str, tuple[int, int]]:
    """A position's marks by letter and epoch, to be compared."""
    found = re.findall(r"([es][0-9A-Za-z_-]+)\.(\d+)-(\d+)", position)
    return {name: (int(one), int(other)) for name, one, other in found}


def goes_back(stream: list[Got]) -> list[str]:
    """Positions of one stream that are behind one before them."""
    behind, furthest = [], dict[str, tuple[int, int]]()
    for got in stream:
        for name, at in places(got.position).items():
            if at < furthest.get(name, (0, 0)):
                behind.append(got.position)
            furthest[name] = max(at, furthest.get(name, (0, 0)))
    return behind
