"""
The kinds of values that settings have. Pure.

Decides which texts each kind allows, the value a text becomes, and how that value is shown again. Never decides which
settings there are (settings_table does) or where a text was found (config does), and never shows a secret: a wrong
text is answered by a Wrong, whose reason holds no part of it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes

from gatewayd.http.addresses import Address, parse_address
from gatewayd.ingress.addresses import Network, Proxies
from gatewayd.secret import Secret, show_secrets
from gatewayd.times import Wall, format_wall, parse_rfc3339

MAX_ITEMS: Final = 1000
"""Entries that a list may have."""

ALL_NETWORKS: Final[tuple[Network, ...]] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
LOOPBACK: Final[tuple[Network, ...]] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_NETWORK_WORDS: Final[Mapping[str, tuple[Network, ...]]] = {"all": ALL_NETWORKS, "loopback": LOOPBACK, "none": ()}
_MAPPED: Final = IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Server:
    """
    A NATS server's address. `url` is without credentials, scheme and port filled in; `user` is None where none stands
    before the @, `password` None where only a token does (which is then `token`). Percent-decoded: nats-py would send
    the text of the address as it is.
    """

    url: str
    user: str | None = None
    password: Secret | None = None
    token: Secret | None = None

    @property
    def login(self) -> tuple[str | None, Secret | None, Secret | None]:
        """User, password and token, for comparing."""
        return self.user, self.password, self.token


@dataclass(frozen=True, slots=True)
class Wrong:
    """A text that is not of its kind; `reason` adds to the kind's `allowed` what can be said, "" for nothing."""

    reason: str = ""


def _never(_text: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Kind:
    """
    One kind of values. `allowed` says in words which texts there are; `parse` takes the text as a tuple of one, or the
    items of a list when `many`, and answers the value or a Wrong; `show` writes a value so that `parse` would read it
    again, secrets excepted; `private` says which wrong texts must not be repeated in a message.
    """

    allowed: str
    parse: Callable[[tuple[str, ...]], object]
    show: Callable[[Any], str] = str
    many: bool = False
    private: Callable[[str], bool] = _never


def one_of(*words: str, folded: Callable[[str], str] = str.lower) -> Kind:
    """One of the words, in any case; the value is the word as given here."""

    def parse(items: tuple[str, ...]) -> object:
        word = folded(items[0])
        return word if word in words else Wrong()

    return Kind(" or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}", parse)


def some_of(*words: str) -> Kind:
    """At least one of the words, none twice; the value is a tuple in the order given."""

    def parse(items: tuple[str, ...]) -> object:
        unknown = [item for item in items if item not in words]
        if unknown or not items:
            return Wrong(f"{unknown[0]!a} is none of them" if unknown else "none is given")
        return _once(items)

    return Kind(f"a list of {', '.join(words)}", parse, ",".join, many=True)


def _once(items: tuple[str, ...]) -> tuple[str, ...] | Wrong:
    twice = next((item for number, item in enumerate(items) if item in items[:number]), None)
    return items if twice is None else Wrong(f"{twice!a} is there twice")


def named(allowed: str, pattern: str) -> Kind:
    """A text that matches the pattern from end to end."""
    form = re.compile(pattern, re.ASCII)

    def parse(items: tuple[str, ...]) -> object:
        return items[0] if form.fullmatch(items[0]) is not None else Wrong()

    return Kind(allowed, parse)


_SWITCH: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


def switch() -> Kind:
    """True or false."""

    def parse(items: tuple[str, ...]) -> object:
        return _SWITCH.get(items[0].lower(), Wrong())

    return Kind("true or false (also yes, on, 1, no, off, 0)", parse, lambda value: "true" if value else "false")


# int() and float() would take signs, underscores, Arabic digits, "nan" and "1e999"; none of them is meant here.
_WHOLE: Final = re.compile(r"\d{1,18}", re.ASCII)
_NUMBER: Final = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)([A-Za-z]*)", re.ASCII)


def whole(low: int, high: int, word: str = "") -> Kind:
    """A whole number within bounds; `word`, where one is given, stands for None."""

    def parse(items: tuple[str, ...]) -> object:
        if word and items[0].lower() == word:
            return None
        if _WHOLE.fullmatch(items[0]) is None or not low <= int(items[0]) <= high:
            return Wrong()
        return int(items[0])

    allowed = f"a whole number from {low} to {high}"
    return Kind(f"{word} or {allowed}" if word else allowed, parse, lambda value: word if value is None else str(value))


