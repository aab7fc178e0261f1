"""
The table of command routes: which service a message type goes to. Pure.

Decides how a route is written and which of them holds for a message type. Never calls a service.

    orders.place=nats:orders.place;deadline=500ms      one message type, to a NATS subject
    quotes.=https://quotes.internal/commands           every message type that begins with "quotes."
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, Generic, TypeVar

from msgspec import Struct

from gatewayd.settings_values import Wrong, duration, show_duration

DEADLINE_S: Final = 2.0
"""What a service has to answer in where its route does not say."""

OTHER: Final = "_other"
"""What message types without a route are counted as; edge_metrics has the same word."""

_DEADLINE: Final = duration(0.05, 60.0)
_WORD: Final = r"[A-Za-z0-9_-]+"
_ROUTE: Final = re.compile(r"([^=]*)=([^;]*)(?:;deadline=([^;]*))?", re.ASCII)
_TYPE: Final = re.compile(rf"(?=.{{1,128}}\Z){_WORD}(?:\.{_WORD})*\.?", re.ASCII)
_NATS: Final = re.compile(rf"nats:((?=.{{1,200}}\Z){_WORD}(?:\.{_WORD})*)", re.ASCII)
_HOST: Final = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])"
_BASE: Final = rf"https?://{_HOST}(?::[0-9]{{1,5}})?"
# Visible ASCII but what ends a URL, stands in its authority, or separates routes.
_HTTP: Final = re.compile(rf"(?=.{{1,2000}}\Z){_BASE}(?:/[^\x00-\x20\x7f-\U0010ffff#,;@\"<>\\^`{{|}}]*)?")
_STORED: Final = ("signals.", "dlq.")


class RouteSpec(Struct, frozen=True):
    """
    One route as it is written. `message_type` is one, or, with a dot at its end, what many begin with; one of `subject`
    and `url` says where to; `deadline_s` bounds every call.
    """

    message_type: str
    subject: str = ""
    url: str = ""
    deadline_s: float = DEADLINE_S

    def __str__(self) -> str:
        target = self.url or f"nats:{self.subject}"
        deadline = "" if self.deadline_s == DEADLINE_S else f";deadline={show_duration(self.deadline_s)}"
        return f"{self.message_type}={target}{deadline}"


def is_http_url(text: str) -> bool:
    """True for an http or https URL without credentials, fragment, or anything that would have to be encoded."""
    found = _HTTP.fullmatch(text)
    port = re.match(rf"https?://{_HOST}:(\d+)", text)
    return found is not None and (port is None or 1 <= int(port[1]) <= 65535)


def parse_route(text: str) -> RouteSpec | Wrong:
    """One route; the reason of a Wrong names the message type only: a target may hold what is nobody's business."""
    found = _ROUTE.fullmatch(text)
    if found is None:
        return Wrong("a route is message_type=nats:subject or message_type=http://…, and ;deadline=2s behind it")
    message_type, target, deadline_text = found.groups()
    if _TYPE.fullmatch(message_type) is None or message_type == OTHER:
        return Wrong(f"{message_type[:80]!a} is no message type: words of letters, digits, _ and -, joined by dots")
    deadline_s = DEADLINE_S if deadline_text is None else _DEADLINE.parse((deadline_text,))
    if not isinstance(deadline_s, float):
        return Wrong(f"the deadline of {message_type} is {_DEADLINE.allowed}")
    subject = _NATS.fullmatch(target)
    if subject is not None:
        if subject[1].startswith(_STORED):
            # Its stream would store the command as if it were an event, and acknowledge it in the service's place.
            return Wrong(f"{message_type} would go to the stream of signals")
        return RouteSpec(message_type, subject=subject[1], deadline_s=deadline_s)
    if is_http_url(target):
        return RouteSpec(message_type, url=target, deadline_s=deadline_s)
    return Wrong(f"{message_type} goes neither to nats:<subject> nor to an http or https URL without credentials")


def parse_routes(texts: Iterable[str]) -> tuple[RouteSpec, ...] | Wrong:
    """Several routes, each for another message type or prefix; blanks and line breaks separate them too."""
    found: dict[str, RouteSpec] = {}
    for word in " ".join(texts).split():
        spec = parse_route(word)
        if isinstance(spec, Wrong):
            return spec
        if spec.message_type in found:
            return Wrong(f"{spec.message_type} has two routes")
        found[spec.message_type] = spec
    return tuple(found.values())


R = TypeVar("R")


class RouteTable(Generic[R]):
    """What holds for each message type: the type itself, else the longest prefix. Empty: nothing holds for any."""

    def __init__(self, routes: Mapping[str, R]) -> None:
        self._routes = dict(routes)

    def find(self, message_type: str) -> R | None:
        """The route of a message type; None where there is none."""
        name = self.group(message_type)
        return None if name == OTHER else self._routes[name]

    def group(self, message_type: str) -> str:
        """Under which name a message type is counted and limited: its route's own type or prefix, else OTHER."""
        if message_type in self._routes:
            return message_type
        end = len(message_type)
        while (end := message_type.rfind(".", 0, end)) >= 0:
            if message_type[: end + 1] in self._routes:
                return message_type[: end + 1]
        return OTHER

    @property
    def names(self) -> tuple[str, ...]:
        """Every message type and prefix that has a route."""
        return tuple(self._routes)
