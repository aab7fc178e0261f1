"""
Addresses to listen on, as settings write them. Pure: the standard library only.

Decides what a text such as `:8001` or `unix:/run/gatewayd.sock:mode=660` means. Never opens a socket and never looks
whether a file exists: that is endpoint's.
"""

import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address
from typing import Final

MAX_UNIX_PATH_BYTES: Final = 107
"""sun_path has 108 bytes on Linux, the last one is NUL."""

MAX_INHERITED: Final = 1024
"""Sockets that a process may be started with."""

_PORT: Final = re.compile(r"\d{1,5}", re.ASCII)
_HOST: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_FIELD: Final = re.compile(r"((?:[^\\:]|\\.)*)(?::|\Z)", re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_MODE: Final = re.compile(r"0?o?[0-7]{3}", re.ASCII)
_NAME: Final = re.compile(r"[!-9;-~]{1,255}", re.ASCII)
_DOMAINS: Final = ("INET", "INET6", "UNIX")


class CannotListen(Exception):
    """An address cannot be listened on; the text names it, or the file that keeps it from it, and says why."""


class Kind(Enum):
    """What kind of socket an address asks for."""

    TCP = "tcp"
    TLS = "ssl"
    UNIX = "unix"
    INHERITED = "systemd"


@dataclass(frozen=True, slots=True)
class Address:
    """
    One address to listen on; `str()` gives it as people write it.

    TCP and TLS: `host` (an IP address without brackets, a name, or "" for every IPv4 address) and `port` (0: any free
    one). UNIX: `path`, and `mode`, the permission bits of the socket's file (None: what the umask leaves). TLS that
    the address itself asks for: `private_key` and `certificate`, paths of PEM files, and `chain`, "" for none.
    INHERITED, a socket that the process is started with: `domain` is INET, INET6 or UNIX; `name`, or `index` where the
    name is "".
    """

    kind: Kind
    host: str = ""
    port: int = 0
    path: str = ""
    mode: int | None = None
    private_key: str = ""
    certificate: str = ""
    chain: str = ""
    domain: str = ""
    name: str = ""
    index: int = 0

    def __str__(self) -> str:
        if self.kind is Kind.UNIX:
            return f"unix:{self.path}"
        if self.kind is Kind.INHERITED:
            return f"systemd:domain={self.domain}:" + (f"name={self.name}" if self.name else f"index={self.index}")
        host = f"[{self.host}]" if ":" in self.host else self.host
        prefix = "ssl:" if self.kind is Kind.TLS else ""
        return f"{prefix}{host}:{self.port}"


def parse_address(text: str, default_host: str = "127.0.0.1") -> Address:
    r"""
    Read one address: `:port` (at `default_host`), `host:port`, `[v6]:port`, `tcp:port[:interface=host]`,
    `unix:/path[:mode=660]`, `ssl:port:privateKey=file[:certKey=file][:extraCertChain=file][:interface=host]` or
    `systemd:domain=INET:name=public` (INET6, UNIX; `index=0` instead of the name).

    The last four are Twisted's endpoint strings (a colon inside a value is written `\:`). Raises ValueError with a
    text that names the address and what is wrong with it.
    """
    text = text.strip()
    scheme, colon, rest = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r} is not an address: expected :port, host:port, unix:/path or ssl:port:privateKey=…")
    match scheme:
        case "systemd":
            return _parse_inherited(text, rest)
        case "unix":
            return _parse_unix(text, rest)
        case "ssl":
            return _parse_tls(text, rest, default_host)
        case "tcp":
            return _parse_tcp(text, rest, default_host)
        case _:
            return _parse_host_port(text, default_host)


def _parse_host_port(text: str, default_host: str) -> Address:
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = _host(text, host[1:-1])
        if ":" not in host:
            raise ValueError(f"{text!r}: only an IPv6 address stands in brackets")
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as in [::1]:8001")
    else:
        host = _host(text, host) if host else default_host
    return Address(Kind.TCP, host, _port(text, port))


