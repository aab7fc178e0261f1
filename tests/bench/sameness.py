"""
That every server under measurement makes the checks it is measured with: each must refuse and answer the same requests.
"""

import http.client
import time
from collections.abc import Mapping

from tests.bench.rig import OLD_SECRET, Stand, Target
from tests.clients import SECRET, stamped, tradingview_body


class Different(SystemExit):
    """A server answered otherwise, which ends the bench; the text says to what."""


def _send(target: Target, body: bytes, headers: Mapping[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
    try:
        connection.request("POST", "/webhook/tradingview", body, dict(headers))
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _signed(body: bytes, now: float) -> dict[str, str]:
    return stamped(body, now, secret=SECRET)


def _cases(target: Target) -> dict[str, tuple[bytes, dict[str, str], set[int], int]]:
    """What is sent, what may be answered, and how many messages are stored for it; in this order."""
    now = time.time()
    name = target.name

    def body(**members: object) -> bytes:
        return tradingview_body(now, strategy=name, **members)  # type: ignore[arg-type]

    usual, older, compat = body(price=1), body(price=2), body(price=3)
    first = _signed(usual, now)
    key = name.encode().hex()
    keyed, other = body(price=4), body(price=5)
    return {
        "a good request": (usual, first, {202}, 2),
        "the same once more": (usual, first, {401, 409}, 0),
        "its body with a fresh nonce": (usual, _signed(usual, now), {202}, 0),
        "its nonce with another body": (older, stamped(older, now, nonce=first["X-Nonce"]), {401, 409}, 0),
        "the older secret": (older, stamped(older, now, secret=OLD_SECRET.encode()), {202}, 2),
        "sha256=": (compat, stamped(compat, now, scheme="sha256"), {202}, 2),
        "a secret nobody knows": (other, stamped(other, now, secret=b"x" * 40), {401}, 0),
        "an old timestamp": (other, _signed(other, now - 400), {401}, 0),
        "a time to come": (other, _signed(other, now + 60), {401}, 0),
        "no nonce": (other, {k: v for k, v in _signed(other, now).items() if k != "X-Nonce"}, {401}, 0),
        "another media type": (other, {**_signed(other, now), "Content-Type": "text/html"}, {415}, 0),
        "a key": (keyed, stamped(keyed, now, key=key), {202}, 2),
        "the key for another body": (other, stamped(other, now, key=key), {409}, 0),
        "a larger body than allowed": (b"1" * (2**20 + 1), _signed(b"1" * (2**20 + 1), now), {413}, 0),
    }


def _refused_bodies() -> dict[str, bytes]:
    """What is signed well and no signal: stored nowhere but as a dead letter."""
    now = time.time()
    return {
        "no JSON": b'{"ticker": "EURUSD", ',
        "two values": tradingview_body(now) + b"{}",
        "no ticker": tradingview_body(now, ticker=None),
        "a price of 0": tradingview_body(now, 0),
        "a price that is no number": tradingview_body(now, "much"),
        "an unknown action": tradingview_body(now, action="hold"),
        "a strength over 1": tradingview_body(now, strength=1.5),
    }


def check(stand: Stand, target: Target) -> None:
    """Different when an answer, or what is stored for it, is another than it should be."""
    for what, (body, headers, allowed, stored) in _cases(target).items():
        before = stand.stored()
        status = _send(target, body, headers)
        seen = stand.stored() - before
        if status not in allowed or seen != stored:
            raise Different(f"{target.name}: {what}: {status}, {seen} messages stored")
        target.accepted += status == 202
    for what, body in _refused_bodies().items():
        status = _send(target, body, _signed(body, time.time()))
        if status not in (400, 422):
            raise Different(f"{target.name}: {what}: {status}")
