"""
Following a session's events: every one verified, printed once, and resumed behind the last when the connection is lost.

Decides what is printed, when it is tried again, and what is kept of the position. Never prints an event that the
gateway did not sign.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gatewayd.cli.console import Code, Failed, Surroundings, note, plain, show, show_json
from gatewayd.cli.edge_client import (
    Channel,
    Ended,
    Identity,
    Received,
    Trust,
    check_position,
    is_behind,
    shown_payload,
    untrusted,
)
from gatewayd.cli.replacement import replace_file
from gatewayd.times import Wall, format_wall

SERVER_TIME: Final = "gateway.server_time"
HEARTBEAT: Final = "gateway.heartbeat"
RESUME_FAILED: Final = "gateway.resume_failed"
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_KEPT_EVERY_S: Final = 1.0
_POSITION_BYTES: Final = 4096


class PositionFile:
    """
    The file that the position is kept in, or none. Written once a second at the most and by close(): after a kill the
    last second's events come again.
    """

    def __init__(self, path: Path | None, monotonic: Callable[[], float]) -> None:
        self._path = path
        self._monotonic = monotonic
        self._position = self._written = self._read()
        self._due = monotonic()

    def _read(self) -> str:
        if self._path is None:
            return ""
        try:
            with self._path.open("rb") as file:
                text = file.read(_POSITION_BYTES).decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise Failed(Code.WRONG, f"{self._path} cannot be read: {error.strerror}") from None
        try:
            return check_position(text)
        except Failed:
            raise Failed(Code.WRONG, f"{self._path} holds no position") from None

    @property
    def position(self) -> str:
        """The last one that was kept, "" for none."""
        return self._position

    def keep(self, position: str) -> None:
        """Keep it, now or a little later."""
        self._position = position
        if self._monotonic() >= self._due:
            self.close()
            self._due = self._monotonic() + _KEPT_EVERY_S

    def close(self) -> None:
        """Write what is not written."""
        if self._path is not None and self._position != self._written:
            replace_file(self._path, f"{self._position}\n".encode(), 0o600)
            self._written = self._position


@contextmanager
def _whole() -> Iterator[None]:
    """Ctrl-C comes before or after it: an event that was printed and not kept would be printed again."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class EdgeFollowing:
    """
    One run of `edge subscribe`. `position` is where to resume, "" to begin with what comes now; `count` how many events
    to print, those of the gateway itself not counted, None for no end.
    """

    def __init__(
        self,
        channel: Channel,
        identity: Identity,
        trust: Trust,
        surroundings: Surroundings,
        *,
        message_type: str,
        position: str,
        kept: PositionFile,
        count: int | None,
        as_json: bool,
    ) -> None:
        self._channel = channel
        self._identity = identity
        self._trust = trust
        self._surroundings = surroundings
        self._message_type = message_type
        self._position = position or kept.position
        self._kept = kept
        self._left = count
        self._as_json = as_json
        self._begun = False
        self._pause_s = _FIRST_PAUSE_S

    def run(self) -> None:
        """
        Until `count` events are printed. Failed when it cannot begin, when an end is final, or when something came that
        the gateway did not sign.
        """
        while self._left is None or self._left > 0:
            try:
                self._read()
            except Ended as ended:
                if ended.final or not self._begun:
                    raise Failed(Code.NOT_IN_ORDER, str(ended)) from None
                self._wait(str(ended), ended.wait_s)
            except Failed as failed:
                if failed.code is not Code.UNREACHABLE or not self._begun:
                    raise
                self._wait("; ".join(failed.lines), None)

    def _read(self) -> None:
        surroundings = self._surroundings
        envelope = self._identity.sign(
            self._message_type,
            self._position.encode(),
            at_ms=round(surroundings.wall() * 1000),
            request_id=surroundings.nonce(),
            trace_id="",
        )
        first = True
        for event in self._channel.subscribe(envelope):
            key = self._trust.check_event(event)
            # The first event answers this very request: nobody can play an old stream to us.
            if first and (event.event_type, event.request_id) != (SERVER_TIME, envelope.request_id):
                raise untrusted("the stream does not begin with the answer to this request")
            first, self._begun, self._pause_s = False, True, _FIRST_PAUSE_S
            self._take(event, key)
            if self._left == 0:
                return

    def _take(self, event: Received, key: str) -> None:
        behind = is_behind(event.position, self._position)
        if event.event_type == RESUME_FAILED:
            note("gatewayctl: the stream could not be resumed: something may have been missed")
        with _whole():
            if (event.own or not behind) and event.event_type != HEARTBEAT:
                if self._as_json:
                    show_json(as_members(event, key))
                else:
                    show(as_line(event, key))
            if behind:
                return
            self._position = event.position
            self._kept.keep(event.position)
        if self._left is not None and not event.own:
            self._left -= 1

    def _wait(self, reason: str, wait_s: float | None) -> None:
        wait_s = self._pause_s if wait_s is None else wait_s
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)
        note(f"gatewayctl: {reason}; coming again in {wait_s:g} s")
        self._surroundings.sleep(wait_s)


def as_line(event: Received, key: str) -> str:
    """One event in seven words: time, type, id, the key that signed it, position, and the payload as the rest."""
    texts = (event.event_type, event.event_id, key, event.position)
    words = (plain(text).replace(" ", "_") or "-" for text in texts)
    (payload,) = shown_payload(event.payload).values()
    return " ".join((format_wall(Wall(event.timestamp_ms / 1000)), *words, plain(payload, 2000)))


def as_members(event: Received, key: str) -> dict[str, Any]:
    """One event as a JSON object; `key` is the id of the gateway's key under which the signature is good."""
    return {
        "event_type": event.event_type,
        "event_id": event.event_id,
        "timestamp_ms": event.timestamp_ms,
        "request_id": event.request_id,
        "trace_id": event.trace_id,
        "position": event.position,
        "key": key,
        **shown_payload(event.payload),
    }
