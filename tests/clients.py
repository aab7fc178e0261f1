"""Signed webhooks as a good client makes them."""

import json
import secrets
from typing import Any

from gatewayd.ingress.signature import Signed, sign
from gatewayd.times import format_wall

SECRET = b"a-secret-for-tests-that-is-long-enough-to-be-one"


def tradingview_body(now: float, price: float | str = 1.0945, **members: Any) -> bytes:
    """A body in the contract's form; distinct when price or time is."""
    fields = {"ticker": "EURUSD", "action": "buy", "price": price, "time": format_wall(now), **members}
    return json.dumps({key: value for key, value in fields.items() if value is not None}).encode()


def generic_body(now: float, source: str = "test", **payload: Any) -> bytes:
    """A body of a custom system."""
    fields = {"source": source, "instrument": "BTCUSD", "timestamp": format_wall(now)}
    return json.dumps({**fields, "payload": payload or {"price": 45000}}).encode()


def stamped(
    body: bytes,
    now: float,
    *,
    scheme: str = "v1",
    secret: bytes = SECRET,
    key: str = "",
    nonce: str = "",
    timestamp: str = "",
) -> dict[str, str]:
    """The headers of one attempt: a fresh nonce and time, and the signature over them."""
    nonce = nonce or secrets.token_hex(12)
    timestamp = timestamp or str(int(now))
    made = sign(scheme, secret, Signed(timestamp.encode(), nonce.encode(), key.encode(), body))
    headers = {
        "Content-Type": "application/json",
        "X-Timestamp": timestamp,
        "X-Nonce": nonce,
        "X-Signature": made.decode(),
    }
    return {**headers, "Idempotency-Key": key} if key else headers


def raw_request(path: str, body: bytes, headers: dict[str, str], host: str = "localhost") -> bytes:
    """The bytes of one POST on a keep-alive connection."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    return head.encode() + body
