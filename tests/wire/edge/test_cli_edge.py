"""gatewayctl edge against servers that are no gateway, or one that breaks off: an exit code and one line."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gatewayd.cli.redis_caller import RedisCaller
from gatewayd.secret import Secret
from gatewayd.stores.redisplace import RedisPlace
from tests import h2peer
from tests.unit.cli.invocation import gatewayctl
from tests.valkey import ValkeyMaker

LIMIT = {"code": "limit", "message": "too many", "retry_after_ms": 1500}
ERROR = json.dumps({"error": LIMIT}).encode()
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n%b" % (len(ERROR), ERROR)
NO_ACCEPT = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: open\n\n"


def answered(*more: tuple[str, str], status: str = "200") -> bytes:
    """HTTP/2's settings, and a response on stream 1 that is a head alone."""
    head = h2peer.block(((":status", status), ("content-type", "application/grpc"), *more))
    flags = h2peer.END_HEADERS | h2peer.END_STREAM
    return h2peer.settings() + h2peer.frame(h2peer.HEADERS, flags, 1, head)


def begun(body: bytes, *frames: bytes) -> bytes:
    """A response that goes on with this body, and then these frames."""
    head = h2peer.block(((":status", "200"), ("content-type", "application/grpc")))
    first = h2peer.frame(h2peer.HEADERS, h2peer.END_HEADERS, 1, head)
    return h2peer.settings() + first + h2peer.frame(h2peer.DATA, 0, 1, body) + b"".join(frames)


@contextmanager
def serving(answer: bytes) -> Iterator[int]:
    """A port that answers whatever comes first with these bytes, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.fixture
def key(tmp_path: Path) -> str:
    """A client's key."""
    path = str(tmp_path / "client.pem")
    assert gatewayctl("edge", "new-client", "--out", path).code == 0
    return path


RESET = h2peer.frame(h2peer.RESET, 0, 1, bytes((0, 0, 0, 8)))
CALM = h2peer.frame(h2peer.GOAWAY, 0, 0, bytes((0, 0, 0, 1, 0, 0, 0, 11)))
FAREWELL = h2peer.frame(h2peer.GOAWAY, 0, 0, bytes((0, 0, 0, 1, 0, 0, 0, 0)))
TRAILERS = h2peer.frame(
    h2peer.HEADERS,
    h2peer.END_HEADERS | h2peer.END_STREAM,
    1,
    h2peer.block((("grpc-status", "14"), ("grpc-message", "gateway is %73hutting down"), ("retry-after-ms", "250"))),
)


@pytest.mark.parametrize(
    ("transport", "answer", "code", "text"),
    [
        ("", b"", 3, "the connection was closed"),
        ("", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", 3, "127.0.0.1"),
        ("", h2peer.settings() + b"\xff" * 40, 3, "127.0.0.1"),
        ("", answered(("grpc-status", "16"), ("grpc-message", "authentication failed")), 1, "UNAUTHENTICATED"),
        ("", answered(("grpc-status", "99"), ("grpc-message", "\x7f")), 1, "99 \\x7f"),
        ("", answered(status="415"), 3, "no gRPC: HTTP 415"),
        ("", answered(("grpc-status", "0")), 3, "ended without a reason"),
        ("", begun(b"\1\0\0\0\1x"), 1, "compressed"),
        ("", begun(b"\0\xff\xff\xff\xff"), 1, "too long"),
        ("", begun(b"\0\0\0\0\2\xff\xff"), 1, "no event"),
        ("", begun(b"", RESET), 3, "was reset"),
        ("", begun(b"", CALM), 3, "was ended"),
        ("", begun(b"", FAREWELL, TRAILERS), 1, "UNAVAILABLE gateway is shutting down"),
        ("--sse", b"", 3, "127.0.0.1"),
        ("--sse", b"nonsense\r\n\r\n", 3, "127.0.0.1"),
        ("--sse", REFUSED, 1, "limit: too many"),
        ("--sse", b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", 1, "HTTP 404"),
        ("--sse", STREAM, 3, "the stream was cut"),
        ("--sse", STREAM + b"data: {}\n\n", 1, "no event"),
        ("--sse", STREAM + b"data: [\xff\n\n", 1, "no event"),
        ("--sse", STREAM + b"event: close\ndata: " + json.dumps(LIMIT).encode() + b"\n\n", 1, "limit: too many"),
        ("--websocket", b"", 3, "the connection was closed"),
        ("--websocket", b"nonsense\r\n\r\n", 3, "no WebSocket"),
        ("--websocket", REFUSED, 1, "limit: too many"),
        ("--websocket", NO_ACCEPT, 3, "no WebSocket"),
    ],
)
def test_what_is_no_gateway(key: str, transport: str, answer: bytes, code: int, text: str) -> None:
    """Whatever answers: the exit code says whether it was reached or refused, one line says why, nothing is printed."""
    with serving(answer) as port:
        url = f"http://127.0.0.1:{port}"
        words = [transport] if transport else []
        done = gatewayctl("edge", "subscribe", "--session", "s", "--key-file", key, "--url", url, "--grpc", url, *words)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done.err
    assert text in done.err


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", 1, "is the edge on there?"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"keys":[]}', 1, "no Ed25519 key"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n[", 1, "no Ed25519 key"),
        (b"", 3, "127.0.0.1"),
    ],
)
def test_keys_that_are_none(answer: bytes, code: int, text: str) -> None:
    """What is not a set of keys is exit code 1, what does not answer 3."""
    with serving(answer) as port:
        done = gatewayctl("edge", "keys", "--url", f"http://127.0.0.1:{port}")
    assert (done.code, done.err.count("\n")) == (code, 1)
    assert text in done.err


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n", b"$5\r\nab", b"$x\r\n", b":\r\n"])
def test_what_is_no_redis(answer: bytes) -> None:
    """A server that speaks something else is exit code 3, in one line without the password."""
    password = "canary-of-redis"
    with serving(answer) as port:
        environ = {
            "STATE_DIRECTORY": "/",
            "GATEWAY_REDIS_MASTER_ADDR": f"127.0.0.1:{port}",
            "GATEWAY_REDIS_PASSWORD": password,
            "GATEWAY_SESSION_EVENTS_REDIS_STREAM": "s",
            "GATEWAY_CLIENT_EVENTS_REDIS_STREAM": "e",
            "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH": "/nonexistent",
        }
        done = gatewayctl("edge", "publish", "--user", "u", "--type", "t", environ=environ)
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1), done.err
    assert password not in done.err


def test_redis_replies(make_valkey: ValkeyMaker) -> None:
    """Every kind of reply, in a database of its own, behind a password."""
    server = make_valkey(password="of-the-test")
    with RedisCaller(RedisPlace("127.0.0.1", server.port, 3, Secret(b"of-the-test"))) as redis:
        assert redis.call("SET", "k", b"\r\n\xff") == b"OK"
        assert redis.call("GET", "k") == b"\r\n\xff"
        assert redis.call("GET", "none") is None
        assert redis.call("XADD", "x", "1-1", "a", 2) == b"1-1"
        assert redis.call("XRANGE", "x", "-", "+") == [[b"1-1", [b"a", b"2"]]]
        assert redis.call("DEL", "k", "x") == 2
