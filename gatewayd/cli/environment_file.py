"""
A unit's environment file as text: what is assigned in it, and the same file with one thing changed. Pure.

Decides how systemd reads such a file (EnvironmentFile= in systemd.exec(5)) and how a value is written so that systemd
and a shell read it alike. Everything that is not changed keeps its place, byte for byte. Never decides what a value
may be.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_BLANKS: Final = " \t\r\n"
_BREAKS: Final = "\r\n"
_ESCAPED: Final = '"\\`$'
"""What a backslash takes its meaning from between double quotes; before anything else it stands for itself."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:,@%+=-]+", re.ASCII)
_IMPOSSIBLE: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class Unwritable(ValueError):
    """A value that no line can hold, or a file that no line can be added to."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `NAME=value`, from `start` up to `end` in the text, its line break not included."""

    name: str
    value: str
    start: int
    end: int


def assignments(text: str) -> list[Assignment]:
    """Every assignment in order; the last one of a name counts. A line without = is none."""
    found = []
    at = 0
    while at < len(text):
        if text[at] in _BLANKS:
            at += 1
            continue
        line_end = _end_of_line(text, at)
        equals = text.find("=", at, line_end)
        if text[at] in "#;" or equals < 0:
            at = line_end
            continue
        value, end = _value(text, equals + 1)
        found.append(Assignment(text[at:equals].rstrip(), value, at, end))
        at = end
    return found


def _end_of_line(text: str, at: int) -> int:
    while at < len(text) and text[at] not in _BREAKS:
        at += 1
    return at


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that begins after an equals sign, and where it ends: quoted parts, then perhaps a plain one."""
    parts = []
    while at < len(text) and text[at] not in _BREAKS:
        if text[at] in " \t":
            at += 1
        elif text[at] == "'":
            closing = text.find("'", at + 1)
            closing = len(text) if closing < 0 else closing
            parts.append(text[at + 1 : closing])
            at = min(closing + 1, len(text))
        elif text[at] == '"':
            part, at = _double_quoted(text, at + 1)
            parts.append(part)
        else:
            part, at = _unquoted(text, at)
            parts.append(part)
    return "".join(parts), at


def _double_quoted(text: str, at: int) -> tuple[str, int]:
    part = []
    while at < len(text) and text[at] != '"':
        mark = text[at]
        if mark == "\\":
            at += 1
            mark = text[at : at + 1]
            if mark == "\n":  # the line goes on
                mark = ""
            elif mark and mark not in _ESCAPED:
                mark = f"\\{mark}"
        part.append(mark)
        at += 1
    return "".join(part), min(at + 1, len(text))


def _unquoted(text: str, at: int) -> tuple[str, int]:
    """Up to the end of the line, quotes and all; blanks at its end are dropped unless they are escaped."""
    part: list[str] = []
    kept = 0
    while at < len(text) and text[at] not in _BREAKS:
        if text[at] == "\\":
            at += 1
            if at < len(text) and text[at] not in _BREAKS:
                part.append(text[at])
            kept = len(part)
        else:
            part.append(text[at])
            kept = len(part) if text[at] not in _BLANKS else kept
        at += 1
    return "".join(part[:kept]), min(at, len(text))


def values(text: str) -> dict[str, str]:
    """What the unit gets from the file, in the order of the names' first assignments."""
    return {assignment.name: assignment.value for assignment in assignments(text)}


def quote(value: str) -> str:
    """The value as it is written behind the equals sign; Unwritable for control characters and lone surrogates."""
    if _IMPOSSIBLE.search(value) is not None:
        raise Unwritable("control characters, line breaks and bytes that are no UTF-8 cannot stand in it")
    if _PLAIN.fullmatch(value) is not None:
        return value
    return '"' + "".join(f"\\{mark}" if mark in _ESCAPED else mark for mark in value) + '"'


def with_value(text: str, name: str, value: str) -> str:
    """
    The text with `name` set: where it was set last, else under the commented line that shows it, else at the end.

    Raises Unwritable.
    """
    after = _with_line(text, name, f"{name}={quote(value)}")
    if values(after) != {**values(text), name: value}:
        raise Unwritable("a quote is left open in the file")
    return after


def _with_line(text: str, name: str, line: str) -> str:
    set_already = [found for found in assignments(text) if found.name == name]
    if set_already:
        last = set_already[-1]
        return without(text[: last.start], name) + line + text[last.end :]
    shown = re.compile(rf"^[#;] ?{re.escape(name)}=.*$", re.MULTILINE).search(text)
    if shown is not None:
        return f"{text[: shown.end()]}\n{line}{text[shown.end() :]}"
    gap = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{gap}{line}\n"


def without(text: str, name: str) -> str:
    """The text without any assignment of `name`; comments stay."""
    for found in reversed(assignments(text)):
        if found.name == name:
            start = text.rfind("\n", 0, found.start) + 1
            end = _end_of_line(text, found.end)
            text = text[:start] + text[end:].removeprefix("\r").removeprefix("\n")
    return text


def merged(environ: Mapping[str, str], of_unit: Mapping[str, str]) -> dict[str, str]:
    """The unit's environment under one's own: who sets X or X_FILE means neither form of the unit's."""
    own = {name.removesuffix("_FILE") for name in environ}
    under = {name: value for name, value in of_unit.items() if name.removesuffix("_FILE") not in own}
    return {**under, **environ}
