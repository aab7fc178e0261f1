"""
How many connections there may be, of all clients and of one.

Decides who a connection's client is, and whether another one has room, for all listeners that share the process's
descriptors. Never closes one.
"""

from ipaddress import IPv6Address
from typing import Any


def peer_of(addr: Any) -> str:
    """
    The client's address, "" where it has none. On a socket that takes IPv4 and IPv6, as systemd makes of a bare port,
    an IPv4 client is the same one as elsewhere.
    """
    peer: str = getattr(addr, "host", "")
    return peer[7:] if peer.startswith("::ffff:") and "." in peer else peer


class Capacity:
    """
    Room for `connections`, and for `per_address` of them from one client address (of IPv6 its /64). `open` counts those
    that were added, `refused` those that had no room; `arriving` is kept by whoever awaits a connection's PROXY header,
    which says whose it is.
    """

    def __init__(self, connections: int = 10_000, per_address: int = 2000) -> None:
        self._connections = connections
        self._per_address = per_address
        self._by_client: dict[str, int] = {}
        self.open = 0
        self.arriving = 0
        self.refused = 0

    @property
    def clients(self) -> int:
        """Client addresses that have a connection."""
        return len(self._by_client)

    def admits(self, peer: str = "") -> bool:
        """False, which is counted, when a connection from `peer`, "" while its address is unknown, is one too many."""
        full = self.open + self.arriving >= self._connections
        if full or self._by_client.get(_client(peer), 0) >= self._per_address:
            self.refused += 1
            return False
        return True

    def add(self, peer: str) -> None:
        """There is a connection; one that has no address counts for no client."""
        self.open += 1
        if peer:
            client = _client(peer)
            self._by_client[client] = self._by_client.get(client, 0) + 1

    def discard(self, peer: str) -> None:
        """A connection that was added is gone."""
        self.open -= 1
        if peer:
            client = _client(peer)
            left = self._by_client[client] - 1
            if left:
                self._by_client[client] = left
            else:
                del self._by_client[client]


def _client(peer: str) -> str:
    """What one client's connections are counted under: its address; of IPv6 its /64, which is what one client gets."""
    return f"{int(IPv6Address(peer.partition('%')[0])) >> 64:x}" if ":" in peer else peer
