"""
The maintenance switch. Pure.

Decides whether maintenance is on, and how long a client should wait. It can be set by the settings and by a file that
`gatewayctl maintenance` writes; either is enough. Never reads the file: its content is handed in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from gatewayd.times import Wall, format_wall, parse_rfc3339


class _File(msgspec.Struct):
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Maintenance is on: until when, if that is known, and the seconds a client should wait."""

    until: Wall | None
    retry_after_s: float

    @property
    def text(self) -> str | None:
        """The window's end as clients see it."""
        return None if self.until is None else f"until {format_wall(self.until)}"


class Maintenance:
    """The switch of one process. A window whose end has passed is over, without anybody switching it off."""

    def __init__(self, wall: Callable[[], Wall], *, on: bool, until: Wall | None, retry_after_s: float) -> None:
        self._wall = wall
        self._file: Wall | None = None
        self._file_on = False
        self.configure(on=on, until=until, retry_after_s=retry_after_s)

    def configure(self, *, on: bool, until: Wall | None, retry_after_s: float) -> None:
        """Take the settings' word (again, after a reload)."""
        self._on, self._until, self._retry_after_s = on, until, retry_after_s

    def read_file(self, content: bytes | None) -> None:
        """
        Take the file's word: None when there is no file.

        A file that cannot be understood means maintenance without a known end: somebody meant to switch it on.
        """
        self._file_on, self._file = content is not None, None
        if content is None:
            return
        try:
            until = msgspec.json.decode(content, type=_File).until
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        self._file = None if until is None else parse_rfc3339(until)

    def window(self) -> Window | None:
        """The window that is open now; None when there is none."""
        if not self._on and not self._file_on:
            return None
        now = self._wall()
        for on, until in ((self._file_on, self._file), (self._on, self._until)):
            if on and (until is None or until > now):
                return Window(until, self._retry_after_s if until is None else until - now)
        return None
