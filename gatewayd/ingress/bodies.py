"""
The bodies that nearly every sender sends, as msgspec decodes them: a format's own fields and nothing else. Pure.

Decides only what is decoded; whether that is all there was, and what it means, normalise decides. A module of its own
because msgspec reads these annotations when the program runs, and compiled modules keep none that it understands.
"""

from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

NOTHING: Final = Raw(b"")
"""What stands for a number that is not there."""


class TradingView(msgspec.Struct, gc=False):
    ticker: str
    price: Raw
    time: str
    action: str | UnsetType | None = UNSET
    strategy: str | UnsetType | None = UNSET
    strength: Raw = NOTHING


class Payload(msgspec.Struct, gc=False):
    price: Raw
    side: str | UnsetType | None = UNSET
    action: str | UnsetType | None = UNSET
    strategy: str | UnsetType | None = UNSET
    strength: Raw = NOTHING


class Generic(msgspec.Struct, gc=False):
    instrument: str
    timestamp: str
    payload: Payload
    source: str | UnsetType | None = UNSET


decode_tradingview: Final = msgspec.json.Decoder(TradingView).decode
decode_generic: Final = msgspec.json.Decoder(Generic).decode
