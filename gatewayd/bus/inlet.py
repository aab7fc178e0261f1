"""
What the server sends, taken apart before nats-py sees it. Pure, sans-io.

Decides which bytes are acknowledgements of publications in their usual form, which are deliveries that somebody
listens for, and where every other message ends, which is nats-py's own. Never decides what any of them means (the lane
and whoever reads the stream do).
"""

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from gatewayd.bus.stored import parse_headers

Acks: TypeAlias = list[tuple[bytes, bytes, bytes | None]]
"""Of each acknowledgement: token and sequence in digits; the third is None unless it says duplicate."""

_ACK: Final = (
    rb"MSG %b\.(\d{1,18}) %d (\d{1,4})\r\n"
    rb'\{"stream":"%b",\s?"seq":(\d{1,19})(?:,\s?"duplicate":\s?(true))?\}\r\n'
)
_LONGEST_LINE: Final = 65_536
"""Control lines are shorter: names are; INFO of a large cluster has some thousand bytes."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    A message with headers for the subscription `sid`; of a header that stands twice the first. `status` is the number
    of its status line, 0 without one.
    """

    sid: int
    subject: str
    reply: str
    headers: dict[str, str]
    status: int
    body: bytes = b""


class Inlet:
    """
    The bytes of one connection on their way in, in whatever pieces they come.

    `inbox` is where acknowledgements go, under the subscription `sid`; `stream` is the one they must name. One
    regular expression reads an acknowledgement whole, 0.9 us; as a message of nats-py's it costs 10.
    """

    def __init__(self, inbox: bytes, sid: int, stream: bytes) -> None:
        self._ack = re.compile(_ACK % (re.escape(inbox), sid, re.escape(stream))).match
        self._held = b""
        self.ears: set[int] = set()  # the subscriptions whose deliveries are taken out; a few at most
        self._passing = 0  # bytes of a message under way that are nats-py's, whatever stands in them

    def feed(self, data: bytes) -> tuple[Acks, list[Delivery], bytes]:
        """The acknowledgements and the deliveries in these bytes, each in order, and the bytes to hand on."""
        acks: Acks = []
        deliveries: list[Delivery] = []
        if self._held:
            data, self._held = self._held + data, b""
        match, at, end = self._ack, 0, len(data)
        if self._passing:
            at = min(self._passing, end)
            self._passing -= at
        passed = data[:at]
        while at < end:
            found = match(data, at)
            if found is not None and int(found[2]) == found.end() - found.end(2) - 4:  # and as long as it says
                acks.append((found[1], found[3], found[4]))
                at = found.end()
                continue
            size = self._measure(data, at)
            if size == 0:
                self._held = data[at:]
                break
            delivery = self._deliver(data[at : at + size]) if self.ears else None
            if delivery is not None:
                deliveries.append(delivery)
            else:
                passed += data[at : at + size]
            self._passing = max(0, at + size - end)
            at += size
        return acks, deliveries, passed

    def _measure(self, data: bytes, at: int) -> int:
        """
        How many bytes the message that begins at `at` has; 0 when that cannot be said yet, or when it may be an
        acknowledgement or a delivery that is not complete. What is held for a delivery is bounded by max_payload.
        """
        line_end = data.find(b"\r\n", at, at + _LONGEST_LINE)
        if line_end < 0:
            return 0 if len(data) - at < _LONGEST_LINE else len(data) - at
        line = data[at:line_end]
        headed = line[:5] == b"HMSG "
        if not headed and line[:4] != b"MSG ":
            return line_end + 2 - at
        payload = line.rpartition(b" ")[2]
        size = line_end + 2 - at + (int(payload) if payload.isdigit() else 0) + 2
        if at + size <= len(data) or (size > _LONGEST_LINE and not (headed and self.ears)):
            return size
        return 0

    def _deliver(self, message: bytes) -> Delivery | None:
        """The delivery that a whole message is; None when nobody listens for it, or it has no headers."""
        if message[:5] != b"HMSG ":
            return None
        line, _, rest = message.partition(b"\r\n")
        fields = line.split(b" ")
        if len(fields) not in (5, 6) or not fields[2].isdigit() or int(fields[2]) not in self.ears:
            return None
        head, size = (int(field) if field.isdigit() else 0 for field in fields[-2:])
        block = rest[:head].decode("utf-8", "replace")
        status = block[9:12]
        reply = fields[3].decode("utf-8", "replace") if len(fields) == 6 else ""
        number = int(status) if status.isascii() and status.isdigit() else 0
        subject = fields[1].decode("utf-8", "replace")
        return Delivery(int(fields[2]), subject, reply, parse_headers(block), number, rest[head:size])
