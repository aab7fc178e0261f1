"""A BusCounters that remembers."""

from collections import Counter


class Counts:
    """What the bus reported: `messages` by (subject, ok), `errors` by kind, `late` acknowledgements, `seconds`."""

    def __init__(self) -> None:
        self.messages: Counter[tuple[bytes, bool]] = Counter()
        self.errors: Counter[str] = Counter()
        self.late = 0
        self.seconds: list[float] = []

    def published(self, subject: bytes, ok: bool) -> None:
        self.messages[subject, ok] += 1

    def publish_seconds(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def error(self, kind: str) -> None:
        self.errors[kind] += 1

    def late_ack(self) -> None:
        self.late += 1