def show_number(value: float) -> str:
    """A number in plain digits: 100, 0.5."""
    return str(int(value)) if value == int(value) else f"{value:.9f}".rstrip("0")


def _rate(text: str, low: float, high: float) -> float | None:
    found = _NUMBER.fullmatch(text)
    if found is None or found[2] or not low <= float(found[1]) <= high:
        return None
    return float(found[1])


def number(low: float, high: float) -> Kind:
    """A number within bounds, a float."""

    def parse(items: tuple[str, ...]) -> object:
        value = _rate(items[0], low, high)
        return Wrong() if value is None else value

    return Kind(f"a number from {show_number(low)} to {show_number(high)}", parse, show_number)


_SECONDS: Final[Mapping[str, float]] = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}


def show_duration(seconds: float) -> str:
    """A duration in the largest unit that leaves a whole number: 250ms, 5s, 24h."""
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{show_number(round(seconds * 1000, 6))}ms" if seconds else "0s"


def duration(low_s: float, high_s: float, *, whole_seconds: bool = False) -> Kind:
    """A duration within bounds: a float in seconds, or an int for settings whose unit is the whole second."""

    def parse(items: tuple[str, ...]) -> object:
        found = _NUMBER.fullmatch(items[0])
        unit = None if found is None else _SECONDS.get(found[2])
        if found is None or unit is None:
            return Wrong()
        seconds = round(float(found[1]) * unit, 9)
        if not low_s <= seconds <= high_s:
            return Wrong()
        if whole_seconds:
            return int(seconds) if seconds == int(seconds) else Wrong("whole seconds only")
        return seconds

    bounds = f"from {show_duration(low_s)} to {show_duration(high_s)}"
    if whole_seconds:
        return Kind(f"whole seconds, or a duration such as 5m, {bounds}", parse)
    return Kind(f"a duration such as 250ms, 5s, 1m, 1h, or seconds, {bounds}", parse, show_duration)


_BYTES: Final[Mapping[str, int]] = {
    "": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}


def show_size(size: int) -> str:
    """A size in the largest binary unit that leaves a whole number: 512MiB, 2000000."""
    for unit, of_bytes in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= of_bytes and size % of_bytes == 0:
            return f"{size // of_bytes}{unit}"
    return str(size)


def size_bytes(low: int, high: int) -> Kind:
    """A size within bounds, an int in bytes."""

    def parse(items: tuple[str, ...]) -> object:
        found = _NUMBER.fullmatch(items[0])
        unit = None if found is None else _BYTES.get(found[2])
        if found is None or unit is None:
            return Wrong()
        size = int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit  # a float has 53 bits
        return size if low <= size <= high else Wrong()

    return Kind(
        f"a size in bytes, KiB, MiB, GiB, KB, MB or GB, {show_size(low)} to {show_size(high)}", parse, show_size
    )


def _holds_key(text: str) -> bool:
    # The commonest slip: the key's text where its path belongs. It must not be repeated in a message.
    return "-----BEGIN" in text or "\n" in text


def path() -> Kind:
    """The path of a file or directory; whether it is there is seen by whoever opens it."""

    def parse(items: tuple[str, ...]) -> object:
        if _holds_key(items[0]):
            return Wrong("the text is not a path")
        return Wrong("it holds NUL") if "\0" in items[0] else Path(items[0])

    return Kind("a path", parse, private=_holds_key)


def instant() -> Kind:
    """An instant: RFC 3339 with a zone, a Wall."""

    def parse(items: tuple[str, ...]) -> object:
        return Wrong() if (at := parse_rfc3339(items[0])) is None else Wall(at)

    return Kind("an RFC 3339 time with a zone, such as 2026-01-31T10:00:00Z", parse, format_wall)


def _address(text: str) -> Address | Wrong:
    try:
        return parse_address(text)
    except ValueError as problem:
        return Wrong(str(problem))


def host() -> Kind:
    """A host name or IP address to listen on; "" is every interface, written `all`."""

    def parse(items: tuple[str, ...]) -> object:
        if items[0].lower() == "all":
            return ""
        given = items[0].removeprefix("[").removesuffix("]")
        address = _address(f"[{given}]:0" if ":" in given else f"{given}:0")
        return Wrong() if isinstance(address, Wrong) or not given else address.host

    return Kind("a host name, an IP address or all", parse, lambda value: value or "all")


