"""What a WebSocket client sends, in any pieces, and what becomes of each breach."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.inbound import (
    INVALID_UTF8,
    PROTOCOL_ERROR,
    TOO_BIG,
    TOO_MANY_FRAMES,
    Binary,
    Closed,
    FrameLimits,
    Inbound,
    Pinged,
    Received,
    Text,
    close_frame,
    pong_frame,
)
from gatewayd.times import Monotonic
from tests.websockets import BINARY, CLOSE, PING, PONG, TEXT, close, frame, frames_in, text

WIDE = FrameLimits(frames_per_s=1e6, burst=1 << 20)
NOW = Monotonic(1000.0)


def read(*pieces: bytes, limits: FrameLimits = WIDE, inbound: Inbound | None = None) -> list[Received]:
    """What the pieces complete."""
    inbound = inbound or Inbound(limits)
    return [received for piece in pieces for received in inbound.read(piece, NOW)]


class MessageTests(SynchronousTestCase):
    def test_messages(self) -> None:
        """Text, binary, pings, pongs and the close come out in order, of one piece or byte by byte."""
        sent = b"".join(
            (
                text("one"),
                frame(PING, b"p"),
                frame(PONG, b"q"),
                frame(PONG),
                frame(TEXT, b"tw\xc3", fin=False),
                frame(PING),
                frame(0, b"\xa9o", fin=True),
                frame(BINARY, b"\xff\0"),
                frame(TEXT, b""),
                close(1000, "bye"),
            )
        )
        wanted = [
            Text(b"one"),
            Pinged(b"p"),
            Pinged(b""),
            Text("tw\xe9o".encode()),
            Binary(b"\xff\0"),
            Text(b""),
            Closed(1000),
        ]
        self.assertEqual(read(sent), wanted)
        self.assertEqual(read(*(sent[i : i + 1] for i in range(len(sent)))), wanted)

    def test_close_without_code(self) -> None:
        """A close frame may be empty; nothing behind it is read."""
        self.assertEqual(read(close() + text("late")), [Closed(None)])

    def test_rest(self) -> None:
        """Between two messages nothing is kept, and a pong that answers our ping never makes anything."""
        inbound = Inbound(WIDE)
        self.assertTrue(inbound.at_rest)
        for piece in (text("x"), text("x" * 125), text("x" * 126), text("x" * 65535), text("x" * 65536), frame(PING)):
            self.assertEqual(len(read(piece[:-1], inbound=inbound)), 0)
            self.assertFalse(inbound.at_rest)
            self.assertEqual(len(read(piece[-1:], inbound=inbound)), 1)
            self.assertTrue(inbound.at_rest, len(piece))
        self.assertEqual(read(frame(PONG), inbound=inbound), [])
        self.assertTrue(inbound.at_rest)
        read(text("a") + frame(PING)[:3], inbound=inbound)
        self.assertFalse(inbound.at_rest)

    def test_answers(self) -> None:
        """Control frames are read by a client as they were meant."""
        pong, closed, empty = frames_in(pong_frame(b"p" * 125) + close_frame(1012, b"later") + close_frame(None))
        self.assertEqual((pong.opcode, pong.payload), (PONG, b"p" * 125))
        self.assertEqual((closed.opcode, closed.code, closed.reason), (CLOSE, 1012, "later"))
        self.assertEqual((empty.opcode, empty.payload), (CLOSE, b""))


class BreachTests(SynchronousTestCase):
    def test_protocol_errors(self) -> None:
        """Frames that RFC 6455 forbids end the connection, with a text of ours."""
        for name, data in {
            "unmasked": frame(TEXT, b"x", mask=None),
            "rsv1": bytes([0xC1]) + text("x")[1:],
            "rsv3": bytes([0x91]) + text("x")[1:],
            "opcode 3": frame(3, b"x"),
            "opcode 11": frame(11, b"x"),
            "fragmented ping": frame(PING, b"x", fin=False),
            "long ping": frame(PING, b"x" * 126),
            "continuation of nothing": frame(0, b"x"),
            "new message in another": frame(TEXT, b"x", fin=False) + text("y"),
            "length with the high bit": b"\x81\xff\x80" + bytes(7),
            "length in too many bytes": b"\x81\xfe\x00\x05" + bytes(4) + b"hello",
            "close with one byte": frame(CLOSE, b"x"),
            "close with a reserved code": close(1005),
            "close with no code at all": close(999),
        }.items():
            self.assertEqual(read(data + text("more")), [PROTOCOL_ERROR], name)

    def test_invalid_utf8(self) -> None:
        """Text that is none is 1007, at once, also when a character is cut by frames, and in a close's reason."""
        for data in (
            text(b"\xff"),
            frame(TEXT, b"\xce\xba\xe1", fin=False) + frame(0, b"x"),
            frame(TEXT, b"\xed\xa0\x80", fin=False),
            text(b"\xc3"),
            frame(CLOSE, struct.pack("!H", 1000) + b"\xff"),
        ):
            self.assertEqual(read(data), [INVALID_UTF8], data)

    def test_size(self) -> None:
        """64 KiB are a message, a byte more is none: in one frame, in many, and before its end has come."""
        self.assertEqual(read(text("x" * 65536)), [Text(b"x" * 65536)])
        self.assertEqual(read(text("x" * 65537)), [TOO_BIG])
        self.assertEqual(read(frame(BINARY, b"x" * 65537)), [TOO_BIG])
        self.assertEqual(read(frame(TEXT, b"x" * 65536, fin=False) + frame(0, b"y", fin=False)), [TOO_BIG])
        endless = frame(TEXT, b"")[:1] + b"\xff" + struct.pack("!Q", 52_000_000) + bytes(4)
        self.assertEqual(read(endless, *[b"x" * 60_000] * 2), [TOO_BIG])

    def test_fragments(self) -> None:
        """A message has at most 64 fragments, empty ones counted."""

        def fragments(count: int) -> bytes:
            return b"".join(frame(TEXT if i == 0 else 0, b"", fin=i == count - 1) for i in range(count))

        self.assertEqual(read(fragments(64)), [Text(b"")])
        self.assertEqual(read(fragments(65)), [TOO_BIG])

    def test_frames_a_second(self) -> None:
        """100 frames at once, 20 a second from then on, whatever they are; the bucket outlives what is parsed."""
        for data in (frame(PING), frame(PONG), frame(PONG, b"x"), text("x"), frame(BINARY, b"")):
            inbound = Inbound(FrameLimits())
            for _ in range(100):
                self.assertNotIn(TOO_MANY_FRAMES, list(inbound.read(data, NOW)))
            self.assertEqual(list(inbound.read(data, NOW)), [TOO_MANY_FRAMES])
            inbound = Inbound(FrameLimits())
            for turn in range(1000):
                self.assertNotIn(TOO_MANY_FRAMES, list(inbound.read(data, Monotonic(NOW + turn / 19.9))))
        self.assertEqual(read(frame(PING) * 1000, limits=FrameLimits())[100:], [TOO_MANY_FRAMES])


