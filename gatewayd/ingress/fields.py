"""
The fields of a body, judged one by one. Pure.

Decides which values a field may hold, and how a fault is told to the person who wrote the template: what is wanted,
what was got, and the slip that is likely behind it. Never decides which fields a format has (normalise does), never
shows more than 64 characters of a value, and only of a field that it was asked about.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isinf
from typing import Final

from msgspec import UNSET, UnsetType

from gatewayd.ingress.strict import Json
from gatewayd.times import Wall, parse_rfc3339

CURRENT: Final = "1.1.0"
MAX_NUMBER_CHARACTERS: Final = 100
MAX_STRATEGY_CHARACTERS: Final = 256
MAX_GOT_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class Fault:
    """
    One field that is wrong. `path` is dotted, "" for the body itself; `got` describes what stands there in printable
    ASCII, at most MAX_GOT_CHARACTERS of it.
    """

    path: str
    message: str
    got: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What a schema version demands of an instrument: the pattern, and the same in words."""

    instrument: re.Pattern[str]
    in_words: str


SCHEMA_VERSIONS: Final[Mapping[str, Rules]] = {
    "1.0.0": Rules(
        re.compile(r"[A-Z]{3,6}(/[A-Z]{3,6})?"),
        "must be 3 to 6 letters, or two such groups with a slash between them (schema version 1.0.0)",
    ),
    CURRENT: Rules(
        re.compile(r"[A-Z0-9][A-Z0-9_:/.!&-]{0,31}"),
        "must be 1 to 32 characters out of A-Z, 0-9 and _ : / . ! & -, the first a letter or digit",
    ),
}
"""Rules by SIGNAL_SCHEMA_VERSION; instruments are matched after ASCII upper-casing."""

SIDES: Final[Mapping[str | UnsetType | None, str | None]] = {
    "buy": "buy",
    "sell": "sell",
    "close": None,
    None: None,
    UNSET: None,
}
"""The side that a word of `side` or `action` means; not there and null mean none."""

_ALIASES: Final[Mapping[str, frozenset[str]]] = {
    "ticker": frozenset({"ticker", "symbol", "pair", "instrument", "market", "tv_instrument", "tickerid"}),
    "instrument": frozenset({"instrument", "ticker", "symbol", "pair", "market", "stocks", "tickerid"}),
    "price": frozenset(
        {"price", "close", "entry", "signalprice", "trigger_price", "trigger_prices", "order_price", "limit_price"}
        | {"limitprice", "fill_price", "openprice", "strprice", "strategy-order-price", "orderprice", "last_price"}
    ),
    "time": frozenset({"time", "timestamp", "date", "datetime", "timenow", "ts", "sent_at", "bar_time", "order_time"}),
    "timestamp": frozenset({"timestamp", "time", "date", "datetime", "timenow", "ts", "sent_at", "triggered_at"}),
}
_ACTION_WORDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("long", "enter_long", "long_entry", "cover"), "buy"),
    **dict.fromkeys(("short", "enter_short", "short_entry"), "sell"),
    **dict.fromkeys(("exit", "flat", "flatten", "closelong", "closeshort", "exit_long", "exit_short"), "close"),
}
_SEEN_PLACEHOLDER: Final = re.compile(r"\{\{.*\}\}|^=\w", re.DOTALL)
_QUOTED_NUMBER: Final = re.compile(r"\s*[+-]?[0-9][0-9.,_ ]*(?:[eE][+-]?[0-9]+)?\s*")
_NO_ZONE: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d(?::\d\d)?(?:\.\d+)?", re.ASCII)
_TIME_WANTED: Final = "must be an RFC 3339 time with a zone, such as 2024-01-15T10:30:00Z"
_NESTED_MEMBERS: Final = 64
_PLAIN_NAME: Final = re.compile(r"[\w.-]{1,32}", re.ASCII)


class _Absent:
    """Stands for a member that is not there, where null is something else."""


_ABSENT: Final = _Absent()


def describe(value: "Json | _Absent") -> str:
    """What stands in a field, in printable ASCII, at most MAX_GOT_CHARACTERS of it."""
    match value:
        case _Absent():
            return "nothing"
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case bytes():
            shown = f"number {value[:MAX_GOT_CHARACTERS].decode()}"
        case str():
            shown = f"string {json.dumps(value[:MAX_GOT_CHARACTERS])}"
        case dict():
            return "object"
        case _:
            return "array"
    return shown if len(shown) <= MAX_GOT_CHARACTERS else f"{shown[: MAX_GOT_CHARACTERS - 3]}..."


