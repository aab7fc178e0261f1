"""
Secrets that are recognised wherever they turn up: as they are, encoded, backwards, and in pieces.

A canary is made of letters and digits that stand in no other text by chance.
"""

import base64
import re
import secrets
from collections.abc import Iterable, Mapping
from itertools import pairwise

PIECE_BYTES = 8
"""Pieces from this length on count as found."""


def canary(name: str) -> str:
    """A secret of 44 characters that is found again."""
    return f"{name[:4]}{secrets.token_hex(20)}"


def _windows(text: str, size: int) -> set[str]:
    return {text[at : at + size] for at in range(len(text) - size + 1)}


def forms(secret: str) -> dict[str, set[str]]:
    """What to look for, by name: each set covers every piece of PIECE_BYTES bytes of the secret in that form."""
    raw = secret.encode()
    found = {
        "plain": _windows(secret, PIECE_BYTES),
        "upper case": _windows(secret.upper(), PIECE_BYTES),
        "reversed": _windows(secret[::-1], PIECE_BYTES),
        "hex": _windows(raw.hex(), 2 * PIECE_BYTES),
        "upper hex": _windows(raw.hex().upper(), 2 * PIECE_BYTES),
        "percent": {
            text for piece in _windows(secret, PIECE_BYTES) for text in (_percent(piece), _percent(piece.upper()))
        },
        "bytes": {", ".join(str(byte) for byte in piece.encode()) for piece in _windows(secret, PIECE_BYTES)},
    }
    base = set()
    for shift in range(3):
        # What does not depend on the neighbours: whole groups of 6 bits.
        text = base64.b64encode(bytes(shift) + raw).decode()[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6]
        base |= _windows(text, -(-PIECE_BYTES * 8 // 6)) | _windows(text[::-1], -(-PIECE_BYTES * 8 // 6))
    found["base64"] = base | {text.replace("+", "-").replace("/", "_") for text in base}
    return found


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


# Where a form could stand at all, so that megabytes of log come down to what is worth looking through.
_WORDS = re.compile(r"[A-Za-z0-9+/=_-]{8,}|(?:%[0-9A-F]{2}){8,}|\d+(?:, \d+){7,}")


def leaks(canaries: Mapping[str, str], texts: Mapping[str, str | bytes]) -> list[str]:
    """Which canary stands where and how: one line for each, without the secret itself."""
    found = []
    for place, text in texts.items():
        words = set(_WORDS.findall(text.decode("latin-1") if isinstance(text, bytes) else text))
        haystack = "\n".join(words)
        for name, secret in canaries.items():
            for form, pieces in forms(secret).items():
                if any(piece in haystack for piece in pieces):
                    found.append(f"{name} in {place} ({form})")
    return found


def plant(secret: str) -> Iterable[tuple[str, str]]:
    """Texts in which the secret, or a piece of it, stands in each form; for the test of the search itself."""
    raw = secret.encode()
    for start in (0, 1, 13, len(raw) - PIECE_BYTES):
        piece = raw[start : start + PIECE_BYTES]
        yield "plain", f'{{"a":"{piece.decode()}"}}'
        yield "upper case", piece.decode().upper()
        yield "reversed", piece.decode()[::-1]
        yield "hex", f"x'{piece.hex()}'"
        yield "upper hex", piece.hex().upper()
        yield "percent", "".join(f"%{byte:02X}" for byte in piece)
        yield "bytes", str(list(piece))
    for before in ("", "a", "ab", "abc"):
        yield "base64", base64.b64encode((before + secret + "tail").encode()).decode()
        yield "base64", base64.urlsafe_b64encode((before + secret).encode()).decode()[3:]
    assert all(one != other for one, other in pairwise(secret[index : index + 8] for index in range(20)))
