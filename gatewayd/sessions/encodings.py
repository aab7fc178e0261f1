"""
Bytes as text, read strictly: one text for each value, so that what was compared or counted once cannot come again in
another spelling. Pure.

Decides which texts are base64. Never decides how much of it is too much.
"""

from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode


def write_base64url(value: bytes) -> str:
    """RFC 4648, section 5, without padding."""
    return urlsafe_b64encode(value).rstrip(b"=").decode()


def read_base64url(text: str) -> bytes | None:
    """What write_base64url made this text of; None for padding, foreign characters and unused bits that are set."""
    try:
        value = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    # The decoder skips what it does not know and drops unused bits: only the way back tells.
    return value if write_base64url(value) == text else None


def write_base64(value: bytes) -> str:
    """RFC 4648, section 4, with padding."""
    return b64encode(value).decode()


def read_base64(text: str) -> bytes | None:
    """What write_base64 made this text of; None for every other text."""
    try:
        value = b64decode(text)
    except ValueError:
        return None
    return value if write_base64(value) == text else None
