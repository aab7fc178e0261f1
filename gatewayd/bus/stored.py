"""
Messages as JetStream gives them back: their headers, their place, and the answer of the stream's leader. Pure.

Decides what those bytes and members mean. Never asks for a message.
"""

import base64
from collections.abc import Mapping
from typing import Any

from gatewayd.bus.publication import Stored
from gatewayd.times import Wall, parse_rfc3339


def parse_headers(block: str) -> dict[str, str]:
    """The headers of a block whose first line is its version; of one that stands twice the first."""
    headers: dict[str, str] = {}
    for line in block.split("\r\n")[1:]:
        name, colon, text = line.partition(":")
        if colon:
            headers.setdefault(name, text.strip())
    return headers


def place(reply: str) -> tuple[int, int, Wall, int]:
    """
    Stream sequence, consumer sequence, time and number still pending, from the reply subject of a delivery:
    $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<ns>.<pending>, or with domain and
    account hash before the stream and a random part at the end.
    """
    parts = reply.split(".")
    first = 5 if len(parts) == 9 else 7
    sequence, delivered, ns, pending = (int(part) for part in parts[first : first + 4])
    return sequence, delivered, Wall(ns / 1e9), pending


def stored_of(message: Mapping[str, Any]) -> Stored:
    """The member `message` of an answer to STREAM.MSG.GET."""
    headers = parse_headers(base64.b64decode(message.get("hdrs", "")).decode("utf-8", "replace"))
    at = parse_rfc3339(message["time"]) or Wall(0.0)
    return Stored(int(message["seq"]), message["subject"], headers, base64.b64decode(message.get("data", "")), at)
