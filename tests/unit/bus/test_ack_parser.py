"""The short way for acknowledgements hears what nats-py's own parser would, however the bytes are cut."""

import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.driver import AckParser

INBOX = b"_INBOX.abc"
ACK = b'{"stream":"s","seq":%d}'


class Connection:
    """What the parser tells its client."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.told.append(("message", sid, bytes(subject), data, headers))

    async def _process_ping(self) -> None:
        self.told.append(("ping",))


def message(token: bytes, body: bytes, sid: int = 1) -> bytes:
    return b"MSG %b.%b %d %d\r\n%b\r\n" % (INBOX, token, sid, len(body), body)


def feed(parser: AckParser, data: bytes) -> None:
    """Parse it; nothing that it awaits has to wait."""
    try:
        parser.parse(data).send(None)
    except StopIteration:
        return
    raise AssertionError("the parser waits")


def parse(pieces: list[bytes]) -> list[tuple[Any, ...]]:
    """Everything that was heard or told, in one order, in one form."""
    connection = Connection()
    parser = AckParser(connection)  # type: ignore[no-untyped-call]
    parser.heard = lambda token, data: connection.told.append(
        ("message", 1, b"%b.%b" % (INBOX, token.encode()), data, None)
    )
    parser.ack_line = re.compile(rb"MSG %b\.(\d+) 1 (\d+)\r\n" % re.escape(INBOX))
    for piece in pieces:
        feed(parser, piece)
    return connection.told


STREAM = b"".join(
    [
        *(message(b"%d" % number, ACK % number) for number in range(3)),
        b"PING\r\n",
        message(b"r7", b"an answer to a request"),
        message(b"4", b"of another subscription", sid=2),
        b"HMSG %b.5 1 30 30\r\nNATS/1.0 503 No Responders\r\n\r\n\r\n" % INBOX,
        message(b"6", b""),
        message(b"8", b"MSG _INBOX.abc.9 1 2\r\nhi"),
    ]
)


class AckParserTests(SynchronousTestCase):
    """One stream of bytes, cut in every way."""

    def test_every_kind(self) -> None:
        """Acknowledgements, requests' answers, status lines and pings are told, in order, each once."""
        told = parse([STREAM])
        assert [each[0] if each[0] == "ping" else each[2].rpartition(b".")[2] for each in told] == [
            *(b"0", b"1", b"2", "ping", b"r7", b"4", b"5", b"6", b"8")
        ]
        assert told[-1][3] == b"MSG _INBOX.abc.9 1 2\r\nhi"

    def test_cut_anywhere(self) -> None:
        """Two reads instead of one, cut at any byte, change nothing."""
        whole = parse([STREAM])
        for at in range(1, len(STREAM)):
            assert parse([STREAM[:at], STREAM[at:]]) == whole, at

    def test_byte_by_byte(self) -> None:
        """Nor does a read for every byte."""
        assert parse([STREAM[at : at + 1] for at in range(len(STREAM))]) == parse([STREAM])
