"""
The log of one process: its parts put together, and twisted.logger's events as lines.

Decides which of an event's fields are members of its line, which form suits the output, and what is left out when an
event repeats. Never decides what is worth a line; never writes (logwriter does).
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogEvent, formatEvent
from zope.interface import implementer

from gatewayd.accesslog import AccessLog
from gatewayd.lines import LEVELS, Form, Level, render
from gatewayd.logwriter import LogWriter, Output, open_path
from gatewayd.redaction import Redactor
from gatewayd.times import Wall, format_wall

_TRACEBACK_CHARS: Final = 16384


def form_for(fd: int, environ: Mapping[str, str]) -> Form:
    """The form that suits whatever fd is connected to; $JOURNAL_STREAM names the journal's socket (systemd.exec(5))."""
    if os.isatty(fd):
        return Form.TEXT
    status = os.fstat(fd)
    if environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}":
        return Form.JOURNAL
    return Form.JSON


class RepeatFilter:
    """Lets a key through once every interval_s seconds and counts what it held back. Knows 512 keys at most."""

    KEYS = 512

    def __init__(self, seconds: Callable[[], float], interval_s: float = 1.0) -> None:
        self._seconds = seconds
        self._interval_s = interval_s
        self._seen: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def admit(self, key: tuple[str, str]) -> int | None:
        """How many were held back since the last one that passed; None: this one is held back too."""
        now = self._seconds()
        due, held = self._seen.get(key, (now, 0))
        if now < due:
            self._seen[key] = (due, held + 1)
            return None
        self._seen[key] = (now + self._interval_s, 0)
        self._seen.move_to_end(key)
        if len(self._seen) > self.KEYS:
            self._seen.popitem(last=False)
        return held


_RESERVED: Final = frozenset({"timestamp", "level", "msg", "event", "failure", "repeats", "left_out"})


@implementer(ILogObserver)
class JsonObserver:
    """
    twisted.logger's events as lines: ours, Twisted's own, and whatever is printed.

    Members: timestamp, level, msg, event (the event's own `event`, else its namespace), then of the event's fields:
    from our modules every one that is a JSON value, from others the plain ones of its format; `left_out` where a
    repeating event was held back, and `failure`, the traceback. An event marked `repeats` (True, or a text that tells
    one cause from another) passes once a second.
    """

    def __init__(self, writer: LogWriter, form: Form, redactor: Redactor, level: Level, repeats: RepeatFilter) -> None:
        self.level = level
        self._writer = writer
        self._form = form
        self._redactor = redactor
        self._repeats = repeats

    def __call__(self, event: LogEvent) -> None:
        """Write the event, unless its level is too low or it repeats."""
        level = LEVELS.get(getattr(event.get("log_level"), "name", "info"), Level.INFO)
        if level.number < self.level.number:
            return
        name = event.get("event")
        if not isinstance(name, str):
            name = str(event.get("log_namespace") or "log")
        left_out: int | None = 0
        if event.get("repeats"):
            left_out = self._repeats.admit((name, str(event["repeats"])))
            if left_out is None:
                return
        said = _format_fields(str(event.get("log_format") or ""))
        members: dict[str, Any] = {
            "timestamp": format_wall(event.get("log_time", 0.0)),
            "level": level.text,
            "msg": self._redactor.bounded(formatEvent(event)),
            "event": name,
        }
        ours = str(event.get("log_namespace")).startswith("gatewayd")
        for field in [key for key in event if not key.startswith("log_")] if ours else said:
            value = self._redactor.plain(event.get(field))
            if value is not None and field not in _RESERVED:
                members[field] = value
        if left_out:
            members["left_out"] = left_out
        failure = event.get("log_failure")
        if failure is not None:
            # Its end says what went wrong.
            traceback = self._redactor.clean(failure.getTraceback())[-_TRACEBACK_CHARS:]
            members["failure"] = self._redactor.bounded(traceback, _TRACEBACK_CHARS)
        self._writer.write(render(self._form, level, members, said))


@lru_cache(maxsize=512)
def _format_fields(log_format: str) -> frozenset[str]:
    """The plain names in a format: {name}, not {name.attribute} or {call()}."""
    try:
        names = {name for _, name, _, _ in Formatter().parse(log_format) if name}
    except ValueError:
        return frozenset()
    return frozenset(name for name in names if name.isidentifier() and not name.startswith("log_"))


@dataclass(frozen=True, slots=True)
class Log:
    """The parts of one process's log."""

    writer: LogWriter
    observer: JsonObserver
    access: AccessLog
    redactor: Redactor
    form: Form

    def set_level(self, level: Level) -> None:
        """Leave out what is below `level` from now on."""
        self.observer.level = level
        self.access.level = level

    def renew_secrets(self, secrets: Iterable[bytes]) -> None:
        """Redact these secrets from now on, and no others."""
        self.redactor.renew(secrets)
        self.access.forget()


def make_log(
    clock: IReactorTime,
    wall: Callable[[], Wall],
    *,
    environ: Mapping[str, str],
    fd: int = 1,
    path: str = "",
    level: Level = Level.INFO,
    secrets: Iterable[bytes] = (),
) -> Log:
    """
    The log to `fd` (stdout), or to the file at `path`, to which it appends; `environ` tells the journal.

    OSError when the path cannot be opened. Nothing is read from the environment later.
    """
    output = Output(open_path(path), path) if path else Output(fd)
    form = form_for(output.fd, environ)
    redactor = Redactor(secrets)

    def notice(count: int) -> bytes:
        members = {
            "timestamp": format_wall(wall()),
            "level": Level.WARNING.text,
            "msg": f"{count} log lines were dropped: nobody read them in time",
            "event": "log.dropped",
            "dropped": count,
        }
        return render(form, Level.WARNING, members)

    writer = LogWriter(output, clock, notice)
    return Log(
        writer,
        JsonObserver(writer, form, redactor, level, RepeatFilter(clock.seconds)),
        AccessLog(writer, form, redactor, level),
        redactor,
        form,
    )
