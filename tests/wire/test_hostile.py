"""
The table of hostile and broken webhooks against a running gatewayd: every row gets exactly its answer.

A row is a valid, signed TradingView webhook (or, `kind: generic`, a generic one) but for what the row says. After the
table nothing may be in the stream but what was answered 202 and dead letters, and nothing may have been an error of
the gateway's own.
"""

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gatewayd.ingress.signature import Signed, sign
from gatewayd.times import format_wall
from tests.clients import SECRET, generic_body, stamped, tradingview_body
from tests.gateway import Gateway
from tests.servers import NatsServer
from tests.streams import read_stream

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "vectors" / "hostile.json").read_text())
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


def test_afterwards(world: tuple[Gateway, NatsServer]) -> None:
    """Only accepted events and dead letters are in the stream, and the log has neither a fault nor a secret."""
    gateway, server = world
    stored = read_stream(server.url)
    accepted = sum(row["expect"][0] == 202 for row in ROWS)
    events = [message for message in stored if "Gw-Facts" in message.headers]
    assert len(events) == 2 * accepted
    others = [message for message in stored if "Gw-Facts" not in message.headers]
    assert others
    assert all(m.subject.startswith("dlq.") or m.headers.get("Rejected") == "GW-003" for m in others)
    lines = gateway.log_lines()
    assert not [line for line in lines if line["level"] in ("error", "critical") or "failure" in line]
    for secret in (SECRET.decode(), PARTNER):
        assert secret not in gateway.log_text()
    assert gateway.health()["ok"] is True
    assert 'source="unknown"' not in gateway.get("/metrics")[2].decode()
