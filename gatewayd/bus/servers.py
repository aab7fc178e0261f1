"""
Servers of NATS_URL. Pure.

Decides what their URLs say: where a server is, whether by TLS, and with which credentials. Never connects.
"""

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

DEFAULT_PORT: Final = 4222


@dataclass(frozen=True, slots=True)
class Server:
    """One server: its address, and what its URL said of credentials. `url` has none."""

    url: str
    address: str
    tls: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


def parse_server(url: str) -> Server:
    """One server of NATS_URL; ValueError, which does not repeat the URL's credentials, when it is none."""
    text = url if "://" in url else f"nats://{url}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        raise ValueError("a server is nats://host:port or tls://host:port") from None
    if parts.scheme not in ("nats", "tls") or not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("a server is nats://host:port or tls://host:port")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = f"{parts.scheme}://{address}"
    tls = parts.scheme == "tls"
    if parts.username is None:
        return Server(url, address, tls)
    if parts.password is None:
        return Server(url, address, tls, token=unquote(parts.username))
    return Server(url, address, tls, unquote(parts.username), unquote(parts.password))
