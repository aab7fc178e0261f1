"""
What a body says: one reader per format, from bytes to a Signal. Pure.

Decides which fields a format has and what they make together. Never decides whether a source is allowed or a body too
old, never turns a price into a float except to compare it.

A reader first tries a compiled decoder that knows the format's own fields (3 us). A body that it does not take exactly
as it stands, for whatever reason, goes to strict.read and the checks of Fields (11 us), which alone refuse.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gatewayd.ingress.bodies import NOTHING, Payload, TradingView, decode_generic, decode_tradingview
from gatewayd.ingress.fields import (
    CURRENT,
    MAX_NUMBER_CHARACTERS,
    MAX_STRATEGY_CHARACTERS,
    SCHEMA_VERSIONS,
    SIDES,
    Fault,
    Fields,
    Rules,
    describe,
)
from gatewayd.ingress.strict import Json, Malformed, read
from gatewayd.octets import BACKSLASH
from gatewayd.times import Wall, parse_rfc3339

__all__ = [
    "CURRENT",
    "READERS",
    "SCHEMA_VERSIONS",
    "Fault",
    "Generic",
    "Invalid",
    "Malformed",
    "Reader",
    "Signal",
    "read_generic",
    "read_tradingview",
]


class Signal(msgspec.Struct, frozen=True, gc=False):
    """
    What a body says, before it is an event.

    `instrument` is upper-case ASCII as the schema version allows it; `price` and `strength` are JSON's number tokens
    exactly as sent, at most MAX_NUMBER_CHARACTERS long, b"1.0945"; `side` is buy, sell, or None for close and for none
    given; `time` is the body's own.
    """

    instrument: str
    price: bytes
    side: str | None
    strength: bytes | None
    time: Wall
    strategy: str | None


@dataclass(frozen=True, slots=True)
class Invalid:
    """Strict JSON that is no signal (GW-003), with every fault; `is_empty` says that it is {}."""

    faults: tuple[Fault, ...]
    is_object: bool = True
    is_empty: bool = False


class Generic(msgspec.Struct, frozen=True, gc=False):
    """A body that names its source. The source is to be judged before the faults of the signal are looked at."""

    source: str
    signal: Signal | Invalid


# The fast readers. Each answers None for a body that is not the format's own fields and nothing else.
#
# msgspec takes the last of two equal keys and skips unknown members without looking into their strings. Both would add
# quotation marks: a body without a backslash has exactly two for each key and each string of the fields that were
# decoded, or something else is there too. Escapes are left to the exact readers.

_NULL: Final = b"null"
_NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch
# 24:00 is left to parse_rfc3339: Python 3.14 takes it for midnight.
_PLAIN_TIME: Final = re.compile(r"20\d\d-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d\d\d)?Z", re.ASCII).fullmatch


def _marks(value: str | UnsetType | None) -> int:
    """How many quotation marks an optional member adds to a body."""
    return 0 if value is UNSET else 2 if value is None else 4


def _fast_time(text: str) -> Wall | None:
    """parse_rfc3339, five times faster for the forms that platforms send: whole seconds, or milliseconds."""
    if _PLAIN_TIME(text) is None:
        return parse_rfc3339(text)
    try:
        return Wall(datetime.fromisoformat(text).timestamp())
    except ValueError:  # 31 June, or a leap second
        return None


def _fast_price(raw: Raw) -> bytes | None:
    price = bytes(raw)
    if len(price) > MAX_NUMBER_CHARACTERS or _NUMBER(price) is None or not 0.0 < float(price) < float("inf"):
        return None
    return price


def _fast_signal(
    rules: Rules, instrument: str, time: str, fields: TradingView | Payload, side: str | None
) -> Signal | None:
    price = _fast_price(fields.price)
    instant = _fast_time(time)
    if price is None or instant is None or not instrument.isascii():
        return None
    instrument = instrument.upper()
    if rules.instrument.fullmatch(instrument) is None:
        return None
    strategy = fields.strategy if isinstance(fields.strategy, str) and fields.strategy else None
    if strategy is not None and len(strategy) > MAX_STRATEGY_CHARACTERS:  # NUL needs an escape
        return None
    strength: bytes | None = None
    if fields.strength is not NOTHING:
        strength = bytes(fields.strength)
        if strength == _NULL:
            strength = None
        elif len(strength) > MAX_NUMBER_CHARACTERS or _NUMBER(strength) is None or not 0.0 <= float(strength) <= 1.0:
            return None
    return Signal(instrument, price, side, strength, instant, strategy)


def _fast_tradingview(body: bytes, rules: Rules) -> Signal | None:
    if BACKSLASH in body:
        return None
    try:
        fields = decode_tradingview(body)
    except (ValueError, RecursionError):
        return None
    marks = 10 + _marks(fields.action) + _marks(fields.strategy) + 2 * (fields.strength is not NOTHING)
    if body.count(b'"') != marks or fields.action not in SIDES:
        return None
    return _fast_signal(rules, fields.ticker, fields.time, fields, SIDES[fields.action])


def _fast_generic(body: bytes, path_source: str | None, rules: Rules) -> Generic | None:
    if BACKSLASH in body:
        return None
    try:
        fields = decode_generic(body)
    except (ValueError, RecursionError):
        return None
    payload = fields.payload
    marks = 12 + _marks(fields.source) + 2 * (payload.strength is not NOTHING)
    marks += _marks(payload.side) + _marks(payload.action) + _marks(payload.strategy)
    source = fields.source if isinstance(fields.source, str) else path_source
    if body.count(b'"') != marks or not source:
        return None
    side, action = payload.side, payload.action
    if side not in SIDES or action not in SIDES or side == "close":
        return None
    if isinstance(action, str):
        if isinstance(side, str) and side != action:
            return None
        side = action
    signal = _fast_signal(rules, fields.instrument, fields.timestamp, payload, SIDES[side])
    return None if signal is None else Generic(source, signal)


# The exact readers.


class Reader(Protocol):
    """
    Reads one format under a key of SCHEMA_VERSIONS.

    `path_source` is the source that the path names, None on a path that leaves it to the body. A Signal is the path's
    source's; a Generic names its source, which the caller compares with the path's.
    """

    def __call__(
        self, body: bytes, path_source: str | None, schema_version: str
    ) -> Signal | Generic | Malformed | Invalid:
        """Read a body."""


def read_tradingview(body: bytes, schema_version: str = CURRENT) -> Signal | Malformed | Invalid:
    """Read ticker, price and time; action, strategy and strength when they are there."""
    rules = SCHEMA_VERSIONS[schema_version]
    signal = _fast_tradingview(body, rules)
    return _exact_tradingview(body, rules) if signal is None else signal


def read_generic(
    body: bytes, path_source: str | None = None, schema_version: str = CURRENT
) -> Generic | Malformed | Invalid:
    """
    Read source, instrument, timestamp and payload; in payload price, side or action, strategy and strength.

    Without a source in the body it is `path_source`; without either, or when it is no string, the answer is Invalid.
    """
    rules = SCHEMA_VERSIONS[schema_version]
    generic = _fast_generic(body, path_source, rules)
    return _exact_generic(body, path_source, rules) if generic is None else generic


def _exact_tradingview(body: bytes, rules: Rules) -> Signal | Malformed | Invalid:
    document = read(body)
    if isinstance(document, Malformed):
        return document
    if not isinstance(document, dict):
        return _no_object(document)
    fields = Fields(document, "", rules, [])
    return _signal(fields, fields, "ticker", "time", Fields.action)


def _exact_generic(body: bytes, path_source: str | None, rules: Rules) -> Generic | Malformed | Invalid:
    document = read(body)
    if isinstance(document, Malformed):
        return document
    if not isinstance(document, dict):
        return _no_object(document)
    outer = Fields(document, "", rules, [])
    source = outer.source(path_source)
    payload = document.get("payload")
    inner = Fields(payload, "payload.", rules, outer.faults) if isinstance(payload, dict) else None
    signal = _signal(outer, inner, "instrument", "timestamp", Fields.side_or_action)
    if source is None:
        return Invalid(tuple(outer.faults), is_empty=not document)
    return Generic(source, signal)


def _read_tradingview(body: bytes, path_source: str | None, schema_version: str) -> Signal | Malformed | Invalid:
    del path_source  # a TradingView body names no source
    return read_tradingview(body, schema_version)


READERS: Final[Mapping[str, Reader]] = {"tradingview": _read_tradingview, "generic": read_generic}
"""The readers by the `format` of a source."""


def _no_object(document: Json) -> Invalid:
    return Invalid((Fault("", "must be a JSON object: {...}", describe(document)),), is_object=False)


def _signal(
    outer: Fields,
    inner: Fields | None,
    instrument_key: str,
    time_key: str,
    side_of: Callable[[Fields], str | None],
) -> Signal | Invalid:
    """The signal, or every fault of the body: `inner` holds what is neither the instrument nor the time."""
    instrument = outer.instrument(instrument_key)
    time = outer.time(time_key)
    if inner is None:
        outer.note("payload", "required: an object that holds the price")
        return Invalid(tuple(outer.faults), is_empty=not outer.members)
    price, side, strength, strategy = inner.price(), side_of(inner), inner.strength(), inner.strategy()
    if outer.faults or instrument is None or price is None or time is None:
        return Invalid(tuple(outer.faults), is_empty=not outer.members)
    return Signal(instrument, price, side, strength, time, strategy)