def listening() -> Kind:
    """Addresses to listen on, kept as texts: what `:port` means is only known with HOST."""

    def parse(items: tuple[str, ...]) -> object:
        found: list[Address] = []
        for item in items:
            address = _address(item)
            if isinstance(address, Wrong):
                return address
            if (address.path or address.port or address.domain) and address in found:
                return Wrong(f"{item!a} is there twice")
            found.append(address)
        return items or Wrong("none is given")

    def show(addresses: Iterable[object]) -> str:
        return ",".join(str(address) for address in addresses)

    forms = ":port, host:port, unix:/path, ssl:port:privateKey=path:certKey=path or systemd:domain=INET:name=public"
    return Kind(f"a list of {forms}", parse, show, many=True)


def _network(text: str) -> Network | Wrong:
    if "%" in text:
        return Wrong(f"{text!a} has a zone")
    try:
        network = ip_network(text)
    except ValueError:
        try:
            meant = ip_network(text, strict=False)
        except ValueError:
            return Wrong(f"{text!a} is neither a network nor an address")
        return Wrong(f"{text!a} has bits beyond its prefix: perhaps {meant}")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        # Clients are known by the IPv4 address that is mapped, so networks of them must be too.
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _networks(items: Sequence[str]) -> tuple[Network, ...] | Wrong:
    found = []
    for item in items:
        network = _network(item)
        if isinstance(network, Wrong):
            return network
        found.append(network)
    return tuple(dict.fromkeys(found))


def networks(*words: str) -> Kind:
    """Networks and single addresses; one of the words ("all", "loopback", "none") may stand for the whole list."""

    def parse(items: tuple[str, ...]) -> object:
        if len(items) == 1 and items[0].lower() in words:
            return _NETWORK_WORDS[items[0].lower()]
        return _networks(items)

    def show(value: tuple[Network, ...]) -> str:
        word = next((word for word in words if _NETWORK_WORDS[word] == value), None)
        return word or ",".join(str(network) for network in value)

    others = "".join(f", or {word}" for word in words)
    return Kind(f"a list of CIDR networks and addresses{others}", parse, show, many=True)


_PROTOCOL: Final = "proxy-protocol"


def proxies() -> Kind:
    """
    Whose X-Forwarded-For is believed: networks, how many proxies stand in front (1 to 16), or both; and whether the
    networks' connections begin with a PROXY header.
    """

    def parse(items: tuple[str, ...]) -> object:
        if [item.lower() for item in items] == ["none"]:
            return Proxies()
        protocol = any(item.lower() == _PROTOCOL for item in items)
        items = tuple(item for item in items if item.lower() != _PROTOCOL)
        counts = [int(item) for item in items if _WHOLE.fullmatch(item) is not None]
        found = _networks([item for item in items if _WHOLE.fullmatch(item) is None])
        if isinstance(found, Wrong):
            return found
        if len(counts) > 1 or any(not 1 <= count <= 16 for count in counts):
            return Wrong("one hop count, from 1 to 16")
        if protocol and not found:
            return Wrong(f"{_PROTOCOL} goes with the networks of the proxies that speak it")
        return Proxies(found, counts[0] if counts else 0, protocol)

    def show(value: Proxies) -> str:
        hops = [str(value.hops)] if value.hops else []
        spoken = [_PROTOCOL] if value.protocol else []
        return ",".join([str(network) for network in value.networks] + hops + spoken) or "none"

    return Kind(
        "a list of CIDR networks and addresses, a hop count from 1 to 16, proxy-protocol, or none",
        parse,
        show,
        many=True,
    )


_SOURCE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
SOURCE_FORM: Final = "letters, digits, _ and -, at most 64"


def is_source_name(text: str) -> bool:
    """True when a source may have this name."""
    return _SOURCE.fullmatch(text) is not None


def source_names() -> Kind:
    """Names of sources, at least one, none twice."""

    def parse(items: tuple[str, ...]) -> object:
        wrong = next((item for item in items if not is_source_name(item)), None)
        if wrong is not None:
            return Wrong(f"{wrong[:80]!a} is no such name")
        return _once(items) if items else Wrong("none is given")

    return Kind(f"a list of names ({SOURCE_FORM})", parse, ",".join, many=True)


