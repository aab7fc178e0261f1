"""
A protocol in front of nats-py's own: what the inlet takes out of a read is handed on in the turn in which it came.

Decides nothing. Never keeps a byte, never writes one.
"""

import asyncio
from collections.abc import Callable

from gatewayd.bus.inlet import Acks, Delivery, Inlet


class Sieve(asyncio.Protocol):
    """
    In front of the protocol that nats-py reads from: acknowledgements go to the listener in the very turn in which
    they come in, everything else goes on as it came. The rest of nats-py notices nothing.
    """

    def __init__(
        self,
        behind: asyncio.Protocol,
        inlet: Inlet,
        acknowledged: Callable[[Acks], object],
        deliver: Callable[[Delivery], object],
    ) -> None:
        self._feed = inlet.feed
        self._acknowledged = acknowledged
        self._deliver = deliver
        self._pass_on = behind.data_received
        self.eof_received = behind.eof_received  # type: ignore[method-assign]
        self.connection_lost = behind.connection_lost  # type: ignore[method-assign]
        self.pause_writing = behind.pause_writing  # type: ignore[method-assign]
        self.resume_writing = behind.resume_writing  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        acks, deliveries, rest = self._feed(data)
        if acks:
            self._acknowledged(acks)
        for delivery in deliveries:
            self._deliver(delivery)
        if rest:
            self._pass_on(rest)
