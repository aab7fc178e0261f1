"""Heads, ends and messages of gRPC as bytes."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.grpc_messages import (
    BAD_FRAMING,
    COMPRESSED,
    LONGEST_S,
    MAX_MESSAGE_BYTES,
    TOO_BIG,
    Opening,
    alone,
    framed,
    message_bytes,
    read_head,
    trailers,
)
from gatewayd.push.h2limits import HEADER_LIST_BYTES
from gatewayd.push.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING, Health, read_check
from gatewayd.sessions.endings import Ending

HEAD = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a/B"),
    (b":authority", b"localhost"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def with_timeout(timeout: bytes) -> "Opening | object":
    """What a head with this grpc-timeout asks for."""
    return read_head([*HEAD, (b"grpc-timeout", timeout)])


class HeadTests(SynchronousTestCase):
    def test_timeouts(self) -> None:
        """Every unit is read; what is too far away is no deadline."""
        for text, seconds in (
            (b"1H", 3600.0),
            (b"2M", 120.0),
            (b"3S", 3.0),
            (b"4m", 0.004),
            (b"5u", 0.000005),
            (b"6n", 6e-9),
            (b"0n", 0.0),
            (b"00000001S", 1.0),
            (b"99999999S", None),
            (b"99999999H", None),
        ):
            opening = with_timeout(text)
            assert isinstance(opening, Opening)
            if seconds is None:
                self.assertIsNone(opening.timeout_s)
            else:
                assert opening.timeout_s is not None
                self.assertAlmostEqual(opening.timeout_s, seconds)
                self.assertLessEqual(opening.timeout_s, LONGEST_S)

    @given(st.binary(max_size=12))
    def test_other_timeouts(self, text: bytes) -> None:
        """Anything is either read, as digits and a unit, or refused as malformed."""
        opening = with_timeout(text)
        if isinstance(opening, Opening):
            self.assertTrue(text[:-1].isdigit() and text[-1:] in b"HMSmun", text)
        else:
            self.assertIn((b"grpc-status", b"3"), opening)

    def test_long_metadata(self) -> None:
        """A list of exactly the bound passes, one byte more is refused."""
        size = sum(len(name) + len(value) + 32 for name, value in HEAD) + 32 + 1
        fill = b"v" * (HEADER_LIST_BYTES - size)
        self.assertIsInstance(read_head([*HEAD, (b"x", fill)]), Opening)
        self.assertIn((b"grpc-status", b"8"), read_head([*HEAD, (b"x", fill + b"v")]))  # type: ignore[arg-type]


class EndTests(SynchronousTestCase):
    def test_retry(self) -> None:
        """When to come back is said in whole seconds, rounded up and never 0, and in milliseconds."""
        for ms, seconds in ((1, b"1"), (999, b"1"), (1000, b"1"), (1001, b"2"), (0, b"1")):
            fields = dict(trailers(Ending("shutdown", 14, 1012, "later", ms)))
            self.assertEqual((fields[b"retry-after"], fields[b"retry-after-ms"]), (seconds, b"%d" % ms))
        self.assertNotIn(b"retry-after", dict(trailers(Ending("shutdown", 14, 1012, "later"))))

    def test_messages_are_percent_encoded(self) -> None:
        """What HTTP/2 would not carry, or a client would misread, is encoded."""
        ending = Ending("x", 3, 1008, "50% of\r\n\u00fc")
        self.assertEqual(dict(trailers(ending))[b"grpc-message"], b"50%25 of%0D%0A%C3%BC")

    def test_alone(self) -> None:
        """A response that is only its end has the head's fields first; a compressed message's says what is taken."""
        fields = alone(COMPRESSED)
        self.assertEqual(fields[0], (b":status", b"200"))
        self.assertEqual(dict(fields)[b"content-type"], b"application/grpc")
        self.assertEqual(dict(fields)[b"grpc-accept-encoding"], b"identity")


class MessageTests(SynchronousTestCase):
    def test_prefixes(self) -> None:
        """The bound is the bound; flags other than 0 are refused."""
        self.assertEqual(message_bytes(b"\0" + MAX_MESSAGE_BYTES.to_bytes(4, "big")), MAX_MESSAGE_BYTES)
        self.assertEqual(message_bytes(b"\0" + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")), TOO_BIG)
        self.assertEqual(message_bytes(b"\1\0\0\0\0"), COMPRESSED)
        self.assertEqual(message_bytes(b"\2\0\0\0\0"), BAD_FRAMING)
        self.assertEqual(framed(b"abc"), b"\0\0\0\0\3abc")


class HealthTests(SynchronousTestCase):
    def test_checks(self) -> None:
        """The two services are known; what names no service is no check."""
        self.assertEqual(read_check(b""), "")
        self.assertEqual(read_check(b"\x0a\x03abc"), "abc")
        for wrong in (
            b"\x0a",
            b"\x0a\x04abc",
            b"\x0a\x02abc",
            b"\x12\x01a",
            b"\x0a\x01\xff",
            b"\x0a\x80\x01" + b"a" * 128,
        ):
            self.assertIsNone(read_check(wrong), wrong)

    def test_states(self) -> None:
        """Not serving until it is said; watchers hear of changes, and of nothing once they are forgotten."""
        health, heard = Health(), []

        def watcher() -> None:
            heard.append(health.serving)

        health.watch(watcher)
        self.assertEqual(health.answer(""), NOT_SERVING)
        health.set(True)
        health.set(True)
        self.assertEqual(health.answer("gatewayd.edge.v1.EdgeGateway"), SERVING)
        self.assertEqual(health.answer("other"), SERVICE_UNKNOWN)
        health.forget(watcher)
        health.set(False)
        self.assertEqual(heard, [True])
