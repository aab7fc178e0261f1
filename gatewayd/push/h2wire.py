"""
One HTTP/2 connection as a server speaks it, without a socket: h2 does the frames, this the flow of what we send. Pure.

Decides when a message may be written, in what pieces, and who is told that there is room again; how a response begins
and ends; what a connection says before it is closed. Never knows gRPC, never writes to a transport, reads no clock.

The DATA frame of a message that fits is written by hand (12 -> 3 us, measured): nine bytes of its own before a body
that all streams share. h2's windows, which it also counts down itself, are kept right beside it; that this gives what
h2 gives is tried once at the start (frames_agree), and h2 writes them where it does not.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final, Protocol, TypeAlias

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream
from hpack import Encoder
from hyperframe.frame import GoAwayFrame, HeadersFrame, SettingsFrame

from gatewayd.push.h2limits import (
    BLOCK_BYTES,
    CAUSED,
    HEADER_LIST_BYTES,
    MAX_SETTINGS,
    NO_ERROR,
    PREFACE,
    REFUSED,
    RESET,
    TOO_MANY_SETTINGS,
    Excess,
    Meter,
    count_resets,
)
from gatewayd.times import Monotonic

MAX_STREAMS: Final = 100
"""SETTINGS_MAX_CONCURRENT_STREAMS. Calls beyond it are refused one by one, where h2 would end the connection."""

SLICE_BYTES: Final = 4096
"""h2 tells what has happened once everything it was given is parsed: it is given no more than that."""

MAX_TABLE_BYTES: Final = 4096
"""The peer may allow our header compression 4 GiB of memory."""

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
Stream: TypeAlias = H2Stream

_frame_head: Final = Struct(">IBI").pack
"""The length (24 bits) and type (8), flags, stream: RFC 9113, 4.1. DATA's type is 0."""

_CONFIG: Final = H2Configuration(
    client_side=False,
    header_encoding=None,
    # Ours are constants, in lower case and in order.
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)
_ENFORCED: Final = {
    # Of what h2 counts one more is open for a moment: the one that is being refused.
    SettingCodes.MAX_CONCURRENT_STREAMS: 2 * MAX_STREAMS,
    SettingCodes.MAX_HEADER_LIST_SIZE: BLOCK_BYTES,
}
_HELLO: Final = SettingsFrame(
    0,
    settings={
        int(SettingCodes.MAX_CONCURRENT_STREAMS): MAX_STREAMS,
        int(SettingCodes.MAX_HEADER_LIST_SIZE): HEADER_LIST_BYTES,
    },
).serialize()


class _Machine(H2Connection):
    """h2 with bounds of ours: the decoder's is taken from here, whatever the settings say."""

    DEFAULT_MAX_HEADER_LIST_SIZE = BLOCK_BYTES
    MAX_CLOSED_STREAMS = 512
    """How many ended streams it remembers, to tell a late frame from a wrong one."""


class Calls(Protocol):
    """Who is told what has come. Any of these may send on the wire."""

    def begin(self, stream: Stream, headers: Headers, ended: bool) -> Excess | None:
        """A request's head; `ended`: nothing follows it. An Excess ends the connection."""

    def receive(self, stream_id: int, data: bytes, ended: bool) -> Excess | None:
        """A piece of a request's body, perhaps empty; `ended`: it was the last."""

    def cancelled(self, stream_id: int, by_peer: bool) -> None:
        """The stream was reset, by the peer or for what the peer sent on it."""

    def room(self, stream_id: int) -> None:
        """More may be sent on this stream, or on all of them where it is 0."""


