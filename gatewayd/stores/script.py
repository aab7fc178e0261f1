"""
Lua scripts of this package, one file each in gatewayd/stores/lua.

Decides where a script's text is found and what it is called by on the server. Never runs one (the link does).
"""

from dataclasses import dataclass
from hashlib import sha1
from importlib import resources
from typing import Self


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its name, its text, and the SHA-1 in hex under which EVALSHA knows it."""

    name: str
    text: bytes
    sha: bytes

    @classmethod
    def of(cls, name: str) -> Self:
        """The script in lua/<name>.lua; FileNotFoundError when the package has none of this name."""
        text = resources.files("gatewayd.stores").joinpath("lua", f"{name}.lua").read_bytes()
        # Redis' own naming of scripts; nothing rests on its strength.
        return cls(name, text, sha1(text, usedforsecurity=False).hexdigest().encode("ascii"))
