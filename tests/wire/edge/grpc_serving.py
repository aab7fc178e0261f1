"""The gRPC server on a real socket with a hub that is none, and the official client's channel to it."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from socket import AF_INET, SOCK_STREAM, socket
from typing import Any, TypeVar

import grpc
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from gatewayd.http.addresses import Address, Kind
from gatewayd.http.capacity import Capacity
from gatewayd.http.inherited import Inherited
from gatewayd.http.proxied import Proxies
from gatewayd.push.grpc_listener import GrpcListener
from gatewayd.push.grpc_server import GrpcServer
from gatewayd.push.health import Health
from gatewayd.schemas import edge_v1_pb2 as pb
from gatewayd.sessions.envelope import read_protobuf, write_protobuf
from tests.buses import reactor_clock, reactor_loop, until
from tests.fakes.hub import FakeHub
from tests.servers import Certificates

T = TypeVar("T")
LOOPBACK = Address(Kind.TCP, "127.0.0.1")
EXECUTE = "/gatewayd.edge.v1.EdgeGateway/ExecuteCommand"
SUBSCRIBE = "/gatewayd.edge.v1.EdgeGateway/SubscribeEvents"
CLIENT_TIMEOUT_S = 20.0


class Served:
    """A server that listens."""

    def __init__(
        self,
        on_loop: bool,
        tls: Certificates | None,
        capacity: Capacity,
        announces: Callable[[str], bool],
        **bounds: Any,
    ) -> None:
        clock = reactor_clock()
        self.hub = FakeHub()
        loop = reactor_loop()
        self.server = GrpcServer(
            read_envelope=read_protobuf,
            write_reply=write_protobuf,
            execute=self.hub.execute,
            subscribe=self.hub.subscribe,
            health=Health(),
            clock=clock,
            soon=loop.call_soon,
            capacity=capacity,
            **bounds,
        )
        self.listener = GrpcListener(
            clock,
            loop if on_loop else None,
            self.server,
            [LOOPBACK],
            inherited=Inherited(),
            proxies=Proxies(capacity, clock, announces),
            certificate="" if tls is None else str(tls.cert),
            private_key="" if tls is None else str(tls.key),
            close_s=2.0,
        )
        self.tls = tls

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.listener.ports[0]

    def run(self, client: Callable[[grpc.Channel], T], **options: Any) -> "Deferred[T]":
        """Have the official client do something in a thread, on a channel of its own that is closed at the end."""
        return deferToThread(self._run, client, options)

    def _run(self, client: Callable[[grpc.Channel], T], options: dict[str, Any]) -> T:
        with self.channel(**options) as channel:
            return client(channel)

    def channel(self, **options: Any) -> grpc.Channel:
        """A channel with a connection that no other one shares."""
        chosen = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), *options.items()]
        if self.tls is None:
            return grpc.insecure_channel(f"127.0.0.1:{self.port}", chosen)
        trusted = grpc.ssl_channel_credentials(Path(self.tls.ca).read_bytes())
        return grpc.secure_channel(f"localhost:{self.port}", trusted, chosen)

    def talk(self, client: Callable[[socket], T]) -> "Deferred[T]":
        """Have a client of bytes do something in a thread."""
        return deferToThread(self._talk, client)

    def _talk(self, client: Callable[[socket], T]) -> T:
        with socket(AF_INET, SOCK_STREAM) as connection:
            connection.settimeout(CLIENT_TIMEOUT_S)
            connection.connect(("127.0.0.1", self.port))
            return client(connection)


@asynccontextmanager
async def serving(
    *,
    on_loop: bool = True,
    tls: Certificates | None = None,
    capacity: Capacity | None = None,
    announces: Callable[[str], bool] = lambda _: False,
    **bounds: Any,
) -> AsyncIterator[Served]:
    """
    A listening server; at the end everything is closed, and nothing may be left. `announces` says of a peer's address
    that it sends a PROXY header.
    """
    served = Served(on_loop, tls, capacity or Capacity(), announces, **bounds)
    served.listener.open()
    served.listener.serve()
    try:
        yield served
    finally:
        served.hub.close()
        await served.listener.close()
        await until(lambda: not served.server.open, what="connections are left")
    assert (served.server.calls, served.server.receiving) == (0, 0)


def request(
    message_type: str = "echo", payload: bytes = b"payload", kind: Any = pb.ExecuteCommandRequest, **members: Any
) -> Any:
    """A request that reads well; nothing of it is signed."""
    filled: dict[str, Any] = {
        "protocol_version": "v1",
        "device_session_id": "device-1",
        "message_type": message_type,
        "timestamp_ms": int(time.time() * 1000),
        "request_id": "request-1",
        "payload_bytes": payload,
        "payload_hash": b"h" * 32,
        "signature": b"s" * 64,
        "trace_id": "trace-1",
    }
    return kind(**{**filled, **members})


def execute(channel: grpc.Channel) -> Any:
    """The method, as a generated stub has it."""
    return channel.unary_unary(
        EXECUTE,
        request_serializer=pb.ExecuteCommandRequest.SerializeToString,
        response_deserializer=pb.ExecuteCommandResponse.FromString,
    )


def subscribe(channel: grpc.Channel) -> Any:
    """The method, as a generated stub has it."""
    return channel.unary_stream(
        SUBSCRIBE,
        request_serializer=pb.SubscribeEventsRequest.SerializeToString,
        response_deserializer=pb.GatewayEvent.FromString,
    )


def subscription(message_type: str = "events.subscribe", **members: Any) -> Any:
    """A request for a stream."""
    return request(message_type, b"", pb.SubscribeEventsRequest, **members)
