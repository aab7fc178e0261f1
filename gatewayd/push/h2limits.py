"""
What one HTTP/2 connection may make us do: frames are counted by their heads before anything parses them. Pure.

Decides when a connection asks for too much (RFC 9113, 10.5) and which frames the HTTP/2 machine never sees. Never
parses a payload and never closes anything: who feeds it is told why to close.

It reads heads because much of a flood raises no event of the machine's: a reset of a stream that is closed already, a
window's update for it, a header block that never ends, a frame whose length says 16 MiB and that would be waited for.
"""

from dataclasses import dataclass
from typing import Final

from gatewayd.times import Monotonic

FRAME_BYTES: Final = 16384
"""SETTINGS_MAX_FRAME_SIZE, which we leave at its initial value."""

HEADER_LIST_BYTES: Final = 16384
"""
SETTINGS_MAX_HEADER_LIST_SIZE: names, values and 32 bytes for each field (RFC 9113, 6.5.2). A request that has more is
refused.
"""

BLOCK_BYTES: Final = 65536
"""
A list, or a block as it is sent, that is longer ends the connection: what is not decoded spoils all blocks after it.
Not every client keeps to the setting (gRPC's for Python does not), and its other calls need not suffer for one.
"""

MAX_SETTINGS: Final = 64
"""
In one frame, and known of a peer in all: of 65,536 identifiers it may send any, and h2 keeps them (700 bytes each, and
25 us to take in, tried).
"""

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SMALL_BYTES: Final = 256
"""DATA that is smaller and ends nothing: parsing it costs many times what it carries."""

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
ENHANCE_YOUR_CALM: Final = 0xB
INADEQUATE_SECURITY: Final = 0xC
"""Error codes: RFC 9113, 7."""

# The kinds that are counted: frame types of RFC 9113 6, and what has no type of its own.
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RESET: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9
OTHER: Final = 0xA
EMPTY: Final = 0xB
SMALL: Final = 0xC
CAUSED: Final = 0xD
REFUSED: Final = 0xE

_END_STREAM: Final = 0x1
_ACK: Final = 0x1
_HEAD_BYTES: Final = 9
_SETTING_BYTES: Final = 6
_REFILL_S: Final = 0.1
_MOST: Final = 1_000_000.0

# What we send entitles the other side to answer it: a window's update for the stream and one for the connection after
# each piece, twice over; a ping to measure the path with.
_UPDATES_A_PIECE: Final = 2.0
_PINGS_A_PIECE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Rule:
    """A token bucket: `burst` at once, `per_s` in the long run. `name` says it in GOAWAY and in the log."""

    name: str
    burst: float
    per_s: float


RULES: Final[dict[int, Rule]] = {
    PRIORITY: Rule("too_many_priorities", 200, 20),
    # 100 streams may all be given up at once; those that had lived for a while are given back (Meter.forgive).
    RESET: Rule("too_many_resets", 200, 10),
    SETTINGS: Rule("too_many_settings", 50, 5),
    # gRPC's own word, upon which its clients ping less often.
    PING: Rule("too_many_pings", 100, 10),
    WINDOW_UPDATE: Rule("too_many_window_updates", 1000, 200),
    CONTINUATION: Rule("too_many_continuations", 64, 10),
    OTHER: Rule("too_many_unknown_frames", 100, 10),
    EMPTY: Rule("too_many_empty_frames", 50, 5),
    SMALL: Rule("too_many_small_frames", 1000, 100),
    # Resets of ours that the other side's frames have caused, by which it could give up streams without a reset.
    CAUSED: Rule("too_many_errors", 100, 10),
    # Calls that were refused by their heads alone, as fast as they can be sent.
    REFUSED: Rule("too_many_refusals", 200, 20),
}
_BURSTS: Final = tuple(RULES[kind].burst if kind in RULES else 0.0 for kind in range(REFUSED + 1))
_RATES: Final = tuple(RULES[kind].per_s if kind in RULES else 0.0 for kind in range(REFUSED + 1))
_COUNTED: Final = frozenset({PRIORITY, RESET, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION, OTHER})


@dataclass(frozen=True, slots=True)
class Excess:
    """Close the connection with this error code; `reason` is a fixed word."""

    code: int
    reason: str


FRAME_TOO_LONG: Final = Excess(FRAME_SIZE_ERROR, "frame_too_long")
ACK_WITH_PAYLOAD: Final = Excess(FRAME_SIZE_ERROR, "settings_ack_with_payload")  # h2 calls it a PROTOCOL_ERROR
TOO_MANY_SETTINGS: Final = Excess(ENHANCE_YOUR_CALM, "too_many_settings")
BLOCK_TOO_LONG: Final = Excess(ENHANCE_YOUR_CALM, "header_block_too_long")


