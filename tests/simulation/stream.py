"""
What JetStream does with one stream, as nats-server 2.15 does it: sequences, ids, limits, deletions, consumers.

A model: it decides what each publication is answered and what is stored then, from what was tried with the real
server; the contract suite of the bus runs both. Pure: time is handed in, in seconds since 1970. Not modelled: clusters,
rollups, headers other than those that gatewayd sends, push consumers, and loss of what was acknowledged.
"""

import json
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

NS: Final = 1_000_000_000
_HEADERS: Final = re.compile(rb"\r\n(Nats-[A-Za-z-]+): *([^\r]*)")


class ApiError(Exception):
    """An answer of JetStream that is an error."""

    def __init__(self, code: int, number: int, text: str) -> None:
        super().__init__(text)
        self.answer = {"code": code, "err_code": number, "description": text}


TWIN: Final = b'{"error":{"code":400,"err_code":10158,"description":"duplicate message id is in process"},"seq":0}'
NOT_FOUND: Final = (404, 10059, "stream not found")
NO_CONSUMER: Final = (404, 10014, "consumer not found")
NO_MESSAGE: Final = (404, 10037, "no message found")


def text_of(at: float) -> str:
    """RFC 3339 with nanoseconds, as the server writes it."""
    ns = round(at * 1e6) * 1000
    whole = datetime.fromtimestamp(ns // NS, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{ns % NS:09d}Z"


def matches(pattern: str, subject: str) -> bool:
    """True when a subject without wildcards is one of the pattern's."""
    if pattern in (">", subject):
        return True
    ours, theirs = pattern.split("."), subject.split(".")
    for i, part in enumerate(ours):
        if part == ">":
            return len(theirs) > i
        if i >= len(theirs) or part not in ("*", theirs[i]):
            return False
    return len(ours) == len(theirs)


@dataclass(slots=True)
class Kept:
    """One stored message; `by` is whoever published it."""

    sequence: int
    subject: str
    headers: bytes
    body: bytes
    at: float
    by: object

    @property
    def size(self) -> int:
        """What it takes of max_bytes in a file store."""
        head = len(self.headers) + 4 if self.headers else 0
        return 22 + len(self.subject) + head + len(self.body) + 8


@dataclass(slots=True)
class Consumer:
    """A pull consumer; `next` is the stream sequence it goes on at."""

    name: str
    config: dict[str, Any]
    filter: str
    next: int
    created: float
    delivered: int = 0
    used: float = 0.0
    waiting: list[Any] = field(default_factory=list)


class Stream:
    """One stream."""

    def __init__(self, config: dict[str, Any], now: float) -> None:
        self.created = now
        self.config: dict[str, Any] = {}
        self.messages: dict[int, Kept] = {}  # in the order of their sequences
        self.ids: dict[bytes, int] = {}
        self.consumers: dict[str, Consumer] = {}
        self.last = 0
        self.first = 1
        self.bytes = 0
        self.last_at = 0.0
        self._remembered: deque[tuple[float, bytes]] = deque()
        self._taken: dict[str, bool] = {}
        self._of: dict[str, list[int]] = {">": []}  # subject -> sequences, and of all of them
        self._name = b""
        self.configure(config)

    def configure(self, config: dict[str, Any]) -> None:
        """Take a configuration over; ApiError for one that no server takes."""
        window = config.get("duplicate_window", 0)
        age = config.get("max_age", 0)
        if not window:
            window = min(120 * NS, age) if age else 120 * NS
        if age and window > age:
            raise ApiError(400, 10052, "duplicates window can not be larger then max age")
        defaults = {"max_msgs": -1, "max_bytes": -1, "max_age": 0, "retention": "limits", "discard": "old"}
        self.config = {**defaults, "num_replicas": 1, "storage": "file", **config, "duplicate_window": window}
        self._name = self.config["name"].encode()
        self._taken.clear()

    # publishing

    def takes(self, subject: str) -> bool:
        """True for a subject of this stream."""
        taken = self._taken.get(subject)
        if taken is None:
            taken = self._taken[subject] = any(matches(pattern, subject) for pattern in self.config["subjects"])
        return taken

    def publish(
        self,
        subject: str,
        headers: bytes,
        body: bytes,
        now: float,
        by: object,
        proposing: Callable[[Kept], bool] = lambda _: False,
    ) -> tuple[bytes, Kept | None]:
        """The answer to one publication, and what was stored; None for a duplicate and for a refusal."""
        named = dict(_HEADERS.findall(headers)) if headers else {}
        self.forget_old(now)
        try:
            kept = self._store(subject, headers, body, now, by, named)
        except ApiError as refused:
            members = {"error": refused.answer, "stream": self.config["name"], "seq": 0}
            return json.dumps(members).encode(), None
        if isinstance(kept, int):
            if kept in self.messages and proposing(self.messages[kept]):
                return TWIN, None
            return b'{"stream":"%b","seq":%d,"duplicate": true}' % (self._name, kept), None
        return b'{"stream":"%b","seq":%d}' % (self._name, kept.sequence), kept

    def _store(
        self, subject: str, headers: bytes, body: bytes, now: float, by: object, named: dict[bytes, bytes]
    ) -> Kept | int:
        if named.get(b"Nats-Expected-Stream", self._name) != self._name:
            raise ApiError(400, 10060, "expected stream does not match")
        expected = named.get(b"Nats-Expected-Last-Subject-Sequence")
        if expected is not None and int(expected) != (last := self.last_of(subject)):
            raise ApiError(400, 10071, f"wrong last sequence: {last}")
        msg_id = named.get(b"Nats-Msg-Id")
        if msg_id is not None and (known := self.ids.get(msg_id)) is not None:
            return known
        kept = Kept(self.last + 1, subject, headers, body, now, by)
        self._make_room(kept)
        self.last += 1
        self.last_at = now
        self.messages[self.last] = kept
        self.bytes += kept.size
        self._of[">"].append(self.last)
        self._of.setdefault(subject, []).append(self.last)
        if msg_id is not None:
            self.ids[msg_id] = self.last
            self._remembered.append((now, msg_id))
        return kept

    def _make_room(self, kept: Kept) -> None:
        """Refuse, or drop the oldest, where a limit would be passed."""
        for limit, used, more, text in (
            ("max_msgs", len(self.messages), 1, "maximum messages exceeded"),
            ("max_bytes", self.bytes, kept.size, "maximum bytes exceeded"),
        ):
            most = self.config[limit]
            if most <= 0 or used + more <= most:
                continue
            if self.config["discard"] == "new":
                raise ApiError(503, 10077, text)
            while self.messages and (len(self.messages) if limit == "max_msgs" else self.bytes) + more > most:
                self.remove(next(iter(self.messages)))

    def forget_old(self, now: float) -> None:
        """Forget ids beyond the duplicate window and messages beyond max_age."""
        window_s = self.config["duplicate_window"] / NS
        remembered = self._remembered
        while remembered and remembered[0][0] + window_s <= now:
            del self.ids[remembered.popleft()[1]]
        age_s = self.config["max_age"] / NS
        while age_s and self.messages and (oldest := next(iter(self.messages.values()))).at + age_s <= now:
            self.remove(oldest.sequence)

    # what operators and servers do

    def remove(self, sequence: int) -> None:
        """Lose one message; its id stays known."""
        kept = self.messages.pop(sequence)
        self.bytes -= kept.size
        for subject in (">", kept.subject):
            del self._of[subject][bisect_left(self._of[subject], sequence)]
        self.first = next(iter(self.messages), self.last + 1)

    def purge(self) -> int:
        """Lose every message; ids and sequences stay."""
        count = len(self.messages)
        self.messages.clear()
        self._of = {">": []}
        self.bytes = 0
        self.first = self.last + 1
        return count

    def restart(self, now: float) -> None:
        """The server starts again: it knows the ids of what is stored, and consumers in memory are gone."""
        self.forget_old(now)
        window_s = self.config["duplicate_window"] / NS
        self.ids.clear()
        self._remembered.clear()
        for kept in self.messages.values():
            found = dict(_HEADERS.findall(kept.headers)).get(b"Nats-Msg-Id")
            if found is not None and kept.at + window_s > now:
                self.ids[found] = kept.sequence
                self._remembered.append((kept.at, found))
        self.consumers = {name: one for name, one in self.consumers.items() if one.config.get("durable_name")}
        for consumer in self.consumers.values():
            consumer.waiting.clear()

    # reading

    def info(self) -> dict[str, Any]:
        """Of STREAM.INFO."""
        first = self.messages.get(self.first)
        state = {
            "messages": len(self.messages),
            "bytes": self.bytes,
            "first_seq": self.first if self.last else 0,
            "first_ts": text_of(first.at) if first is not None else "0001-01-01T00:00:00Z",
            "last_seq": self.last,
            "last_ts": text_of(self.last_at) if self.last else "0001-01-01T00:00:00Z",
            "consumer_count": len(self.consumers),
        }
        return {"config": dict(self.config), "created": text_of(self.created), "state": state}

    def last_of(self, subject: str) -> int:
        """The sequence of the last message with this subject, 0 for none."""
        known = self._of.get(subject)
        return known[-1] if known else 0

    def consume(self, name: str, config: dict[str, Any], now: float) -> Consumer:
        """Make a consumer."""
        start = 1
        if config.get("deliver_policy") == "by_start_sequence":
            start = int(config["opt_start_seq"])
        elif config.get("deliver_policy") == "by_start_time":
            since = datetime.fromisoformat(config["opt_start_time"]).timestamp()
            start = next((kept.sequence for kept in self.messages.values() if kept.at >= since), self.last + 1)
        consumer = Consumer(name, config, config.get("filter_subject") or ">", start, now, used=now)
        self.consumers[name] = consumer
        return consumer

    def of(self, consumer: Consumer) -> Iterator[Kept]:
        """What is still to come for a consumer, in order."""
        sequences, begin = self._coming(consumer)
        return (self.messages[sequence] for sequence in islice(sequences, begin, None))

    def pending(self, consumer: Consumer) -> int:
        """How many are still to come."""
        sequences, begin = self._coming(consumer)
        return len(sequences) - begin

    def _coming(self, consumer: Consumer) -> tuple[list[int], int]:
        """The sequences of a consumer's filter, and the place of the next one among them."""
        sequences = self._of.get(consumer.filter)
        if sequences is None:
            patterns = [subject for subject in self._of if subject != ">" and matches(consumer.filter, subject)]
            sequences = sorted(sequence for subject in patterns for sequence in self._of[subject])
        return sequences, bisect_left(sequences, consumer.next)
