"""
Client addresses: who is behind a proxy, and how much one address may ask for. Pure.

Decides which address a request counts as, and whether that address has a token left. Never trusts a forwarded
header that did not come from a configured proxy.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

from gatewayd.ingress.admission import Buckets, Limit, Limited
from gatewayd.times import Monotonic

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_FORWARDED_PORT: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|(\d+\.\d+\.\d+\.\d+):\d+", re.ASCII)
MAX_HOPS_READ: Final = 32


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> Address | None:
    """The address a text names; an IPv4 address mapped into IPv6 is that IPv4 address; None when it is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def contains(networks: Sequence[Network], text: str) -> bool:
    """True when one of the networks holds the address; false for a text that is no address."""
    if not networks:
        return False
    address = parse_ip(text)
    return address is not None and any(address in network for network in networks)


@dataclass(frozen=True, slots=True)
class Proxies:
    """
    Whose X-Forwarded-For is believed: that of the proxies' networks, or of the last `hops` proxies. With both, hops
    count only from a peer in the networks. `protocol`: what the networks connect begins with a PROXY header.
    """

    networks: tuple[Network, ...] = ()
    hops: int = 0
    protocol: bool = False

    def client(self, peer: str, forwarded: Sequence[bytes]) -> str:
        """
        The client's address: the right-most entry of X-Forwarded-For that no trusted proxy added, else the peer.

        A peer that is no trusted proxy is the client, whatever it claims; so is anything that is no address.
        """
        if not forwarded or not self._is_proxy(peer):
            return peer
        entries = b",".join(forwarded).decode("latin-1").split(",")[-MAX_HOPS_READ:]
        client = peer
        for index, entry in enumerate(reversed(entries)):
            trusted = index < self.hops if self.hops else contains(self.networks, client)
            if not trusted:
                break
            text = entry.strip()
            ported = _FORWARDED_PORT.fullmatch(text)
            if ported is not None:
                text = ported[1] or ported[2]
            if parse_ip(text) is None:
                break
            client = text
        return client

    def trusted(self, peer: str, forwarded: Sequence[bytes]) -> bool:
        """False when the request passed a proxy that is not ours to believe."""
        return not forwarded or self._is_proxy(peer)

    def announces(self, peer: str) -> bool:
        """True when the peer's connections must begin with a PROXY header."""
        return self.protocol and contains(self.networks, peer)

    def _is_proxy(self, peer: str) -> bool:
        return contains(self.networks, peer) if self.networks else bool(self.hops)


@lru_cache(maxsize=4096)
def bucket_name(client: str) -> str:
    """What one client's requests are counted under: the address; of IPv6 its /64, which is what one client gets."""
    address = parse_ip(client)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address) >> 64 << 64, 64)))
    return client


class AddressBuckets(Buckets):
    """A token bucket for each address (see bucket_name)."""

    def __init__(self, bound: int = 10_000) -> None:
        super().__init__(bound)

    def take(self, client: str, limit: Limit, now: Monotonic) -> Limited | None:
        """Take one token of the client's address at `now`; a Limited when there is none."""
        return super().take(bucket_name(client), limit, now)
