"""
The forms of a webhook's headers. Pure.

Decides whether the media type, key, version, signature, timestamp and nonce of a request have a form that can be
judged at all, and whether its time is inside the window. Never decides whether the signature is right.
"""

import math
import re
from typing import Final

import msgspec

from gatewayd.errors import Refused
from gatewayd.http.message import Request
from gatewayd.ingress.signature import EXPECTED_FORMAT, parse_signatures
from gatewayd.times import Wall, parse_header_time

_MEDIA: Final = re.compile(rb'application/json(?:[ \t]*;[ \t]*charset[ \t]*=[ \t]*(?:utf-8|"utf-8"))?', re.IGNORECASE)
_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}")
_NONCE: Final = re.compile(rb"[A-Za-z0-9._:-]{8,128}")
_CORRELATION: Final = re.compile(rb"[A-Za-z0-9_-]{1,128}")
_TRACEPARENT: Final = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_VERSIONS: Final = frozenset({b"1", b"1.0", b"1.0.0"})
_MAX_SHOWN: Final = 40


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """
    What the headers of one request say; texts verbatim. `key` is the explicit idempotency key, None when absent;
    `signatures` are digests by scheme word; `client_corr_id` and `traceparent` are None when absent or malformed.
    """

    timestamp: bytes
    nonce: bytes
    key: bytes | None
    signatures: dict[bytes, list[bytes]]
    client_corr_id: str | None
    traceparent: bytes | None


def refuse_media_type(request: Request) -> Refused | None:
    """GW-014 unless the body is said to be plain, uncompressed JSON in UTF-8."""
    media = request.values(b"content-type")
    encoding = request.values(b"content-encoding")
    plain = not encoding or [value.lower() for value in encoding] == [b"identity"]
    if plain and len(media) == 1 and _MEDIA.fullmatch(media[0]) is not None:
        return None
    return Refused("GW-014", {"expected": "application/json; charset=utf-8, not compressed"})


def read_headers(request: Request, window_s: float, skew_s: float) -> Stamp | Refused:
    """The stamp of a request that was complete at its `received_wall`, or the first refusal in the published order."""
    key = _read_key(request)
    if isinstance(key, Refused):
        return key
    signature = request.values(b"x-signature")
    signatures = parse_signatures(signature[0]) if len(signature) == 1 else None
    if signatures is None:
        return refuse_signature(request)
    timestamp, nonce = request.values(b"x-timestamp"), request.values(b"x-nonce")
    late = _refuse_time(timestamp, request.received_wall, window_s, skew_s)
    if late is not None:
        return late
    if len(nonce) != 1 or _NONCE.fullmatch(nonce[0]) is None:
        return refuse_replay("nonce_missing" if not nonce else "nonce_malformed", window_s)
    return Stamp(
        timestamp[0],
        nonce[0],
        key,
        signatures,
        _matching(request.headers.get(b"x-correlation-id"), _CORRELATION),
        _traceparent(request.headers.get(b"traceparent")),
    )


def _read_key(request: Request) -> bytes | Refused | None:
    """The explicit idempotency key; GW-015 for one of a wrong form, for two, and for an API version we do not speak."""
    keys = request.values(b"idempotency-key")
    others = request.values(b"x-idempotency-key")
    key: bytes | None = None
    if keys or others:
        key = (keys or others)[0]
        if len(keys) > 1 or len(others) > 1 or (keys and others and keys != others):
            return Refused("GW-015", {"reason": "more than one idempotency key"})
        if _KEY.fullmatch(key) is None:
            return Refused("GW-015", {"reason": "Idempotency-Key must be 1 to 255 visible ASCII characters"})
    version = request.values(b"x-api-version")
    if version and (len(version) > 1 or version[0] not in _VERSIONS):
        return Refused("GW-015", {"reason": "X-API-Version must be 1, 1.0 or 1.0.0"})
    return key


def refuse_signature(request: Request) -> Refused:
    """GW-001: the same answer whatever is wrong with the signature."""
    length = sum(len(value) for value in request.values(b"x-signature"))
    return Refused("GW-001", {"expected_format": EXPECTED_FORMAT, "signature_len": length})


def refuse_replay(reason: str, window_s: float, **details: object) -> Refused:
    """GW-002 for `reason`; further details as given."""
    members = {"reason": reason, "window_sec": window_s, **details}
    return Refused("GW-002", members, logged={k: v for k, v in members.items() if k != "original_corr_id"})


def _refuse_time(values: list[bytes], now: Wall, window_s: float, skew_s: float) -> Refused | None:
    if not values:
        return refuse_replay("timestamp_missing", window_s)
    text = values[0].decode("latin-1")
    instant = parse_header_time(text) if len(values) == 1 else None
    if instant is None:
        # What is no timestamp is not shown: it is anything that an unauthenticated client cared to send.
        return refuse_replay("timestamp_malformed", window_s)
    ahead_s = instant - now
    # Back, whole seconds are compared: a client that writes no fraction is up to one second older than it is.
    if instant - math.floor(now) >= -window_s and ahead_s <= skew_s:
        return None
    reason = "timestamp_in_future" if ahead_s > 0 else "timestamp_too_old"
    return refuse_replay(reason, window_s, timestamp_provided=text[:_MAX_SHOWN], clock_skew_ms=round(ahead_s * 1000))


def _matching(value: bytes | None, form: re.Pattern[bytes]) -> str | None:
    return value.decode("ascii") if value is not None and form.fullmatch(value) else None


def _traceparent(value: bytes | None) -> bytes | None:
    """A W3C trace context of version 00, passed on as it came; anything else is as if it were absent."""
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None
