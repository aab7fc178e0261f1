"""
The log: what a line looks like, and what never stands in one.

Decides the members of a line and their order, the three forms (JSON; JSON behind a journal priority; text for a
terminal), redaction, and what is left out when a failure repeats. Never decides what is worth a line; never writes
(logwriter does).
"""

import base64
import math
import os
import re
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from string import Formatter
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogEvent, formatEvent
from zope.interface import implementer

from gatewayd.http.message import Request, Response
from gatewayd.logwriter import LogWriter, Output, open_path
from gatewayd.times import Wall, format_wall

_TEXT_CHARS: Final = 8192
_TRACEBACK_CHARS: Final = 16384
_PATH_CHARS: Final = 256
_MEMBERS: Final = 64

_ENCODER: Final = msgspec.json.Encoder()


class Level(Enum):
    """Levels: `number` orders them, `priority` is syslog's."""

    DEBUG = ("debug", 10, 7)
    INFO = ("info", 20, 6)
    WARNING = ("warning", 30, 4)
    ERROR = ("error", 40, 3)
    CRITICAL = ("critical", 50, 3)

    def __init__(self, text: str, number: int, priority: int) -> None:
        self.text = text
        self.number = number
        self.prefix = b"<%d>" % priority


LEVELS: Final[Mapping[str, Level]] = {level.text: level for level in Level} | {"warn": Level.WARNING}
"""By their names in lower case; Twisted says "warn"."""


class Form(Enum):
    """How a line is written."""

    JSON = "json"
    JOURNAL = "journal"  # JSON behind <priority>, which the journal takes off (sd-daemon(3))
    TEXT = "text"  # for a person at a terminal


def form_for(fd: int, environ: Mapping[str, str]) -> Form:
    """The form that suits whatever fd is connected to; $JOURNAL_STREAM names the journal's socket (systemd.exec(5))."""
    if os.isatty(fd):
        return Form.TEXT
    status = os.fstat(fd)
    if environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}":
        return Form.JOURNAL
    return Form.JSON


