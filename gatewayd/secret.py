"""
Secrets as values that do not show themselves. Pure.

Decides how a secret looks in a log, an error or a dump (only its length, nothing that could be tried offline) and
which secrets are known to be weak. Never decides what a secret is used for.
"""

from collections.abc import Sequence
from typing import Final

STRONG_BYTES: Final = 32
"""HMAC-SHA256 keys shorter than its output are discouraged (RFC 2104, section 3)."""

# What documents, samples and tutorials print, lower case: an attacker tries these first.
_PUBLISHED: Final = frozenset(
    b"""
    your-secret-key your-256-bit-secret your-secret your-webhook-secret your-hmac-secret your_secret_key your_secret
    a-string-secret-at-least-256-bits-long old-secret new-secret changeme change-me change_me secret secret-key
    secretkey supersecret super-secret my-secret my-secret-key mysecret test-secret test test-key dev-secret
    development-secret webhook-secret hmac-secret shared-secret password password123 example example-secret default
    <from-secrets-manager> <secret> placeholder replace-me replaceme 0123456789abcdef0123456789abcdef
    """.split()
)


class Secret:
    """Bytes that are never shown: repr and str say only how many there are, and reveal() gives them."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The secret itself."""
        return self._value

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self._value)

    def weakness(self) -> str:
        """Why it is easily guessed; "" when nothing is known against it."""
        if self._value.strip().lower() in _PUBLISHED:
            return "is a published sample value"
        if len(self._value) < STRONG_BYTES:
            return f"has {len(self._value)} bytes, fewer than {STRONG_BYTES}"
        if len(set(self._value)) < 4:
            return "repeats a few characters"
        return ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"<Secret: {len(self._value)} bytes>"


def show_secrets(secrets: Sequence[Secret]) -> str:
    """How many secrets there are and how long, "" for none; no digest either."""
    sizes = [str(secret.size) for secret in secrets]
    if not sizes:
        return ""
    if len(sizes) == 1:
        return f"<set: 1 secret, {sizes[0]} bytes>"
    return f"<set: {len(sizes)} secrets, {', '.join(sizes[:-1])} and {sizes[-1]} bytes>"
