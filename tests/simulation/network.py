"""
The way between gatewayd and nats-server, and what can happen on it, byte by byte.

Decides when bytes arrive, which of them are lost with their connection, and what a cut cuts off; every number comes
from the world's generator. The real NATS client is at the one end, the model server at the other.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from random import Random
from typing import Any, Final

from tests.simulation.jetstream import Connection, Server
from tests.simulation.timeline import EventLoop, Timeline

_SOCKET_BYTES: Final = 200_000
_SPLIT: Final = 0.05
"""The share of writes that arrive in two pieces, cut at any byte."""


class Network:
    """
    The connections of every process to the one server. `wires` are those that are open.

    `slow_until` and `slow_s`: the server answers so much later until then (a disk that takes its time).
    """

    def __init__(self, timeline: Timeline, server: Server, rng: Random) -> None:
        self.timeline = timeline
        self.server = server
        self.rng = rng
        self.wires: list[Wire] = []
        self.slow_until = 0.0
        self.slow_s = 0.0
        self.made = 0

    async def connect(self, loop: EventLoop, factory: Callable[[], Any]) -> tuple["Wire", Any]:
        """A connection of that process; refused while the server is down, and to the dead."""
        await asyncio.sleep(self.rng.uniform(0.0002, 0.002))
        if loop.dead or not self.server.up:
            raise ConnectionRefusedError(111, "Connect call failed")
        protocol = factory()
        wire = Wire(self, loop, protocol)
        self.made += 1
        wire.number = self.made
        self.wires.append(wire)
        protocol.connection_made(wire)
        wire.far = self.server.accept(wire.answer)
        return wire, protocol

    def way_s(self) -> float:
        """How long bytes are on their way: mostly under a millisecond, now and then a hundred times that."""
        drawn = self.rng.random()
        if drawn < 0.98:
            return 0.0001 + 0.0008 * drawn
        return 0.001 + (drawn - 0.98) * 4.0

    def kill_server(self) -> None:
        """The server ends: of what is on its way a part arrives, then every connection is reset."""
        for wire in list(self.wires):
            wire.cut(at_once=True)
        self.server.kill()

    def lose_process(self, loop: EventLoop) -> None:
        """The process ends: the kernel sends what it has, perhaps not all, and closes."""
        for wire in [wire for wire in self.wires if wire.loop is loop]:
            wire.cut()


class Wire(asyncio.Transport):
    """One connection: the transport that asyncio's streams have, with the server's end in `far`."""

    def __init__(self, network: Network, loop: EventLoop, protocol: Any) -> None:
        super().__init__()
        self.network = network
        self.loop = loop
        self.far: Connection = None  # type: ignore[assignment]  # set when the server has accepted
        self.number = 0
        self.stalled_until = 0.0
        self._protocol = protocol
        self._closing = False
        self._paused = False
        self._held: deque[bytes] = deque()
        self._out_at = self._in_at = 0.0
        self._out_left = self._in_left = inf
        self._flying: deque[bytes] = deque()  # on their way to the server
        self._out = 0
        self._in = 0
        self._is_cut = False

    # what asyncio calls

    def write(self, data: bytes) -> None:  # type: ignore[override]
        """Send; in two pieces now and then."""
        if self._closing or not data:
            return
        rng = self.network.rng
        if rng.random() < _SPLIT and len(data) > 1:
            at = rng.randrange(1, len(data))
            self._push(data[:at])
            data = data[at:]
            # The second half is lost on the way and sent again, now and then: another connection overtakes it.
            self._out_at += rng.choice((0.0, 0.0, 0.002, 0.03)) * rng.random()
        self._push(data)

    def _push(self, data: bytes) -> None:
        timeline = self.network.timeline
        at = timeline.now + self.network.way_s()
        self._out_at = max(self._out_at, at, self.stalled_until)
        self._out += len(data)
        self._flying.append(data)
        timeline.at(self._out_at, self._arrive)

    def writelines(self, lines: Any) -> None:
        """Send them as one."""
        self.write(b"".join(lines))

    def abort(self) -> None:
        """Close now; what was written may still arrive, all of it or a part."""
        self._end(None)

    def close(self) -> None:
        """Close behind what was written."""
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        network = self.network
        if self in network.wires:
            network.wires.remove(self)
        if not self._is_cut:
            self._close_far(network.rng.randint(0, self._out) if network.rng.random() < 0.25 else self._out)
        self.loop.call_soon(self._protocol.connection_lost, error)

    def is_closing(self) -> bool:
        """True once it is closed."""
        return self._closing

    def get_write_buffer_size(self) -> int:
        """What the socket does not take."""
        return max(0, self._out - _SOCKET_BYTES)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Nothing."""
        del name
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As it is."""

    def get_protocol(self) -> Any:
        """The stream's."""
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        """Another one in its place."""
        self._protocol = protocol

    def pause_reading(self) -> None:
        """Keep what comes."""
        self._paused = True

    def resume_reading(self) -> None:
        """Hand on what was kept."""
        self._paused = False
        self.loop.call_soon(self._hand_on)

    def _hand_on(self) -> None:
        while self._held and not self._paused and not self._closing:
            self._protocol.data_received(self._held.popleft())

    # what arrives

    def _arrive(self) -> None:
        """At the server."""
        if not self._flying:
            return
        data = self._flying.popleft()
        self._out -= len(data)
        if self._out_left < len(data):
            data = data[: int(self._out_left)]
        self._out_left -= len(data)
        if data:
            self.far.received(data)

    def _close_far(self, left: int) -> None:
        """The server hears of the end behind `left` bytes more."""
        self._out_left = left
        self.far.left = True
        now = self.network.timeline.now
        self.network.timeline.at(max(now, self._out_at) + self.network.way_s(), self.far.closed)

    def answer(self, data: bytes) -> None:
        """The server writes."""
        network = self.network
        now = network.timeline.now
        at = now + network.way_s()
        if now < network.slow_until:
            at += network.slow_s * network.rng.random()
        self._in_at = max(self._in_at, at, self.stalled_until)
        self._in += len(data)
        self.loop.arrive(self._in_at, self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        """At the client."""
        self._in -= len(data)
        if self._in_left < len(data):
            data = data[: int(self._in_left)]
        self._in_left -= len(data)
        if self._closing or not data:
            return
        if self._paused or self._held:
            self._held.append(data)
        else:
            self._protocol.data_received(data)

    # what befalls it

    def stall(self, seconds: float) -> None:
        """Nothing arrives on either side for a while; everything does afterwards."""
        self.stalled_until = self.network.timeline.now + seconds

    def cut(self, *, at_once: bool = False) -> None:
        """
        A reset somewhere on the way: of what is under way either side gets a part, to any byte. `at_once`: the server
        reads its part now, for it will not live to read it later.
        """
        network = self.network
        if self._closing or self._is_cut:
            return
        self._is_cut = True
        left = network.rng.randint(0, self._out)
        self._in_left = network.rng.randint(0, self._in)
        if at_once:
            arrived = b"".join(self._flying)[:left]
            self._flying.clear()
            self._out = 0
            self.far.received(arrived)
        self._close_far(left)
        self.loop.arrive(network.timeline.now + network.way_s(), self._end, ConnectionResetError("reset"))
