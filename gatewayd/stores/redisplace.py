"""
Where a Redis server is and how to log in to it. Pure.

Decides what a redis:// address says. Never resolves a name and never shows a password.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

from gatewayd.secret import Secret

PORT: Final = 6379
ALLOWED: Final = (
    "redis://[:password@]host[:port][/database], rediss:// for TLS, or unix:///path[?db=database]; the password "
    "percent-encoded, a database from 0 to 9999"
)

_USERINFO: Final = r"(?:(?![@/?#])[\x21-\x7e])*"
_HOST: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]"
_NETWORK: Final = re.compile(
    rf"(rediss?)://(?:({_USERINFO})@)?({_HOST})(?::(\d{{1,5}}))?(?:/(\d{{1,4}})?)?", re.ASCII | re.IGNORECASE
)
_UNIX: Final = re.compile(rf"unix://(?:({_USERINFO})@)?(/[^?#\0]*)(?:\?db=(\d{{1,4}}))?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """
    One server and one of its databases. `path` is a UNIX socket's, and host and port mean nothing then. `ca`: a PEM
    file of authorities for TLS, None for the system's. `user` is None for the default one.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    db: int = 0
    password: Secret | None = None
    user: str | None = None
    tls: bool = False
    ca: Path | None = None
    path: str = ""

    def __str__(self) -> str:
        where = self.path or f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        return f"{where}, database {self.db}" if self.db else where

    @property
    def url(self) -> str:
        """The address as it may be shown: a password is only said to be there."""
        login = "" if self.password is None else f"{self.user or ''}:<{self.password.size} bytes>@"
        if self.path:
            return f"unix://{login}{self.path}?db={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis{'s' if self.tls else ''}://{login}{host}:{self.port}/{self.db}"


def parse_redis_url(text: str) -> RedisPlace | None:
    """The place that the text names; None when it names none."""
    unix = _UNIX.fullmatch(text)
    if unix is not None:
        return _logged_in(unix[1], RedisPlace(path=unix[2], db=int(unix[3] or 0)))
    found = _NETWORK.fullmatch(text)
    if found is None or not 1 <= int(found[4] or PORT) <= 65535:
        return None
    host = found[3].removeprefix("[").removesuffix("]")
    tls = found[1].lower() == "rediss"
    return _logged_in(found[2], RedisPlace(host, int(found[4] or PORT), int(found[5] or 0), tls=tls))


def _logged_in(login: str | None, place: RedisPlace) -> RedisPlace | None:
    """The place with the user and password of "[user]:password"; None for a login of another form."""
    if login is None:
        return place
    user, _, password = login.partition(":")
    secret = unquote_to_bytes(password)
    return replace(place, user=unquote(user) or None, password=Secret(secret)) if secret else None
