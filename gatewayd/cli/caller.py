"""
One HTTP client connection, for test webhooks and the like, on the standard library.

Decides where a webhook goes, and what an answer or its absence says. Never decides whether a request is sent again.
"""

import select
import ssl
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from gatewayd import __version__
from gatewayd.cli.console import Code, Failed, json_or_none, plain

AGENT: Final = f"gatewayctl/{__version__}"
_MAX_ANSWER_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask: `path` with its query, as it goes into the request line."""

    secure: bool
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.path}"


def parse_target(url: str, source: str) -> Target:
    """The address of the source's webhook at a gateway's URL; a URL with a path is taken as it is."""
    form = "--url: http://host:port or https://host:port, with or without the webhook's path"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Failed(Code.WRONG, form) from None
    # Neither a blank nor a control character can be sent, and urlsplit() drops some of them silently.
    sendable = all("!" <= mark <= "~" for mark in url)
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or not sendable:
        raise Failed(Code.WRONG, form)
    secure = parts.scheme == "https"
    path = parts.path if parts.path.strip("/") else f"/webhook/{source}"
    query = f"?{parts.query}" if parts.query else ""
    return Target(secure, host, port if port is not None else (443 if secure else 80), path + query)


@dataclass(frozen=True, slots=True)
class Unreached:
    """No answer; `text` says why."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `members` are those of its JSON object, empty for any other body."""

    status: int
    retry_after_s: float | None = None
    members: dict[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The GW code of a refusal; what is no answer of a gateway is counted by its status."""
        code = self.members.get("code")
        return plain(code, 20) if isinstance(code, str) and code else f"HTTP {self.status}"

    @property
    def text(self) -> str:
        """One line for people."""
        parts = [str(self.status), *(plain(self.members[name]) for name in ("code", "error") if name in self.members)]
        message = self.members.get("message")
        return " ".join(parts) + (f": {plain(message)}" if message else "")


class Caller:
    """Keeps one connection open and opens another when it is gone."""

    def __init__(self, target: Target, timeout_s: float, ca: str | None) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._context = tls_context(ca) if target.secure else None
        self._connection: HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self) -> Answer | Unreached:
        """Ask for what is at the target."""
        return self._exchange("GET", None, {})

    def post(self, body: bytes, headers: dict[str, str]) -> Answer | Unreached:
        """Send a body there."""
        return self._exchange("POST", body, headers)

    def _exchange(self, method: str, body: bytes | None, headers: dict[str, str]) -> Answer | Unreached:
        """One exchange, on the kept connection unless the server has closed it meanwhile."""
        if self._connection is not None and _is_stale(self._connection):
            self.close()
        connection = self._connection
        if connection is None:
            connection = self._connection = make_connection(self._target, self._timeout_s, self._context)
        try:
            connection.request(method, self._target.path, body, {**headers, "User-Agent": AGENT})
            response = connection.getresponse()
            content = response.read(_MAX_ANSWER_BYTES)
        except (OSError, HTTPException) as error:
            self.close()
            return Unreached(f"{self._target}: {describe(error)}")
        if not response.isclosed():
            self.close()  # the answer is longer than what is read of one
        members = json_or_none(content)
        retry_after = (response.headers.get("Retry-After") or "").strip()
        wait_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
        return Answer(response.status, wait_s, members if isinstance(members, dict) else {})


def make_connection(target: Target, timeout_s: float, context: ssl.SSLContext | None) -> HTTPConnection:
    """A connection that is opened by its first request; with a context by TLS."""
    if context is not None:
        return HTTPSConnection(target.host, target.port, timeout=timeout_s, context=context)
    return HTTPConnection(target.host, target.port, timeout=timeout_s)


def _is_stale(connection: HTTPConnection) -> bool:
    """True when bytes or the end wait to be read although nothing was asked: the server closed the connection."""
    return connection.sock is not None and bool(select.select([connection.sock], [], [], 0)[0])


def tls_context(ca: str | None) -> ssl.SSLContext:
    """What servers are known by: the certificates in the file, else the system's; Failed when it cannot be used."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError among them
        raise Failed(Code.WRONG, f"--ca {ca}: {describe(error)}") from None


def describe(error: BaseException) -> str:
    """One line for people."""
    text = getattr(error, "strerror", None) or str(error)
    return plain(text or type(error).__name__)