def rates(low: float, high: float) -> Kind:
    """Rates of sources, name:rate, none twice: a mapping from name to float."""

    def parse(items: tuple[str, ...]) -> object:
        found: dict[str, float] = {}
        for item in items:
            name, _, text = item.rpartition(":")
            rate = _rate(text.strip(), low, high)
            if not is_source_name(name.strip()) or rate is None:
                return Wrong(f"{item[:80]!a} is not of this form")
            if name.strip() in found:
                return Wrong(f"{name.strip()!a} is there twice")
            found[name.strip()] = rate
        return found

    def show(value: Mapping[str, float]) -> str:
        return ",".join(f"{name}:{show_number(rate)}" for name, rate in value.items())

    bounds = f"{show_number(low)} to {show_number(high)}"
    return Kind(f"a list of source:rate, such as tradingview:100,custom:50; rates {bounds}", parse, show, many=True)


# No blank, no quote, nothing that ends a protocol line: what stands in a frame is checked where it enters.
_HOST: Final = r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])"
_LOGIN: Final = r"(?:(?![@/?#])[\x21-\x7e])+"
_SERVER: Final = re.compile(rf"(?:(nats|tls)://)?(?:({_LOGIN})@)?({_HOST})(?::(\d{{1,5}}))?/?", re.ASCII)
NATS_PORT: Final = 4222


def _is_utf8(value: bytes) -> bool:
    # NATS' CONNECT is JSON, which other bytes cannot stand in.
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _server(text: str) -> Server | None:
    parts = _SERVER.fullmatch(text)
    if parts is None or not 1 <= int(parts[4] or NATS_PORT) <= 65535:
        return None
    url = f"{parts[1] or 'nats'}://{parts[3]}:{int(parts[4] or NATS_PORT)}"
    if parts[2] is None:
        return Server(url)
    user, colon, password = parts[2].partition(":")
    secret = unquote_to_bytes(password if colon else user)
    if not user or not secret or not _is_utf8(secret):
        return None
    return Server(url, unquote(user), Secret(secret)) if colon else Server(url, token=Secret(secret))


def servers() -> Kind:
    """NATS servers: a tuple of Server, with one login for all of them. Where an @ stands a password may, too."""

    def parse(items: tuple[str, ...]) -> object:
        found: list[Server] = []
        for count, item in enumerate(items, 1):
            server = _server(item)
            if server is None:
                return Wrong(f"number {count} is none")
            if any(server.url == other.url for other in found):
                return Wrong(f"number {count} is there twice")
            found.append(server)
        if len({server.login for server in found} - {Server("").login}) > 1:
            return Wrong("they have several logins, and there is one for all")
        return tuple(found) or Wrong("none is given")

    allowed = "a list of nats://host:port or tls://host:port, user:password@ (percent-encoded) before the host"
    return Kind(allowed, parse, ",".join, many=True, private=lambda text: "@" in text)


def secret_list() -> Kind:
    """Secrets that sign, the current one first: a tuple of Secret. Blanks around a secret are not part of it."""

    def parse(items: tuple[str, ...]) -> object:
        found = []
        for count, item in enumerate(items, 1):
            value = item.encode("utf-8", "surrogateescape")
            if not value:
                return Wrong(f"secret {count} of {len(items)} is empty")
            if value.endswith(b"\0"):
                # HMAC pads keys with NUL: a key and its padded twin sign alike.
                return Wrong(f"secret {count} of {len(items)} ends in NUL")
            if b"\n" in value or b"\r" in value:
                return Wrong(f"secret {count} of {len(items)} holds a line break")
            found.append(Secret(value))
        return tuple(found)

    return Kind("a list of secrets separated by commas, none empty", parse, show_secrets, many=True, private=bool)


def secret(allowed: str, pattern: str = r"[^\0\r\n]+") -> Kind:
    """One secret of that form, UTF-8: a Secret."""
    form = re.compile(pattern)

    def parse(items: tuple[str, ...]) -> object:
        value = items[0].encode("utf-8", "surrogateescape")
        return Secret(value) if form.fullmatch(items[0]) and _is_utf8(value) else Wrong()

    return Kind(allowed, parse, lambda value: "" if value is None else show_secrets([value]), private=bool)
