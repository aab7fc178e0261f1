"""
Who signed a request. Pure.

Decides the form of X-Signature and which secret, if any, made it, over the raw bytes, before anything is parsed.
Never sees a source's settings (the pipeline does), never keeps or shows a secret.
"""

import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgspec

from gatewayd.octets import COMMA

MAX_SIGNATURES: Final = 5
_BLOCK_BYTES: Final = 64  # of SHA-256


class Signed(msgspec.Struct, frozen=True, gc=False):
    """What a signature may cover: header texts verbatim, `key` b"" when no Idempotency-Key was sent."""

    timestamp: bytes
    nonce: bytes
    key: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Scheme:
    """
    One way to sign. `message` makes the bytes that are signed; `binds_headers` says that time, nonce and key are among
    them, so that a copy of the request cannot be given fresh ones.
    """

    name: str
    message: Callable[[Signed], bytes]
    binds_headers: bool


def _compat_message(signed: Signed) -> bytes:
    return signed.body


def _v1_message(signed: Signed) -> bytes:
    # Header texts cannot hold LF, so nothing is ambiguous.
    return b"%b\n%b\n%b\n%b" % (signed.timestamp, signed.nonce, signed.key, signed.body)


SCHEMES: Final[Mapping[bytes, Scheme]] = {
    b"v1": Scheme("v1", _v1_message, binds_headers=True),
    b"sha256": Scheme("sha256", _compat_message, binds_headers=False),
}
"""Schemes by the word before "=", the stronger first: where a request is signed both ways, that one counts."""

EXPECTED_FORMAT: Final = "sha256=<64 hex digits> or v1=<64 hex digits>, up to 5 separated by commas"

_VALUE = rb"(?:%b)=[0-9A-Fa-f]{64}" % b"|".join(SCHEMES)
_HEADER: Final = re.compile(rb"%b(?:,[ \t]*%b){0,%d}" % (_VALUE, _VALUE, MAX_SIGNATURES - 1))
_ONE: Final = re.compile(rb"(\w+)=([0-9A-Fa-f]{64})")


class SigningKey:
    """
    One secret, ready to sign: the two halves of HMAC-SHA256's key schedule (RFC 2104) are hashed once, which leaves
    0.9 of 2.0 us a signature.

    `source` is the source that the secret is bound to, None for a shared one; `number` its place in its list from 1
    on, which is all that logs and metrics show of it.
    """

    __slots__ = ("_inner", "_outer", "number", "source")

    def __init__(self, secret: bytes, source: str | None, number: int) -> None:
        block = (secret if len(secret) <= _BLOCK_BYTES else sha256(secret).digest()).ljust(_BLOCK_BYTES, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))
        self.source = source
        self.number = number

    def mac(self, message: bytes) -> bytes:
        """HMAC-SHA256 of the message: 32 bytes."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()

    def __repr__(self) -> str:
        return f"<SigningKey {self.number} of {self.source or 'all sources'}>"


class Authenticated(msgspec.Struct, frozen=True, gc=False):
    """A signature that matched: under which scheme, made with which secret."""

    scheme: Scheme
    key: SigningKey


def parse_signatures(header: bytes) -> dict[bytes, list[bytes]] | None:
    """X-Signature -> digests (32 bytes) by scheme word; None when any part of it has another form."""
    if COMMA not in header:  # the usual one value, without a regular expression: 2.1 -> 0.9 us
        return _parse_one(header)
    if _HEADER.fullmatch(header) is None:
        return None
    found: dict[bytes, list[bytes]] = {}
    for word, value in _ONE.findall(header):
        found.setdefault(word, []).append(bytes.fromhex(value.decode("ascii")))
    return found


def _parse_one(header: bytes) -> dict[bytes, list[bytes]] | None:
    word, _, value = header.partition(b"=")
    if len(value) != 64 or word not in SCHEMES:
        return None
    try:
        digest = bytes.fromhex(value.decode("ascii"))
    except ValueError:  # neither hex nor ASCII
        return None
    return {word: [digest]} if len(digest) == 32 else None  # fromhex() skips blanks


def verify(
    signatures: Mapping[bytes, Sequence[bytes]], keys: Sequence[SigningKey], allowed: frozenset[str], signed: Signed
) -> Authenticated | None:
    """
    The scheme and secret that made one of the signatures, among `allowed` schemes; None when there is none.

    Every key is tried against every signature in constant time and without early exit, so that the answer's time says
    nothing about how much of a signature was right or which secret it was compared with.
    """
    matched: Authenticated | None = None
    for word, scheme in SCHEMES.items():
        given = signatures.get(word)
        if given is None or scheme.name not in allowed:
            continue
        message = scheme.message(signed)
        for key in keys:
            mac = key.mac(message)
            for value in given:
                if hmac.compare_digest(mac, value) and matched is None:
                    matched = Authenticated(scheme, key)
    return matched


def sign(scheme: str, secret: bytes, signed: Signed) -> bytes:
    """The X-Signature value for one request under `scheme` ("v1" or "sha256"). KeyError for another scheme."""
    word = scheme.encode("ascii")
    return b"%b=%b" % (word, hmac.digest(secret, SCHEMES[word].message(signed), "sha256").hex().encode("ascii"))