def _parse_tcp(text: str, rest: str, default_host: str) -> Address:
    port, options = _split(text, rest, ("interface",))
    host = _host(text, options["interface"]) if options.get("interface") else default_host
    return Address(Kind.TCP, host, _port(text, port))


def _parse_tls(text: str, rest: str, default_host: str) -> Address:
    port, options = _split(text, rest, ("interface", "privateKey", "certKey", "extraCertChain"))
    private_key = options.get("privateKey", "")
    if not private_key:
        raise ValueError(f"{text!r}: privateKey=FILE is missing")
    return Address(
        Kind.TLS,
        _host(text, options["interface"]) if options.get("interface") else default_host,
        _port(text, port),
        private_key=private_key,
        # One file may hold both, as with Twisted's own ssl: strings.
        certificate=options.get("certKey", "") or private_key,
        chain=options.get("extraCertChain", ""),
    )


def _parse_unix(text: str, rest: str) -> Address:
    path, options = _split(text, rest, ("mode",))
    if not path.startswith("/"):
        raise ValueError(f"{text!r}: the path of a UNIX socket must be absolute")
    if len(path.encode()) > MAX_UNIX_PATH_BYTES or "\0" in path:
        raise ValueError(f"{text!r}: the path of a UNIX socket has at most {MAX_UNIX_PATH_BYTES} bytes and no NUL")
    mode = options.get("mode")
    if mode is not None and _MODE.fullmatch(mode) is None:
        raise ValueError(f"{text!r}: mode is three octal digits, as in mode=660")
    return Address(Kind.UNIX, path=path, mode=None if mode is None else int(mode.replace("o", ""), 8))


def _parse_inherited(text: str, rest: str) -> Address:
    _, options = _split(text, ":" + rest, ("domain", "name", "index"))
    domain, name, index = options.get("domain", ""), options.get("name"), options.get("index")
    if domain not in _DOMAINS:
        raise ValueError(f"{text!r}: domain is one of {', '.join(_DOMAINS)}, as in domain=INET")
    if (name is None) is (index is None):
        raise ValueError(f"{text!r}: either name= or index= says which socket is meant")
    if name is not None and _NAME.fullmatch(name) is None:
        raise ValueError(f"{text!r}: a name is 1 to 255 visible ASCII characters without a colon")
    if index is not None and (_PORT.fullmatch(index) is None or int(index) >= MAX_INHERITED):
        raise ValueError(f"{text!r}: an index is a number from 0 to {MAX_INHERITED - 1}")
    return Address(Kind.INHERITED, domain=domain, name=name or "", index=int(index or 0))


def _split(text: str, rest: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The first field and the named ones of an endpoint string; every other field is an error."""
    fields: list[str] = []
    position = 0
    while True:
        found = _FIELD.match(rest, position)
        if found is None:
            raise ValueError(f"{text!r}: a backslash escapes nothing")
        fields.append(_ESCAPED.sub(r"\1", found[1]))
        position = found.end()
        if position >= len(rest) and not found[0].endswith(":"):
            break
    options: dict[str, str] = {}
    for field in fields[1:]:
        name, equals, value = field.partition("=")
        if not equals or name not in known or name in options:
            raise ValueError(f"{text!r}: {field!r} is not one of {', '.join(f'{name}=' for name in known)}, once each")
        options[name] = value
    return fields[0], options


def _port(text: str, port: str) -> int:
    if _PORT.fullmatch(port) is None or int(port) > 65535:
        raise ValueError(f"{text!r}: a port is a number from 0 to 65535")
    return int(port)


def _host(text: str, host: str) -> str:
    if ":" in host:
        try:
            return str(IPv6Address(host))
        except ValueError:
            raise ValueError(f"{text!r}: {host!r} is not an IPv6 address") from None
    if _HOST.fullmatch(host) is None:
        raise ValueError(f"{text!r}: {host!r} is neither an IP address nor a host name")
    return host