PAYLOADS = st.one_of(
    st.text(max_size=40).map(lambda words: (TEXT, words.encode())),
    st.integers(120, 130).map(lambda size: (TEXT, b"x" * size)),
    st.binary(max_size=40).map(lambda data: (BINARY, data)),
    st.binary(max_size=20).map(lambda data: (PING, data)),
    st.binary(max_size=4).map(lambda data: (PONG, data)),
)


class PieceTests(SynchronousTestCase):
    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.tuples(PAYLOADS, st.integers(0, 3)), max_size=12),
        st.lists(st.integers(1, 30), max_size=60),
        st.data(),
    )
    def test_any_pieces(
        self, messages: list[tuple[tuple[int, bytes], int]], sizes: list[int], data: st.DataObject
    ) -> None:
        """However messages are fragmented and the bytes are cut, what comes out is what went in; nothing is dropped."""
        sent, wanted = b"", []
        for (opcode, payload), cuts in messages:
            if opcode in (PING, PONG):
                sent += frame(opcode, payload, mask=data.draw(st.binary(min_size=4, max_size=4)))
                wanted += [Pinged(payload)] if opcode == PING else []
                continue
            places = sorted(data.draw(st.integers(0, len(payload))) for _ in range(cuts))
            bounds = [0, *places, len(payload)]
            for i in range(len(bounds) - 1):
                piece = payload[bounds[i] : bounds[i + 1]]
                sent += frame(opcode if i == 0 else 0, piece, fin=i == len(bounds) - 2)
            wanted.append(Text(payload) if opcode == TEXT else Binary(payload))
        inbound, found = Inbound(WIDE), []
        for size in [*sizes, len(sent) + 1]:
            piece, sent = sent[:size], sent[size:]
            if piece:
                found += list(inbound.read(piece, NOW))
        self.assertEqual(found, wanted)
