"""
The table of hostile and broken webhooks against a running gatewayd: every row gets exactly its answer.

A row is a valid, signed TradingView webhook (or, `kind: generic`, a generic one) but for what the row says. After the
table nothing may be in the stream but what was answered 202 and dead letters, and nothing may have been an error of
the gateway's own.
"""

import http.client
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gatewayd.ingress.signature import Signed, sign
from gatewayd.times import format_wall
from tests.clients import SECRET, generic_body, raw_request, stamped, tradingview_body
from tests.fakes.connection import Answer, get, read_answers
from tests.gateway import Gateway
from tests.servers import NatsServer
from tests.streams import read_stream
from tests.wire.listeners import read_to_end

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "vectors" / "hostile.json").read_text())
FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
PARTNER = "partner-secret-that-is-only-for-the-partner-source"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, NatsServer]]:
    """One gatewayd and one server for the whole table."""
    root = tmp_path_factory.mktemp("hostile")
    server = NatsServer(root / "nats").start()
    gateway = Gateway(
        root / "gateway",
        {
            "NATS_URL": server.url,
            "API_KEY_HMAC_SECRET": SECRET.decode(),
            "API_KEY_HMAC_SECRET_PARTNER": PARTNER,
            "ALLOWED_SOURCES": "tradingview,custom,test,partner",
            "RATE_LIMIT_RPS": "100000",
            "LOG_LEVEL": "DEBUG",
        },
    )
    try:
        gateway.start(wait="/readyz")
        yield gateway, server
    finally:
        gateway.close()
        server.close()


@pytest.fixture(scope="module")
def accepted() -> list[str]:
    """The correlation ids of what was accepted beside the table's rows."""
    return []


def body_of(row: dict[str, Any], now: float, number: int) -> bytes:
    """The row's body; `number` keeps the bodies of otherwise equal rows apart."""
    if "body_hex" in row:
        return bytes.fromhex(row["body_hex"])
    if "body" in row:
        text: str = row["body"].replace("%TIME%", format_wall(now))
        return (text.replace("1.0945", f"1.0945{number:04d}")).encode("utf-8", "surrogatepass")
    if "repeat" in row:
        before, unit, count, after = row["repeat"]
        body = (before.replace("%TIME%", format_wall(now)) + unit * count + after).encode()
        return body.ljust(row.get("pad_to", 0))
    if row.get("generate") == "many_keys":
        return tradingview_body(now, number + 0.25, **{f"k{index}": index for index in range(10_000)})
    if row.get("kind") == "generic":
        members = json.loads(generic_body(now, row["source"] or "", price=number + 0.5))
        if row["source"] is None:
            del members["source"]
        return json.dumps(members).encode()
    return tradingview_body(now, number + 0.75)


def headers_of(row: dict[str, Any], body: bytes, now: float) -> list[tuple[str, bytes]]:
    """The row's header lines, in latin-1, signed as it says."""
    instant = now + row.get("timestamp_offset", 0)
    form = row.get("timestamp_form")
    timestamp = str(int(instant)) if form is None else format_wall(int(instant))
    timestamp = row.get("timestamp", timestamp.lower() if form == "lower" else timestamp)
    secret = row.get("secret", SECRET.decode()).replace("%SECRET%", SECRET.decode())
    headers: dict[str, str | None] = dict(stamped(body, now, timestamp=timestamp or " ", key=row.get("key", "")))
    headers["X-Timestamp"] = timestamp
    signed_body = row["sign_body"].encode().replace(b"%BODY%", body) if "sign_body" in row else body
    covered = Signed(timestamp.encode(), str(headers["X-Nonce"]).encode(), row.get("key", "").encode(), signed_body)
    made = sign(row.get("scheme", "v1"), secret.encode(), covered).decode()
    headers["X-Signature"] = "v1=" + made[3:].upper() if row.get("transform") == "upper" else made
    headers.update(row.get("headers", {}))
    lines = [(name, value) for name, value in headers.items() if value is not None]
    lines += list(row.get("again", {}).items())
    stamps = {"%NOW%": str(int(now)), "%NOW+1%": str(int(now) + 1)}
    return [(name, stamps.get(value, value).encode("utf-8")) for name, value in lines]


