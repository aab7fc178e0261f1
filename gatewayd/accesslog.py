"""
One line for each request.

Decides the members of that line and their order. On the hot path: no Logger, one encode. Never decides which requests
there are, never writes (logwriter does).
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from gatewayd.http.message import Request, Response
from gatewayd.lines import ENCODER, UNSAFE, AccessLine, Form, Level, encode, render
from gatewayd.logwriter import LogWriter
from gatewayd.redaction import Redactor
from gatewayd.times import Wall, format_wall

_PATH_CHARS: Final = 256
PATHS: Final = 1024
"""Paths that are known at once."""


class AccessLog:
    """
    One line for each request. On the hot path: no Logger, one encode.

    5xx are warnings (500 an error), all else is information; a level above that leaves the lines out.
    """

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
        line = ENCODER.encode(
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
        text = UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", text)
        if len(raw) <= _PATH_CHARS:
            if len(self._paths) >= PATHS:
                self._paths.clear()
            self._paths[raw] = text
        return text

    def _joined(self, line: bytes, more: Mapping[str, object]) -> bytes:
        members = {name: self._redactor.plain(value) for name, value in more.items() if name not in _OWN}
        extra = encode({name: value for name, value in members.items() if value is not None})
        return line if extra == b"{}" else b"%b,%b" % (line[:-1], extra[1:])


# A member looked up through its class costs 40 ns, each time.
_INFO, _WARNING, _ERROR, _JSON = Level.INFO, Level.WARNING, Level.ERROR, Form.JSON
_METHODS: Final = {b"POST": "POST", b"GET": "GET"}
_MS: Final = tuple(f".{ms:03d}Z" for ms in range(1000))
_MS_CHARS: Final = len(_MS[0])
_OWN: Final = frozenset(AccessLine.__struct_fields__)
