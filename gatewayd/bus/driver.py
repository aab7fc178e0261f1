"""
nats-py's client with a short way for acknowledgements.

Decides only which bytes are an acknowledgement that stands whole at the front of what was read; everything else goes
nats-py's own way. Used of it: where its parser keeps its state (client.check_private_names looks).
"""

import re
from collections.abc import Callable

from nats.aio.client import Client as Driver
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser


class AckParser(Parser):
    """
    nats-py's parser with a short way for acknowledgements: whole messages without headers for our inbox, at the front
    of what was read, are heard as they stand. The usual way makes a coroutine of each, a Msg, a queue entry and a
    woken task: 10 us.
    """

    ack_line: re.Pattern[bytes] | None = None
    heard: Callable[[str, bytes], object]

    async def parse(self, data: bytes = b"") -> None:
        if self.ack_line is not None and self.state == AWAITING_CONTROL_LINE and not self.buf:
            data = self._take(self.ack_line, data)
        if data:
            await super().parse(data)

    def _take(self, ack_line: re.Pattern[bytes], data: bytes) -> bytes:
        """Hear what stands whole at the front of `data`; the rest of it."""
        at = 0
        while (found := ack_line.match(data, at)) is not None:
            start = found.end()
            end = start + int(found[2])
            if len(data) < end + 2:
                break
            self.heard(found[1].decode("ascii"), data[start:end])
            at = end + 2
        return data[at:] if at else data


class AckDriver(Driver):
    """nats-py's client on that parser."""

    def __init__(self) -> None:
        super().__init__()
        self._ps: AckParser = AckParser(self)

    def hear(self, inbox: bytes, sid: int, heard: Callable[[str, bytes], object]) -> None:
        """Take the short way for messages of this subscription whose subject is the inbox and a number."""
        self._ps.heard = heard
        self._ps.ack_line = re.compile(rb"MSG %b\.(\d+) %d (\d+)\r\n" % (re.escape(inbox), sid))
