"""
Times as this product speaks them. Pure.

Decides what a valid timestamp text is, and how one is written. Never reads a clock: the two clocks
(monotonic for timers and lifetimes, wall for timestamps and windows) are handed to whoever needs them,
and their two types keep the one from being used for the other.
"""

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import NewType

Monotonic = NewType("Monotonic", float)
"""Seconds of the monotonic clock: for lifetimes and deadlines, meaningless outside this process."""

Wall = NewType("Wall", float)
"""Seconds since 1970-01-01 UTC: for timestamps and windows; may step."""

HEADER_FRACTION_DIGITS = 8
BODY_FRACTION_DIGITS = 9

# ASCII digits only (re.ASCII): int() and float() would take Arabic digits, underscores, signs and blanks.
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt]((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII
)
_EPOCH = re.compile(r"\d{1,11}", re.ASCII)
_FIRST, _END = 0.0, 253370764800.0  # 1970-01-01 and 9999-01-01: what lies outside is no time of an event
_ENDINGS = tuple(f".{ms:03d}Z" for ms in range(1000))
_LARGEST_OFFSET_S = 14 * 3600  # no zone of the world is further from UTC


def parse_rfc3339(text: str, fraction_digits: int = BODY_FRACTION_DIGITS) -> Wall | None:
    """
    The instant that an RFC 3339 date-time with a zone names; None when the text is anything else.

    Years 1970 to 9998, offsets up to 14:00, at most fraction_digits digits after a point, no leap second.
    """
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    day, clock, fraction, zone, sign, offset_hour, offset_minute = found.groups()
    if fraction is not None and len(fraction) > fraction_digits:
        return None
    try:
        # The standard library's parser, on nothing but the form that was just checked: it knows the calendar.
        instant = datetime.fromisoformat(f"{day}T{clock}+00:00").timestamp()
    except ValueError:
        return None
    if not _FIRST <= instant < _END:
        return None
    if fraction is not None:
        instant += int(fraction) / 10 ** len(fraction)
    if zone is None:
        offset = int(offset_hour) * 3600 + int(offset_minute) * 60
        if int(offset_minute) > 59 or offset > _LARGEST_OFFSET_S:
            return None
        instant += -offset if sign == "+" else offset
    return Wall(instant)


def parse_header_time(text: str) -> Wall | None:
    """X-Timestamp: RFC 3339 with zone, or epoch seconds in 1 to 11 ASCII digits; None for anything else."""
    if _EPOCH.fullmatch(text) is not None:
        return Wall(float(text))
    return parse_rfc3339(text, HEADER_FRACTION_DIGITS)


@lru_cache(maxsize=256)
def format_wall(instant: float) -> str:
    """RFC 3339 in UTC with milliseconds, as every event and answer carries it: 2024-01-15T10:30:00.000Z."""
    # One request writes the same instant several times (1.7 -> 0.1 us).
    second, ms = divmod(int(instant * 1000 + 0.5), 1000)
    return _second_text(second) + _ENDINGS[ms]


@lru_cache(maxsize=16)
def _second_text(second: int) -> str:
    """Computed once a second instead of once a line: 1.6 -> 0.3 us at thousands of lines a second."""
    return datetime.fromtimestamp(second, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")
