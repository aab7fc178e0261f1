"""Acknowledgements are taken out of what the server sends and nothing else is, however the bytes are cut."""

from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.inlet import Inlet

INBOX = b"_INBOX.abc"


class Connection:
    """What nats-py's parser tells its client."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.told.append(("message", sid, bytes(subject), data, headers))

    async def _process_ping(self) -> None:
        self.told.append(("ping",))


def parse(parser: Any, data: bytes) -> None:
    """Have nats-py parse it; nothing that it awaits has to wait."""
    try:
        parser.parse(data).send(None)
    except StopIteration:
        return
    raise AssertionError("the parser waits")


def message(token: bytes, body: bytes, sid: int = 1) -> bytes:
    return b"MSG %b.%b %d %d\r\n%b\r\n" % (INBOX, token, sid, len(body), body)


def ack(sequence: int, more: bytes = b"", stream: bytes = b"s") -> bytes:
    return b'{"stream":"%b","seq":%d%b}' % (stream, sequence, more)


OTHERS = [
    b"PING\r\n",
    b"+OK\r\n",
    b"-ERR 'Permissions Violation'\r\n",
    b'INFO {"server_id":"x"}\r\n',
    message(b"r7", b"an answer to a request"),
    message(b"4", ack(4), sid=2),
    message(b"5", ack(5, stream=b"t")),
    message(b"6", b'{"error":{"err_code":10077},"stream":"s","seq":0}'),
    message(b"7", ack(7, b',"domain":"hub"')),
    b"HMSG %b.5 1 30 30\r\nNATS/1.0 503 No Responders\r\n\r\n\r\n" % INBOX,
    message(b"8", b""),
    message(b"9", message(b"10", ack(10))),
    b"MSG other.subject 3 _INBOX.abc.11 2\r\nhi\r\n",
    message(b"12", b"x" * 70_000 + b"\r\n" + message(b"13", ack(13))),
]
STREAM = [
    message(b"1", ack(1)),
    OTHERS[0],
    message(b"2", ack(2, b',"duplicate": true')),
    *OTHERS[1:5],
    message(b"3", b'{"stream":"s", "seq":3}'),
    *OTHERS[5:],
    message(b"14", ack(14)),
]
ACKS = [(b"1", b"1", None), (b"2", b"2", b"true"), (b"3", b"3", None), (b"14", b"14", None)]


def take_acks(pieces: Iterable[bytes]) -> tuple[list[tuple[bytes, bytes, bytes | None]], bytes]:
    inlet = Inlet(INBOX, 1, b"s")
    acks: list[tuple[bytes, bytes, bytes | None]] = []
    passed = b""
    for piece in pieces:
        found, _, rest = inlet.feed(piece)
        acks += found
        passed += rest
    return acks, passed


class InletTests(SynchronousTestCase):
    """One stream of bytes, cut in every way."""

    def test_whole(self) -> None:
        """Each acknowledgement is read once; every other byte goes on, in order."""
        assert take_acks([b"".join(STREAM)]) == (ACKS, b"".join(OTHERS))

    def test_cut_anywhere(self) -> None:
        """Two reads instead of one, cut at any byte of the part without the large message, change nothing."""
        data = b"".join(STREAM[:-2])
        wanted = take_acks([data])
        for at in range(1, len(data)):
            assert take_acks([data[:at], data[at:]]) == wanted, at

    def test_byte_by_byte(self) -> None:
        """So does a server that writes single bytes."""
        data = b"".join(STREAM[:-2])
        assert take_acks(data[at : at + 1] for at in range(len(data))) == take_acks([data])

    @given(st.lists(st.sampled_from(STREAM), max_size=12), st.data())
    def test_any_stream(self, messages: list[bytes], data: st.DataObject) -> None:
        """Any messages in any pieces: the same acknowledgements, the same rest."""
        whole = b"".join(messages)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
        pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        assert take_acks(pieces) == take_acks([whole])

    def test_endless_line(self) -> None:
        """What never ends its line goes on, so that nothing is held without a bound."""
        inlet = Inlet(INBOX, 1, b"s")
        passed = b"".join(inlet.feed(b"x" * 1000)[2] for _ in range(200))
        assert len(passed) > 100_000


def delivery(sid: int, head: bytes, reply: bytes = b"$JS.ACK.s.c.1.7.3.1.0", body: bytes = b"") -> bytes:
    head = b"NATS/1.0" + head + b"\r\n\r\n"
    return b"HMSG signals.normalized %d %b%d %d\r\n%b\r\n" % (
        sid,
        reply + b" " * bool(reply),
        len(head),
        len(head) + len(body),
        head + body,
    )


class BodyTests(SynchronousTestCase):
    """Bodies of deliveries."""

    def test_bodies(self) -> None:
        """Every byte of a body, blank lines and what looks like a message too, and no more; however it is cut."""
        bodies = [b"", b'{"a": 1}', b"\r\n\r\nMSG x 1 1\r\n", bytes(range(256)) * 300]
        data = b"".join(delivery(4, b"\r\nA: b", body=body) for body in bodies)
        for size in (7, 1000, len(data)):
            inlet = Inlet(INBOX, 1, b"s")
            inlet.ears.add(4)
            pieces = [inlet.feed(data[at : at + size]) for at in range(0, len(data), size)]
            assert [one.body for _, found, _ in pieces for one in found] == bodies
            assert b"".join(rest for *_, rest in pieces) == b""


class DeliveryTests(SynchronousTestCase):
    """What somebody listens for is taken out; the rest goes on."""

    ours = delivery(4, b"\r\nNats-Msg-Id: gw:1:norm\r\nSource:  a\r\nSource: b")
    end = delivery(4, b" 404 No Messages", reply=b"")
    others = delivery(5, b"\r\nA: b")

    def test_deliveries(self) -> None:
        """Subject, reply and headers of each, the status of a line that ends a slice; however they are cut."""
        data = self.ours + self.others + message(b"1", ack(1)) + self.end
        for at in range(len(data)):
            inlet = Inlet(INBOX, 1, b"s")
            inlet.ears.add(4)
            first, second = inlet.feed(data[:at]), inlet.feed(data[at:])
            found, last = first[1] + second[1]
            self.assertEqual((found.subject, found.reply), ("signals.normalized", "$JS.ACK.s.c.1.7.3.1.0"))
            self.assertEqual(found.headers, {"Nats-Msg-Id": "gw:1:norm", "Source": "a"})
            self.assertEqual((found.status, last.status, last.reply, last.headers), (0, 404, "", {}))
            self.assertEqual(first[0] + second[0], [(b"1", b"1", None)])
            self.assertEqual(first[2] + second[2], self.others)

    def test_large_headers(self) -> None:
        """A delivery with more headers than a control line may have is one delivery, however it is cut."""
        data = delivery(4, b"\r\nNats-Msg-Id: a\r\nX: " + b"x" * 100_000) + self.others
        for at in (1, 70, 5_000, 66_000, 99_999, len(data) - 5):
            inlet = Inlet(INBOX, 1, b"s")
            inlet.ears.add(4)
            first, second = inlet.feed(data[:at]), inlet.feed(data[at:])
            (found,) = first[1] + second[1]
            self.assertEqual((found.headers["Nats-Msg-Id"], len(found.headers["X"])), ("a", 100_000))
            self.assertEqual(first[2] + second[2], self.others)

    def test_nobody_listens(self) -> None:
        """Without an ear everything goes on."""
        inlet = Inlet(INBOX, 1, b"s")
        self.assertEqual(inlet.feed(self.ours), ([], [], self.ours))