def ask(gateway: Gateway, row: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
    """Send the row; status and members of its answer."""
    now = time.time()
    body = body_of(row, now, number)
    method = row.get("method", "POST")
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    connection.putrequest(method, row.get("path", "/webhook/tradingview"), skip_accept_encoding=True)
    for name, value in headers_of(row, body, now):
        connection.putheader(name, value)
    chunked = bool(row.get("chunked"))
    connection.putheader("Transfer-Encoding", "chunked") if chunked else connection.putheader(
        "Content-Length", len(body)
    )
    connection.endheaders()
    try:
        pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)]
        for piece in pieces:
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            connection.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before all of it was sent: the answer is there to be read
    answer = connection.getresponse()
    members = json.loads(answer.read())
    connection.close()
    return answer.status, members


@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda n: f"{ROWS[n]['id']}-{n}")
def test_row(world: tuple[Gateway, NatsServer], number: int) -> None:
    """The row's status and code, within the time for an answer."""
    gateway, _ = world
    row = ROWS[number]
    began = time.monotonic()
    status, members = ask(gateway, row, number)
    assert [status, members.get("code", "")] == row["expect"], (row, members)
    assert time.monotonic() - began < 2.5
    if status == 202:
        assert members["duplicate"] is False, row["note"]


def connect(gateway: Gateway) -> socket.socket:
    """A connection of a client that does as it likes."""
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=10)


def webhook(price: float, *more: str, **stamp: str) -> bytes:
    """A good signed webhook, with these header lines besides."""
    now = time.time()
    body = tradingview_body(now, price)
    made = raw_request("/webhook/tradingview", body, stamped(body, now, **stamp))  # type: ignore[arg-type]
    return made.replace(b"\r\n", "".join(["\r\n", *(f"{line}\r\n" for line in more)]).encode("latin-1"), 1)


def talk(gateway: Gateway, data: bytes, *, half_close: bool = True) -> list[Answer]:
    """Send these bytes, and no more when `half_close`; every answer up to the server's end."""
    with connect(gateway) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return read_answers(read_to_end(connection))


def test_half_close(world: tuple[Gateway, NatsServer], accepted: list[str]) -> None:
    """H29: a client that has shut down its sending side gets the answers of its webhooks."""
    answers = talk(world[0], webhook(61.5) + webhook(62.5))
    assert [answer.status for answer in answers] == [202, 202]
    accepted += [json.loads(answer.body)["corr_id"] for answer in answers]


def test_upgrades_and_twins(world: tuple[Gateway, NatsServer], accepted: list[str]) -> None:
    """H32, H34: an Upgrade is ignored, and so is a header whose name only looks like one that counts."""
    gateway, _ = world
    for number, lines in enumerate(
        (
            ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
            ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA"],
            [
                "X_Signature: v1=" + "a" * 64,
                "x_timestamp: 1",
                "X_Nonce: x",
                "Content_Length: 3",
                "Transfer_Encoding: x",
            ],
        )
    ):
        (answer,) = talk(gateway, webhook(63.5 + number, *lines))
        assert answer.status == 202, lines
        accepted.append(json.loads(answer.body)["corr_id"])
    for name in (b"X-Signature", b"X-Timestamp", b"X-Nonce"):
        (answer,) = talk(gateway, webhook(67.5).replace(name, name.replace(b"-", b"_")))
        assert answer.status == 401, name


def test_cut_off(world: tuple[Gateway, NatsServer]) -> None:
    """H28: of a webhook that is cut off anywhere, by FIN or by a reset, nothing is processed, and nobody is told."""
    gateway, _ = world
    data = webhook(68.5)

    def told() -> int:
        time.sleep(0.3)  # lines leave together, after a moment
        return sum(line["level"] != "debug" for line in gateway.log_lines())

    before = told()
    for number, at in enumerate(range(0, len(data), 16)):
        with connect(gateway) as connection:
            connection.sendall(data[:at])
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                connection.shutdown(socket.SHUT_WR)
                assert read_to_end(connection) == b""
    assert told() == before


def test_other_protocols(world: tuple[Gateway, NatsServer]) -> None:
    """H20: TLS, HTTP/2 and others at the port of plain HTTP/1.1 are told so at once, and closed."""
    gateway, _ = world
    took: list[float] = []
    with connect(gateway) as connection:
        began = time.monotonic()
        with pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(connection, server_hostname="localhost")
        took.append(time.monotonic() - began)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
    for data in (preface, b"SSH-2.0-OpenSSH_9.2\r\n", bytes([22, 3, 1]), b"\x05\x01\x00", b"*1\r\n$4\r\nPING\r\n"):
        began = time.monotonic()
        (answer,) = talk(gateway, data, half_close=False)
        took.append(time.monotonic() - began)
        assert (answer.status, answer.code, answer.closes) == (400, "GW-015", True)
    assert max(took) < 1.0, took


