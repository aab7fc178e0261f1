"""
What virtual clients send: signals, their headers and their identities, worked out from the published rules.

Pure; every number comes from the generator that is handed in. Identities are computed here a second time, not asked of
the product.
"""

import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from random import Random
from typing import Final

from tests.clients import SECRET

INSTRUMENTS: Final = ("EURUSD", "BTCUSD", "XAUUSD")
BROKEN: Final = (
    (400, "GW-013", '{"ticker":"EURUSD","price":%s', "raw"),
    (422, "GW-003", '{"ticker":"EURUSD","action":"buy","price":-%s,"time":"2024-01-15T10:30:00Z"}', "normalized"),
    (422, "GW-003", "[%s]", "raw"),
)
"""Bodies that become dead letters: the status, the code, the body, the last part of the letter's subject."""


@dataclass(frozen=True, slots=True)
class Signal:
    """
    One event that somebody wants stored. `identity` is which event it is, in hex, `digest` which body. A broken body is
    refused with `status` and `code`; a `forged` one has a signature of nobody.
    """

    source: str
    instrument: str
    scheme: str
    key: str
    body: bytes
    price: str
    identity: str
    digest: str
    status: int = 202
    code: str = ""
    forged: bool = False

    @property
    def corr_id(self) -> str:
        """Of every answer that is about this event."""
        return f"req_{self.identity[:20]}"


def hexed(*parts: bytes) -> str:
    """16 bytes of SHA-256 over the length-prefixed parts, in hex."""
    return sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).hexdigest()[:32]


def time_text(at: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    ms = round(at * 1000)
    return f"{datetime.fromtimestamp(ms // 1000, tz=UTC):%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


class Maker:
    """Makes signals, each with a price of its own, so that no two bodies are alike by chance."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._number = 0

    def signal(self, now: float, *, scheme: str, key: str = "", source: str = "", forged: bool = False) -> Signal:
        """A good one; of any source where none is given."""
        self._number += 1
        price = f"1.{self._number:06d}0"
        source, instrument = source or self._rng.choice(("tradingview", "custom")), self._rng.choice(INSTRUMENTS)
        if source == "tradingview":
            text = f'{{"ticker":"{instrument}","action":"buy","price":{price},"time":"{time_text(now)}"}}'
        else:
            text = (
                f'{{"source":"custom","instrument":"{instrument}","timestamp":"{time_text(now)}",'
                f'"payload":{{"price":{price},"side":"sell"}}}}'
            )
        return self._made(source, instrument, scheme, key, text.encode(), price, forged=forged)

    def broken(self) -> Signal:
        """One that becomes a dead letter."""
        self._number += 1
        status, code, text, _ = self._rng.choice(BROKEN)
        body = (text % f"1.{self._number}").encode()
        return self._made("tradingview", "", "v1", "", body, "", status=status, code=code)

    def key(self) -> str:
        """A new idempotency key."""
        self._number += 1
        return f"key-{self._number}"

    def nonce(self) -> str:
        """A new nonce."""
        return f"{self._rng.getrandbits(80):020x}"

    def _made(
        self,
        source: str,
        instrument: str,
        scheme: str,
        key: str,
        body: bytes,
        price: str,
        *,
        status: int = 202,
        code: str = "",
        forged: bool = False,
    ) -> Signal:
        signed_key = key and scheme == "v1"
        who = (b"key", key.encode()) if signed_key else (b"body", body)
        identity = hexed(source.encode(), body) if code else hexed(source.encode(), *who)
        return Signal(source, instrument, scheme, key, body, price, identity, hexed(body), status, code, forged)


def request_bytes(signal: Signal, nonce: str, timestamp: str) -> bytes:
    """One POST, signed."""
    bound = f"{timestamp}\n{nonce}\n{signal.key}\n".encode() if signal.scheme == "v1" else b""
    signed = bound + signal.body
    digest = hmac.digest(b"not the secret" if signal.forged else SECRET, signed, "sha256").hex()
    key = f"Idempotency-Key: {signal.key}\r\n" if signal.key else ""
    return (
        f"POST /webhook/{signal.source} HTTP/1.1\r\nHost: gw\r\nContent-Length: {len(signal.body)}\r\n"
        f"Content-Type: application/json\r\nX-Timestamp: {timestamp}\r\nX-Nonce: {nonce}\r\n{key}"
        f"X-Signature: {signal.scheme}={digest}\r\n\r\n"
    ).encode() + signal.body


def payload_of(raw: bytes) -> bytes | None:
    """The body inside a raw event, byte for byte."""
    _, found, rest = raw.partition(b'"payload":')
    return rest[:-1] if found and rest.endswith(b"}") else None


def members_of(body: bytes) -> dict[str, object]:
    """An answer's members."""
    read = json.loads(body)
    assert isinstance(read, dict)
    return read
