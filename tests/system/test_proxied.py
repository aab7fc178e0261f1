"""A whole gatewayd behind a proxy that speaks the PROXY protocol: whose limits and permissions a client has."""

import signal
import socket
from collections.abc import Callable

from tests.fakes.connection import get, read_answers
from tests.gateway import Gateway
from tests.servers import NatsServer
from tests.wire.listeners import read_to_end

PROXY, OTHER = "127.0.0.2", "127.0.0.1"
METRICS = get("/metrics", "Connection: close")
CLIENT, STRANGER = (b"PROXY TCP4 %b 198.51.100.1 4711 443\r\n" % client for client in (b"192.0.2.7", b"192.0.2.8"))


def ask(gateway: Gateway, source: str, data: bytes) -> bytes:
    """What is answered to these bytes of a connection from `source`; nothing to one that is cut."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10, source_address=(source, 0)) as connection:
        try:
            connection.sendall(data)
            return read_to_end(connection)
        except ConnectionResetError:
            return b""


def status(gateway: Gateway, source: str, data: bytes) -> int:
    """The status of the one answer."""
    (answer,) = read_answers(ask(gateway, source, data))
    return answer.status


def test_a_proxy_in_front(make_gateway: Callable[..., Gateway], nats: NatsServer) -> None:
    """
    /metrics is for the address that the header carries; only the proxy's header counts; one without is cut, counted
    and said; SIGHUP ends it.
    """
    gateway = make_gateway(NATS_URL=nats.url, METRICS_ALLOW_CIDRS="192.0.2.7,127.0.0.1")
    file = gateway.root / "proxies"
    gateway.root.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{PROXY}\nproxy-protocol\n")
    gateway.settings["TRUSTED_PROXIES_FILE"] = str(file)
    gateway.start()
    assert status(gateway, PROXY, CLIENT + METRICS) == 200
    assert status(gateway, PROXY, STRANGER + METRICS) in (403, 404)
    assert status(gateway, OTHER, CLIENT + METRICS) == 400
    assert ask(gateway, PROXY, METRICS) == b""
    line = gateway.await_line(event="listener.proxy_header")
    assert (line["peer"], line["reason"]) == (PROXY, "missing")
    assert b"gateway_proxy_headers_refused_total 1" in ask(gateway, OTHER, METRICS)
    file.write_text(f"{PROXY}\n")
    gateway.signal(signal.SIGHUP)
    gateway.await_line(event="config.reloaded")
    assert status(gateway, PROXY, get("/healthz", "Connection: close")) == 200
    assert status(gateway, PROXY, CLIENT + METRICS) == 400