class Wire:
    """
    One connection. `out` is what is to be written to the transport, in order: take() it. `ended` is True when nothing
    can be sent any more but what is in `out`. `by_hand`: what frames_agree() said.
    """

    __slots__ = ("_by_hand", "_calls", "_h2", "_meter", "ended", "greeted", "highest", "out")

    def __init__(self, calls: Calls, meter: Meter, *, by_hand: bool) -> None:
        self._calls = calls
        self._meter = meter
        self._by_hand = by_hand
        self._h2 = _make_machine()
        self.out: list[bytes] = [_HELLO]
        self.ended = False
        self.greeted = False
        """True once the peer's SETTINGS have come, which end the handshake."""
        self.highest = 0
        """The last stream of the peer's that came to the calls."""

    @property
    def leaving(self) -> bool:
        """True once the peer has said that it wants no more."""
        return self._meter.leaving

    def receive(self, data: bytes, now: Monotonic) -> Excess | None:
        """Take in at most SLICE_BYTES of what the peer sent. An Excess ends the connection: its GOAWAY is in `out`."""
        wanted = self._meter.read(data, now)
        if isinstance(wanted, Excess):
            return self._give_up(wanted)
        machine = self._h2
        try:
            events = machine.receive_data(wanted)
        except ProtocolError as error:
            self.ended = True
            self._drain()  # its GOAWAY
            return Excess(int(error.error_code), "protocol")
        # Nothing of ours is in between: what it made by itself are acknowledgements, updates of windows and resets.
        automatic = machine.data_to_send()
        excess = None
        if automatic:
            self.out.append(automatic)
            caused = count_resets(automatic)
            if caused:
                excess = self._meter.take(CAUSED, caused)
        if excess is None and events:
            excess = self._tell(events)
        return None if excess is None else self._give_up(excess)

    def _tell(self, events: list[Event]) -> Excess | None:
        calls = self._calls
        # The resets first: a stream may have begun, or have been answered, in the same slice, and takes nothing now.
        for event in events:
            if isinstance(event, StreamReset):
                calls.cancelled(event.stream_id, event.remote_reset)
        excess = None
        for event in events:
            if isinstance(event, DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                excess = calls.receive(event.stream_id, event.data or b"", event.stream_ended is not None)
                self._drain()
            elif isinstance(event, WindowUpdated):
                calls.room(event.stream_id or 0)
            elif isinstance(event, RequestReceived):
                stream = self._h2.streams.get(event.stream_id)
                if stream is not None and not stream.closed:
                    self.highest = event.stream_id
                    excess = calls.begin(stream, event.headers, event.stream_ended is not None)
            elif isinstance(event, TrailersReceived):
                excess = calls.receive(event.stream_id, b"", True)
            elif isinstance(event, RemoteSettingsChanged):
                excess = self._settle()
            if excess is not None:
                return excess
        return None

    def _settle(self) -> Excess | None:
        """The peer's settings have changed."""
        machine = self._h2
        self.greeted = True
        if len(machine.remote_settings) > MAX_SETTINGS:
            return TOO_MANY_SETTINGS
        machine.encoder.header_table_size = min(machine.encoder.header_table_size, MAX_TABLE_BYTES)
        self._calls.room(0)
        return None

    @property
    def full(self) -> bool:
        """True while the peer takes nothing more on any stream."""
        return self._h2.outbound_flow_control_window <= 0

    @property
    def piece_bytes(self) -> int:
        """What a stream takes in one frame when nothing of it waits to be read."""
        return min(self._h2.max_outbound_frame_size, self._h2.remote_settings.initial_window_size)

    # -- sending -----------------------------------------------------------------------------------------------------

    def begin(self, stream: Stream, headers: Headers) -> None:
        """Send the head of a response."""
        self._h2.send_headers(stream.stream_id, headers)
        self._drain()

    def write(self, stream: Stream, body: bytes) -> bool:
        """Send `body` in one frame; False, and nothing is sent, when it does not fit."""
        machine, size = self._h2, len(body)
        if (
            size > stream.outbound_flow_control_window
            or size > machine.outbound_flow_control_window
            or size > machine.max_outbound_frame_size
        ):
            return False
        if not self._by_hand:
            machine.send_data(stream.stream_id, body)
            self._drain()
            return True
        stream.outbound_flow_control_window -= size
        machine.outbound_flow_control_window -= size
        self.out += (_frame_head(size << 8, 0, stream.stream_id), body)
        return True

    def write_some(self, stream: Stream, body: bytes, begin: int = 0) -> int:
        """Send of `body` from `begin` on what fits now, in frames; where the rest begins."""
        machine = self._h2
        while begin < len(body):
            size = min(
                len(body) - begin,
                stream.outbound_flow_control_window,
                machine.outbound_flow_control_window,
                machine.max_outbound_frame_size,
            )
            if size <= 0 or not self.write(stream, body[begin : begin + size]):
                break
            begin += size
        return begin

    def room_of(self, stream: Stream) -> int:
        """How many bytes may be sent on the stream now."""
        return self._h2.local_flow_control_window(stream.stream_id)

    def end(self, stream: Stream, trailers: Headers) -> None:
        """
        Send the trailers, or the only header block of a response. A peer that has not ended its request is told to stop
        sending it (RFC 9113, 8.1): h2 would count the stream as open for ever.
        """
        self._h2.send_headers(stream.stream_id, trailers, end_stream=True)
        if not stream.closed:
            self._h2.reset_stream(stream.stream_id, NO_ERROR)
            # What is on its way already, h2 answers with resets of its own.
            self._meter.forgive(CAUSED, 2)
        self._drain()

    def reset(self, stream: Stream, code: int) -> Excess | None:
        """Give a stream up; an Excess when the peer has made us do it too often."""
        self._h2.reset_stream(stream.stream_id, code)
        self._drain()
        return self._meter.take(CAUSED)

    def refused(self) -> Excess | None:
        """A call was refused by its head alone; an Excess when there were too many."""
        return self._meter.take(REFUSED)

    def forgive_reset(self) -> None:
        """The peer gave up a stream that had lived for a while."""
        self._meter.forgive(RESET)

    def farewell(self, code: int = NO_ERROR, text: str = "") -> None:
        """Send GOAWAY: no further streams. By hand: after h2's own nothing can be sent on those that are open."""
        frame = GoAwayFrame(0, last_stream_id=self.highest, error_code=code, additional_data=text.encode("ascii"))
        self.out.append(frame.serialize())

    def ping(self) -> None:
        """Ask the peer whether it is there."""
        self._h2.ping(b"gatewayd")
        self._drain()

    def take(self) -> bytes:
        """What is to be written now."""
        out = self.out
        self._meter.sent += len(out)
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def _give_up(self, excess: Excess) -> Excess:
        if not self.ended:
            self.ended = True
            self.farewell(excess.code, excess.reason)
        return excess

    def _drain(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self.out.append(data)


def _make_machine() -> H2Connection:
    machine = _Machine(_CONFIG)
    machine.local_settings = Settings(client=False, initial_values=dict(_ENFORCED))
    machine.initiate_connection()
    machine.clear_outbound_data_buffer()  # what we announce is less than what h2 enforces
    return machine


def frames_agree() -> bool:
    """True when a DATA frame written by hand is, in bytes and in windows, what the installed h2 would have written."""
    try:
        by_hand, by_h2 = _try_frames(by_hand=True), _try_frames(by_hand=False)
    except Exception:  # a name of h2's that is not there any more, or does something else
        return False
    return by_hand == by_h2


def _try_frames(*, by_hand: bool) -> tuple[list[bool], bytes, int]:
    """Which bodies of a known exchange were written, all bytes of it, and the window that is left."""
    calls = _Streams()
    wire = Wire(calls, Meter(Monotonic(0.0)), by_hand=by_hand)
    request = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]
    head = HeadersFrame(1, data=Encoder().encode(request), flags=["END_HEADERS", "END_STREAM"])
    wire.receive(PREFACE + SettingsFrame(0).serialize() + head.serialize(), Monotonic(0.0))
    (stream,) = calls.streams
    wire.begin(stream, [(b":status", b"200")])
    wrote = [wire.write(stream, body) for body in (b"a" * 300, b"", b"b" * 16384, b"c" * 16385)]
    # What h2 itself takes next tells the windows that it counts.
    left = wire.room_of(stream)
    wire.end(stream, [(b"grpc-status", b"0")])
    return wrote, wire.take(), left


class _Streams:
    """Calls that only keep the streams."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def begin(self, stream: Stream, headers: Headers, ended: bool) -> None:
        self.streams.append(stream)

    def receive(self, stream_id: int, data: bytes, ended: bool) -> None:
        """No body is sent."""

    def cancelled(self, stream_id: int, by_peer: bool) -> None:
        pass

    def room(self, stream_id: int) -> None:
        pass