class Redactor:
    """
    Replaces the secrets it knows in anything that is about to be logged.

    Each secret is looked for as it is, escaped as Python and JSON do, percent-encoded, in hex, and in base64 at any of
    the three alignments. Secrets under 6 bytes are left out: they could not be told from ordinary words.
    """

    LEAST_BYTES = 6

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        self._forms: tuple[str, ...] = ()
        self.renew(secrets)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._forms)} texts>"

    def renew(self, secrets: Iterable[bytes]) -> None:
        """Know these secrets from now on, and no others."""
        forms: set[str] = set()
        for secret in secrets:
            if len(secret) >= self.LEAST_BYTES:
                forms.update(_secret_forms(secret))
        # The longest first: a secret may be a part of another.
        self._forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))

    def clean(self, text: str) -> str:
        """`text` with every secret in it replaced."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, "[redacted]")
        return text

    def bounded(self, text: str, most: int = _TEXT_CHARS) -> str:
        """`text` cleaned, cut to `most` characters, and without lone surrogates, which no encoder takes."""
        text = self.clean(text)
        if len(text) > most:
            text = f"{text[:most]}..."
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

    def plain(self, value: object, depth: int = 4) -> Any:
        """`value` as a JSON value, bounded, with every text in it cleaned; None when it is not one."""
        if isinstance(value, str):
            return self.bounded(value)
        if isinstance(value, int):
            return value if -(2**63) <= value < 2**63 else str(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if depth and isinstance(value, list | tuple):
            return [self.plain(member, depth - 1) for member in value[:_MEMBERS]]
        if depth and isinstance(value, Mapping):
            members = list(value.items())[:_MEMBERS]
            return {self.bounded(str(name), 128): self.plain(member, depth - 1) for name, member in members}
        return None


def _secret_forms(secret: bytes) -> set[str]:
    plain = secret.decode("utf-8", "backslashreplace")
    forms = {plain, secret.decode("latin-1"), repr(secret)[2:-1], _ENCODER.encode(plain)[1:-1].decode()}
    forms |= {urllib.parse.quote(secret, safe) for safe in ("", "/", "!'()*")} | {urllib.parse.quote_plus(secret)}
    forms |= {secret.hex(), secret.hex().upper()}
    for shift in range(3):
        # Of base64 at another alignment, what does not depend on the neighbours: whole groups of 6 bits.
        first = -(-shift * 8 // 6)
        last = (shift + len(secret)) * 8 // 6
        core = base64.b64encode(bytes(shift) + secret).decode()[first:last]
        forms |= {core, core.replace("+", "-").replace("/", "_")}
    return forms


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


# What a terminal could take for a command: C0, DEL, C1, and the marks that turn the direction of writing.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# DEL and C1 in UTF-8: JSON need not escape them, but a terminal that shows the file would obey them.
_UNSAFE_ENCODED: Final = re.compile(rb"\x7f|\xc2[\x80-\x9f]")


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def _encode(value: object) -> bytes:
    # Byte by byte is right: in UTF-8 these are nothing else, and in JSON they stand in strings only.
    return _UNSAFE_ENCODED.sub(lambda found: b"\\u%04x" % found[0][-1], _ENCODER.encode(value))


def render(form: Form, level: Level, members: Mapping[str, Any], said: frozenset[str] = frozenset()) -> bytes:
    """One line. `members` are JSON values in order; `said` are those that stand in `msg` already (left out of text)."""
    if form is Form.TEXT:
        return _render_text(level, members, said)
    return b"%b%b\n" % (level.prefix if form is Form.JOURNAL else b"", _encode(members))


def _render_text(level: Level, members: Mapping[str, Any], said: frozenset[str]) -> bytes:
    """A line for people; only a traceback stands on further lines, indented."""
    told = {"timestamp", "level", "msg", "event", "failure", *said}
    rest = " ".join(
        [
            f"{name}={value if isinstance(value, str) else _ENCODER.encode(value).decode()}"
            for name, value in members.items()
            if name not in told
        ]
    )
    parts = [members["timestamp"], f"{level.text.upper():<8}", f"[{members['event']}]", members["msg"]]
    text = _escape(" ".join([*parts, rest] if rest else parts))
    failure = "".join([f"\n    {_escape(line)}" for line in members.get("failure", "").splitlines()])
    return (text + failure + "\n").encode()


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


class AccessLine(msgspec.Struct, gc=False, omit_defaults=True):
    """One request's line; members in this order, an empty one with a default left out, then the answer's own."""

    timestamp: str
    level: str
    msg: str
    event: str
    corr_id: str
    requestId: str
    client_ip: str = ""
    ip: str = ""
    method: str = ""
    path: str = ""
    source: str = ""
    instrument: str = ""
    status: int | UnsetType = UNSET  # always given: a default is wanted behind another
    code: str = ""
    validation_status: str = ""
    latency_ms: float | UnsetType = UNSET  # always given
    client_corr_id: str = ""


class AccessLog:
    """
    One line for each request. On the hot path: no Logger, one encode.

    5xx are warnings (500 an error), all else is information; a level above that leaves the lines out.
    """

    PATHS = 1024

    def __init__(self, writer: LogWriter, form: Form, redactor: Redactor, level: Level) -> None:
        self.level = level
        self._writer = writer
        self._form = form
        self._redactor = redactor
        self._paths: dict[bytes, str] = {}
        self._second = -1
        self._second_text = ""

    def write(
        self, request: Request | None, response: Response, latency_s: float, now: Wall, *, peer: str = ""
    ) -> None:
        """
        Write the line of `request`, answered by `response` after latency_s seconds, at `now`.

        Without a request (nothing could be parsed) `peer` is the client's address.
        """
        status = response.status
        level = _INFO if status < 500 else _ERROR if status == 500 else _WARNING
        if level.number < self.level.number:
            return
        method = path = client_corr_id = ""
        if request is not None:
            peer = request.client_ip
            method = _METHODS.get(request.method) or request.method.decode("latin-1")
            path = self._paths.get(request.path) or self._learn(request.path)
            client_corr_id = request.client_corr_id
        # The text of one second is kept, since no two lines carry the same instant: 0.9 -> 0.3 us.
        ms = int(now * 1000 + 0.5)
        second = ms // 1000
        if second != self._second:
            self._second, self._second_text = second, format_wall(second)[:-_MS_CHARS]
        corr_id = response.corr_id
        line = _ENCODER.encode(
            AccessLine(
                self._second_text + _MS[ms - second * 1000],
                level.text,
                "Incoming request",
                "request",
                corr_id,
                corr_id,
                peer,
                peer,
                method,
                path,
                response.source,
                response.instrument,
                status,
                response.code,
                response.validation_status,
                round(latency_s * 1000, 3),
                client_corr_id,
            )
        )
        if response.logged:
            line = self._joined(line, response.logged)
        if self._form is _JSON:
            self._writer.write(line + b"\n")
        elif self._form is Form.JOURNAL:
            self._writer.write(level.prefix + line + b"\n")
        else:
            self._writer.write(render(self._form, level, msgspec.json.decode(line)))

    def forget(self) -> None:
        """Drop the paths that were cleaned of secrets that have been renewed."""
        self._paths.clear()

    def _learn(self, raw: bytes) -> str:
        """The path as it is logged, bounded and cleaned; kept when it is short, since the real paths are few."""
        text = self._redactor.clean(raw.decode("latin-1"))[:_PATH_CHARS]
        text = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", text)
        if len(raw) <= _PATH_CHARS:
            if len(self._paths) >= self.PATHS:
                self._paths.clear()
            self._paths[raw] = text
        return text

    def _joined(self, line: bytes, more: Mapping[str, object]) -> bytes:
        members = {name: self._redactor.plain(value) for name, value in more.items() if name not in _OWN}
        extra = _encode({name: value for name, value in members.items() if value is not None})
        return line if extra == b"{}" else b"%b,%b" % (line[:-1], extra[1:])


# A member looked up through its class costs 40 ns, each time.
_INFO, _WARNING, _ERROR, _JSON = Level.INFO, Level.WARNING, Level.ERROR, Form.JSON
_METHODS: Final = {b"POST": "POST", b"GET": "GET"}
_MS: Final = tuple(f".{ms:03d}Z" for ms in range(1000))
_MS_CHARS: Final = len(_MS[0])
_OWN: Final = frozenset(AccessLine.__struct_fields__)


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