def test_no_reflection(world: tuple[Gateway, NatsServer]) -> None:
    """H26: nothing of a path, a header or a source comes back in an answer, which is never a page."""
    gateway, _ = world
    canary = "k3n4ry"
    for data in (
        get(f"/<script>{canary}</script>"),
        get(f"/webhook/..%2f{canary}/../metrics"),
        get(f"/{canary}", f"X-Correlation-ID: {canary}<b>", f"Accept: text/html;{canary}", method="POST"),
        get(f"/{canary}", "Accept: application/problem+json"),
        get("/webhook/tradingview", f"X-Signature: {canary}", f"Cookie: {canary}", method="POST"),
    ):
        (answer,) = talk(gateway, data)
        assert answer.status in (404, 405, 415)
        assert canary not in str(answer.headers) + answer.body.decode()
        assert answer.headers["content-type"] in ("application/json", "application/problem+json")


def test_a_hundred_at_once(world: tuple[Gateway, NatsServer], accepted: list[str]) -> None:
    """N5: a hundred identical requests at once become one event: one outcome for all, one of them not a duplicate."""
    gateway, _ = world
    data = webhook(71.5, nonce="one-nonce-for-all")
    connections = [connect(gateway) for _ in range(100)]
    for connection in connections:
        connection.sendall(data[:-1])
    for connection in connections:
        connection.sendall(data[-1:])
        connection.shutdown(socket.SHUT_WR)
    answers = []
    for connection in connections:
        with connection:
            answers += read_answers(read_to_end(connection))
    # Who comes when the outcome is known already is a replay of an accepted request, and is told of which.
    members = [json.loads(answer.body) for answer in answers]
    assert {answer.status for answer in answers} <= {202, 401}
    ids = {each["corr_id"] if "duplicate" in each else each["details"]["original_corr_id"] for each in members}
    assert (len(members), len(ids)) == (100, 1)
    assert [each.get("duplicate") for each in members].count(False) == 1
    accepted += ids


def test_flood_of_names(world: tuple[Gateway, NatsServer]) -> None:
    """U6: paths and sources that nobody configured, thousands of them, add not a line to the metrics."""
    gateway, _ = world

    def lines() -> set[bytes]:
        text: bytes = gateway.get("/metrics")[2]
        return {line.rpartition(b" ")[0] for line in text.splitlines()}

    talk(gateway, get("/nothing") + get("/webhook/tradingview") + get("/healthz"))
    before = lines()
    count = 20_000 if FULL else 2000
    answers = talk(gateway, b"".join(get(f"/webhook/s{n}") + get(f"/p{n}") for n in range(count // 2)))
    now = time.time()
    for number in range(200):
        body = generic_body(now, f"source-{number}")
        answers += talk(gateway, raw_request("/webhook/generic", body, stamped(body, now)))
    assert {answer.status for answer in answers} == {404, 400}
    assert len(answers) == count + 200
    assert lines() == before


def test_afterwards(world: tuple[Gateway, NatsServer], accepted: list[str]) -> None:
    """Only accepted events and dead letters are in the stream, and the log has neither a fault nor a secret."""
    gateway, server = world
    stored = read_stream(server.url)
    count = sum(row["expect"][0] == 202 for row in ROWS) + len(accepted)
    events = [message for message in stored if "Gw-Facts" in message.headers]
    assert len(events) == 2 * count
    assert {*accepted} <= {message.headers["Corr-ID"] for message in events}
    others = [message for message in stored if "Gw-Facts" not in message.headers]
    assert others
    assert all(m.subject.startswith("dlq.") or m.headers.get("Rejected") == "GW-003" for m in others)
    lines = gateway.log_lines()
    assert not [line for line in lines if line["level"] in ("error", "critical") or "failure" in line]
    for secret in (SECRET.decode(), PARTNER):
        assert secret not in gateway.log_text()
    assert gateway.health()["ok"] is True
    assert 'source="unknown"' not in gateway.get("/metrics")[2].decode()
