"""
Secrets taken out of texts that are about to be logged. Pure.

Decides in which forms a secret is looked for, and how much of a value is shown at all. Never decides what is logged.
"""

import base64
import math
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gatewayd.lines import ENCODER

_TEXT_CHARS: Final = 8192
_MEMBERS: Final = 64


class Redactor:
    """
    Replaces the secrets it knows in anything that is about to be logged.

    Each secret is looked for as it is, escaped as Python and JSON do, percent-encoded, in hex, and in base64 at any of
    the three alignments. Secrets under 6 bytes are left out: they could not be told from ordinary words.
    """

    LEAST_BYTES = 6

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        self._forms: tuple[str, ...] = ()
        self.renew(secrets)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._forms)} texts>"

    def renew(self, secrets: Iterable[bytes]) -> None:
        """Know these secrets from now on, and no others."""
        forms: set[str] = set()
        for secret in secrets:
            if len(secret) >= self.LEAST_BYTES:
                forms.update(_secret_forms(secret))
        # The longest first: a secret may be a part of another.
        self._forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))

    def clean(self, text: str) -> str:
        """`text` with every secret in it replaced."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, "[redacted]")
        return text

    def bounded(self, text: str, most: int = _TEXT_CHARS) -> str:
        """`text` cleaned, cut to `most` characters, and without lone surrogates, which no encoder takes."""
        text = self.clean(text)
        if len(text) > most:
            text = f"{text[:most]}..."
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

    def plain(self, value: object, depth: int = 4) -> Any:
        """`value` as a JSON value, bounded, with every text in it cleaned; None when it is not one."""
        if isinstance(value, str):
            return self.bounded(value)
        if isinstance(value, int):
            return value if -(2**63) <= value < 2**63 else str(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if depth and isinstance(value, list | tuple):
            return [self.plain(member, depth - 1) for member in value[:_MEMBERS]]
        if depth and isinstance(value, Mapping):
            members = list(value.items())[:_MEMBERS]
            return {self.bounded(str(name), 128): self.plain(member, depth - 1) for name, member in members}
        return None


def _secret_forms(secret: bytes) -> set[str]:
    plain = secret.decode("utf-8", "backslashreplace")
    forms = {plain, secret.decode("latin-1"), repr(secret)[2:-1], ENCODER.encode(plain)[1:-1].decode()}
    forms |= {urllib.parse.quote(secret, safe) for safe in ("", "/", "!'()*")} | {urllib.parse.quote_plus(secret)}
    forms |= {secret.hex(), secret.hex().upper()}
    for shift in range(3):
        # Of base64 at another alignment, what does not depend on the neighbours: whole groups of 6 bits.
        first = -(-shift * 8 // 6)
        last = (shift + len(secret)) * 8 // 6
        core = base64.b64encode(bytes(shift) + secret).decode()[first:last]
        forms |= {core, core.replace("+", "-").replace("/", "_")}
    return forms
