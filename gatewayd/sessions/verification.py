"""
Whether a signed request may pass: every check, in the order of the contract. Pure.

Decides which refusal a request gets that is wrong in several ways. Never decides what a request does.

The order: version, session, payload hash, signature, freshness, replay, limits. An unknown session is answered where a
wrong signature is, with the same words after the same work, and not before: a wrong payload hash gets its answer in
both cases, or it would tell everybody which sessions there are.
"""

from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gatewayd.sessions.endings import (
    AUTHENTICATION_FAILED,
    NOT_FRESH,
    REPLAYED,
    REVOKED,
    UNSUPPORTED_VERSION,
    Ending,
    malformed,
)
from gatewayd.sessions.limits import Limits
from gatewayd.sessions.signing import request_input, verify
from gatewayd.sessions.values import Envelope, Session
from gatewayd.times import Monotonic, Wall

VERSION: Final = "v1"
_WRONG_HASH: Final = malformed("payload_hash", "is not the SHA-256 of payload_bytes")


class Sessions(Protocol):
    """What verification needs of sessions.cache; the docstrings are there."""

    def fresh(self, device_session_id: str) -> Session | Ending | None:
        """What memory says."""

    def read(self, device_session_id: str) -> Awaitable[Session | Ending | None]:
        """What Redis says."""

    def revoked(self, device_session_id: str) -> bool:
        """Whether it is known to be revoked."""


class Reserve(Protocol):
    """What verification needs of sessions.reservations."""

    def __call__(
        self, device_session_id: str, request_id: str, timestamp_ms: int, now_ms: int
    ) -> Awaitable[Ending | None]:
        """Reserve a request's id, or say why it cannot pass."""


class Verification:
    """
    The checks. `window_ms` is how far a timestamp may be from `wall`, in either direction; `replayed` is called for
    each request whose id was used before.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        reserve: Reserve,
        limits: Limits,
        window_ms: int,
        now: Callable[[], Monotonic],
        wall: Callable[[], Wall],
        replayed: Callable[[], None],
    ) -> None:
        self._sessions = sessions
        self._reserve = reserve
        self._limits = limits
        self._window_ms = window_ms
        self._now = now
        self._wall = wall
        self._replayed = replayed
        # Nobody has its private half; and no answer depends on what it says.
        self._nobody = Ed25519PrivateKey.generate().public_key().public_bytes_raw()

    async def verify(self, envelope: Envelope) -> Session | Ending:
        """
        The session that signed this request, which may pass now and never again; else why not.

        The same for a command and for the opening of a stream, whatever its message type. The request's id is used up
        once its signature and its time are right, also when a limit refuses it then.
        """
        if envelope.protocol_version != VERSION:
            return UNSUPPORTED_VERSION
        session = await self._authenticate(envelope)
        if isinstance(session, Ending):
            return session
        now_ms = int(self._wall() * 1000)
        if abs(envelope.timestamp_ms - now_ms) > self._window_ms:
            return NOT_FRESH
        refused = await self._reserve(envelope.device_session_id, envelope.request_id, envelope.timestamp_ms, now_ms)
        if refused is REPLAYED:
            self._replayed()
        if refused is not None:
            return refused
        if self._sessions.revoked(envelope.device_session_id):  # while Redis was asked
            return REVOKED
        return self._limits.take(session, envelope.message_type, self._now()) or session

    async def _authenticate(self, envelope: Envelope) -> Session | Ending:
        """The session that signed; Redis is asked at most once, and always before a refusal that depends on a key."""
        sessions, name = self._sessions, envelope.device_session_id
        found = sessions.fresh(name)
        asked = found is None
        if asked:
            found = await sessions.read(name)
        if isinstance(found, Ending):
            return found
        if found is not None and found.revoked:
            return REVOKED
        if sha256(envelope.payload).digest() != envelope.payload_hash:
            return _WRONG_HASH if asked else await self._confirm(name, _WRONG_HASH)
        key = self._nobody if found is None else found.client_public_key
        signed = verify(key, envelope.signature, request_input(envelope))
        if signed and found is not None:
            return found
        return AUTHENTICATION_FAILED if asked else await self._confirm(name, AUTHENTICATION_FAILED)

    async def _confirm(self, device_session_id: str, refusal: Ending) -> Ending:
        """The refusal of a session from memory: of an unknown one Redis would have been asked, so it is here too."""
        found = await self._sessions.read(device_session_id)
        if isinstance(found, Ending):
            return found
        return REVOKED if found is not None and found.revoked else refusal
