"""
The PROXY protocol's header, versions 1 and 2, as a proxy sends it before the first byte of its client. Pure.

Decides which address a header carries and where it ends. Never guesses whether there is one: who calls it knows that
there must be, since a client could send one as well as a proxy (haproxy's proxy-protocol.txt, section 2).
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

MAX_V1_BYTES: Final = 107
"""The longest line of version 1, its CRLF included (section 2.1)."""

MAX_V2_BYTES: Final = 4096
"""What is read of version 2: 16 bytes, addresses, and what proxies add to them (at the most a certificate)."""

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_LINE: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|(TCP4|TCP6) ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39})"
    rb" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\r\n"
)
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21
_OTHERS: Final = frozenset({0x00, 0x12, 0x22, 0x31, 0x32})
"""Unspecified, UDP over either IP, UNIX streams and datagrams: the connection goes on as the proxy's own."""


@dataclass(frozen=True, slots=True)
class Carried:
    """
    The client's `address` (an IPv4 address mapped into IPv6 is that IPv4 address) and `port`; "" and 0 where the
    connection is the proxy's own, or it does not know whose. `size`: the header's bytes; the client's follow.
    """

    address: str
    port: int
    size: int


@dataclass(frozen=True, slots=True)
class Broken:
    """What came is no header; `reason` says why, in words of ours only."""

    reason: str


def read_header(data: bytes) -> Carried | Broken | None:
    """The header that `data` begins with; None while it is not complete, for MAX_V2_BYTES at the most."""
    if data.startswith(_V1[: len(data)]):
        return _read_v1(data)
    if data.startswith(_V2[: len(data)]):
        return _read_v2(data)
    return Broken("missing")


def _read_v1(data: bytes) -> Carried | Broken | None:
    end = data.find(b"\n", 0, MAX_V1_BYTES) + 1
    if not end:
        return Broken("too long") if len(data) >= MAX_V1_BYTES else None
    found = _LINE.fullmatch(data, 0, end)
    if found is None:
        return Broken("malformed")
    if found[1] is None:
        return Carried("", 0, end)
    kind = IPv4Address if found[1] == b"TCP4" else IPv6Address
    try:
        client, _ = (kind(text.decode("ascii")) for text in found.group(2, 3))
    except ValueError:
        return Broken("malformed")
    if max(int(found[4]), int(found[5])) > 65535:
        return Broken("malformed")
    return Carried(_text(client), int(found[4]), end)


def _read_v2(data: bytes) -> Carried | Broken | None:
    if len(data) < 16:
        return None
    command, family = data[12], data[13]
    size = 16 + int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        return Broken("malformed")
    if size > MAX_V2_BYTES:
        return Broken("too long")
    if command == _PROXY:
        needed = {_TCP4: 12, _TCP6: 36}.get(family, 0)
        if size - 16 < needed or (not needed and family not in _OTHERS):
            return Broken("malformed")
    if len(data) < size:
        return None
    if command == _LOCAL or family in _OTHERS:
        return Carried("", 0, size)
    if family == _TCP4:
        return Carried(str(IPv4Address(data[16:20])), int.from_bytes(data[24:26], "big"), size)
    return Carried(_text(IPv6Address(data[16:32])), int.from_bytes(data[48:50], "big"), size)


def _text(address: IPv4Address | IPv6Address) -> str:
    mapped = getattr(address, "ipv4_mapped", None)
    return str(address if mapped is None else mapped)
