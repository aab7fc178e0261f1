"""
Bytes by their numbers, for questions like `SLASH in path`. Pure.

Decides nothing. CPython answers `47 in path` in 0.03 us; for `b"/" in path` it first makes and drops an exception that
says that b"/" is no number, which takes 0.5.
"""

from typing import Final

HASH: Final = 0x23
PERCENT: Final = 0x25
COMMA: Final = 0x2C
SLASH: Final = 0x2F
BACKSLASH: Final = 0x5C
UNDERSCORE: Final = 0x5F