class Meter:
    """
    What one connection has been allowed so far. `sent` is added to for each piece that was sent (a frame or its head),
    `leaving` is True once the peer has sent GOAWAY.
    """

    __slots__ = ("_block", "_dropping", "_held", "_left", "_refilled_at", "_tokens", "leaving", "sent")

    def __init__(self, now: Monotonic) -> None:
        self._tokens = list(_BURSTS)
        self._refilled_at = now
        self._held = b""
        self._left = len(PREFACE)
        self._dropping = False
        self._block = 0
        self.sent = 0
        self.leaving = False

    def read(self, data: bytes, now: Monotonic) -> bytes | Excess:
        """
        Count the frames that begin in `data`, the next bytes of the connection; what is to be parsed of them, or why
        the connection is to be closed.

        Up to 8 bytes of an incomplete head are held back. A GOAWAY is taken out: it says that its sender wants no
        streams of ours, which it never gets, and the machine (h2 4) would send nothing any more on those that are open.
        """
        if now - self._refilled_at >= _REFILL_S or self.sent:
            self._refill(now)
        if self._held:
            data, self._held = self._held + data, b""
        begin = at = 0
        size = len(data)
        kept: list[bytes] = []
        while True:
            end = at + self._left
            if self._dropping:
                begin = min(end, size)
            if end > size:
                self._left = end - size
                break
            self._left, self._dropping, at = 0, False, end
            if size - at < _HEAD_BYTES:
                self._held = data[at:]
                size = at
                break
            length, kind = int.from_bytes(data[at : at + 3], "big"), data[at + 3]
            if kind == GOAWAY and self._is_farewell(data, at, length):
                kept.append(data[begin:at])
                self._dropping, begin = True, at
            else:
                excess = self._count(kind, length, data[at + 4])
                if excess is not None:
                    return excess
            self._left = _HEAD_BYTES + length
        if not kept and begin == 0 and size == len(data):
            return data
        return b"".join([*kept, data[begin:size]])

    def take(self, kind: int, count: int = 1) -> Excess | None:
        """Count something that is no frame of the peer's: CAUSED, REFUSED."""
        self._tokens[kind] -= count
        return None if self._tokens[kind] >= 0 else Excess(ENHANCE_YOUR_CALM, RULES[kind].name)

    def forgive(self, kind: int, count: int = 1) -> None:
        """Give tokens back: those frames were, or will be, no part of a flood."""
        self._tokens[kind] = min(_MOST, self._tokens[kind] + count)

    def _is_farewell(self, data: bytes, at: int, length: int) -> bool:
        """True for a well-formed GOAWAY; the machine refuses the others."""
        if length < 8 or length > FRAME_BYTES or any(data[at + 5 : at + 9]):
            return False
        self.leaving = True
        return True

    def _count(self, kind: int, length: int, flags: int) -> Excess | None:
        if length > FRAME_BYTES:
            return FRAME_TOO_LONG
        if kind == DATA:
            if length >= SMALL_BYTES or flags & _END_STREAM:
                return None
            kind = SMALL if length else EMPTY
        elif kind == HEADERS:
            self._block = length
            # A request's length and its message may come apart.
            self._tokens[SMALL] = min(self._tokens[SMALL] + 2, _MOST)
            return None
        elif kind == CONTINUATION:
            self._block += length
            if self._block > BLOCK_BYTES:
                return BLOCK_TOO_LONG
        elif kind == SETTINGS and length and flags & _ACK:
            return ACK_WITH_PAYLOAD
        elif kind == SETTINGS and length > MAX_SETTINGS * _SETTING_BYTES:
            return TOO_MANY_SETTINGS
        elif kind not in _COUNTED:
            kind = OTHER
        return self.take(kind)

    def _refill(self, now: Monotonic) -> None:
        past_s = max(0.0, now - self._refilled_at)
        self._refilled_at = now
        tokens = self._tokens
        for kind in RULES:
            if tokens[kind] < _BURSTS[kind]:
                tokens[kind] = min(_BURSTS[kind], tokens[kind] + past_s * _RATES[kind])
        tokens[WINDOW_UPDATE] = min(_MOST, tokens[WINDOW_UPDATE] + _UPDATES_A_PIECE * self.sent)
        tokens[PING] = min(_MOST, tokens[PING] + _PINGS_A_PIECE * self.sent)
        self.sent = 0


def count_resets(data: bytes) -> int:
    """How many of these whole frames, of our own making, are resets."""
    found = at = 0
    while at < len(data):
        found += data[at + 3] == RESET
        at += _HEAD_BYTES + int.from_bytes(data[at : at + 3], "big")
    return found