class Fields:
    """
    The members of one object under judgement.

    Each method answers what a field holds, or None when it is absent or a fault was noted; `prefix` stands before the
    paths of the faults.
    """

    __slots__ = ("faults", "members", "prefix", "rules")

    def __init__(self, members: dict[str, Json], prefix: str, rules: Rules, faults: list[Fault]) -> None:
        self.members = members
        self.prefix = prefix
        self.rules = rules
        self.faults = faults

    def note(self, key: str, message: str) -> None:
        """Note a fault of a field."""
        self.faults.append(Fault(self.prefix + key, message, describe(self.members.get(key, _ABSENT))))

    def required(self, key: str) -> Json:
        """The value of a field that must be there; None when it is not, with the hint which other may be meant."""
        value = self.members.get(key)
        if value is None:
            self.note(key, f"required{self._hint(key)}")
        return value

    def _hint(self, key: str) -> str:
        aliases = _ALIASES.get(key, frozenset())
        for name, value in self.members.items():
            if name.lower() in aliases and name != key:
                return f"; did you mean to send `{name}` as `{key}`?"
            if isinstance(value, dict) and len(value) <= _NESTED_MEMBERS:
                inner = next((inner for inner in value if inner.lower() in aliases), None)
                if inner is not None and _PLAIN_NAME.fullmatch(name) is not None:
                    return f"; did you mean to send the `{inner}` inside `{name}` as `{key}`?"
        return ""

    def text(self, key: str, wanted: str) -> str | None:
        """A required string that is neither empty nor a placeholder."""
        value = self.required(key)
        if value is None:
            return None
        if not isinstance(value, str):
            self.note(key, f"{wanted}, as a string")
        elif not value.strip():
            self.note(key, f"{wanted}; it is empty, as of a placeholder that gave nothing")
        elif _SEEN_PLACEHOLDER.search(value) is not None:
            self.note(key, f"{wanted}, not a placeholder or formula that nobody filled in")
        else:
            return value
        return None

    def instrument(self, key: str) -> str | None:
        """The instrument in upper case."""
        text = self.text(key, "must name an instrument")
        if text is None:
            return None
        upper = text.upper() if text.isascii() else ""
        if self.rules.instrument.fullmatch(upper) is not None:
            return upper
        message = self.rules.in_words
        if SCHEMA_VERSIONS[CURRENT].instrument.fullmatch(upper) is not None:
            message += f"; this one fits schema version {CURRENT} only"
        elif any(character.isspace() for character in text):
            message += "; it has a blank"
        self.note(key, message)
        return None

    def time(self, key: str) -> Wall | None:
        """The body's own time."""
        if isinstance(self.members.get(key), bytes):
            self.note(key, f"{_TIME_WANTED}, not a number")
            return None
        text = self.text(key, _TIME_WANTED)
        if text is None:
            return None
        instant = parse_rfc3339(text)
        if instant is None:
            without_zone = _NO_ZONE.fullmatch(text) is not None
            self.note(key, f"{_TIME_WANTED}; it has no zone" if without_zone else _TIME_WANTED)
        return instant

    def price(self) -> bytes | None:
        """The token of a number above 0."""
        wanted = "must be a number above 0"
        token = None if self.required("price") is None else self._number("price", wanted)
        if token is None:
            return None
        if float(token) > 0.0:
            return token
        self.note("price", wanted)
        return None

    def strength(self) -> bytes | None:
        """The token of a number from 0 to 1, or None."""
        wanted = "must be a number from 0 to 1, or left out"
        token = None if self.members.get("strength") is None else self._number("strength", wanted)
        if token is None:
            return None
        if 0.0 <= float(token) <= 1.0:
            return token
        self.note("strength", wanted)
        return None

    def _number(self, key: str, wanted: str) -> bytes | None:
        """The token of a finite number of bounded length."""
        value = self.members[key]
        if isinstance(value, str) and _QUOTED_NUMBER.fullmatch(value[:MAX_NUMBER_CHARACTERS]) is not None:
            self.note(key, f"{wanted}, not a quoted one")
        elif isinstance(value, str) and not value.strip():
            self.note(key, f"{wanted}; the string is empty, as of a placeholder that gave nothing")
        elif isinstance(value, str) and _SEEN_PLACEHOLDER.search(value) is not None:
            self.note(key, f"{wanted}, not a placeholder or formula that nobody filled in")
        elif not isinstance(value, bytes):
            self.note(key, wanted)
        elif len(value) > MAX_NUMBER_CHARACTERS:
            self.note(key, f"{wanted}, in at most {MAX_NUMBER_CHARACTERS} characters")
        elif isinf(float(value)):
            self.note(key, f"{wanted} that fits a double")
        else:
            return value
        return None

    def strategy(self) -> str | None:
        """The name of the strategy; empty counts as none."""
        value = self.members.get("strategy")
        if value is None or value == "":
            return None
        if isinstance(value, str) and len(value) <= MAX_STRATEGY_CHARACTERS and "\0" not in value:
            return value
        self.note("strategy", f"must be a string of at most {MAX_STRATEGY_CHARACTERS} characters without NUL")
        return None

    def action(self) -> str | None:
        """The side that `action` means."""
        return self._word("action", ("buy", "sell", "close"))

    def side_or_action(self) -> str | None:
        """The side that `side` and `action` mean together."""
        side = self._word("side", ("buy", "sell"))
        action = self._word("action", ("buy", "sell", "close"))
        if side is not None and self.members.get("action") in ("buy", "sell", "close") and side != action:
            self.note("side", "must say the same as `action`")
        return side or action

    def _word(self, key: str, words: tuple[str, ...]) -> str | None:
        """One of the words, as a side; None for close, for none given, and for a fault."""
        value = self.members.get(key)
        if value is None:
            return None
        if isinstance(value, str) and value in words:
            return SIDES[value]
        wanted = f"must be {', '.join(words[:-1])} or {words[-1]}"
        if not isinstance(value, str):
            self.note(key, f"{wanted}, as a string")
        elif value.lower() in words:
            self.note(key, f"{wanted}, in lower case")
        elif not value.strip():
            self.note(key, f"{wanted}, or left out; it is empty, as strategy placeholders are in an indicator's alert")
        elif (meant := _ACTION_WORDS.get(value.lower())) is not None and meant in words:
            self.note(key, f"{wanted}; send this one as `{meant}`")
        else:
            self.note(key, wanted)
        return None

    def source(self, path_source: str | None) -> str | None:
        """The source that the body names, else the path's."""
        value = self.members.get("source")
        if isinstance(value, str):
            return value
        if value is None and path_source is not None:
            return path_source
        self.note("source", "required" if value is None else "must be a string")
        return None
