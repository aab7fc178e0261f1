"""
A small client of the edge's streams over HTTP: a WebSocket on wsproto, or server-sent events on the standard library.

Decides how a stream is opened and what its end means. Never opens one twice.
"""

import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, Final

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from gatewayd.cli.caller import AGENT, Target, describe, make_connection
from gatewayd.cli.console import Code, Failed, json_or_none, plain
from gatewayd.cli.edge_client import Ended, Received, as_members, read_event_members
from gatewayd.sessions.values import Envelope

PATH: Final = "/edge/v1/events"
SUBPROTOCOL: Final = "gatewayd.edge.v1"

_FINAL: Final = frozenset(
    {"authentication", "malformed", "no_route", "origin", "replay", "revoked", "stale", "too_large", "version"}
)
_FINAL_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1009, 4001, 4003})
_RETRY: Final = re.compile(r"(.*); retry_after_ms=(\d{1,9})", re.ASCII)
_LONGEST_LINE: Final = 1024 * 1024


class _HttpChannel:
    """A way to one gateway by HTTP; `target` is the gateway's PATH."""

    def __init__(self, target: Target, silence_s: float, context: ssl.SSLContext | None) -> None:
        self._target = target
        self._silence_s = silence_s
        self._context = context

    def _make_connection(self) -> HTTPConnection:
        return make_connection(self._target, self._silence_s, self._context)


class SseChannel(_HttpChannel):
    """Server-sent events."""

    def subscribe(self, envelope: Envelope) -> Iterator[Received]:
        """See Channel."""
        connection = self._make_connection()
        try:
            headers = {"Content-Type": "application/json", "User-Agent": AGENT}
            connection.request("POST", self._target.path, json.dumps(as_members(envelope)), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(response.status, response.read(65536), response.headers.get("Retry-After"))
            for name, data in _messages(response):
                if name == "close":
                    raise _ended(_object(data))
                yield read_event_members(_object(data))
            raise ConnectionError("the stream was cut")
        except (OSError, HTTPException) as error:
            raise Failed(Code.UNREACHABLE, f"{self._target}: {describe(error)}") from None
        finally:
            connection.close()


def _messages(response: HTTPResponse) -> Iterator[tuple[str, bytes]]:
    """Name and data of each event (WHATWG HTML, 9.2.6), as far as this gateway uses the form."""
    name, data = "", b""
    while line := response.readline(_LONGEST_LINE):
        field, _, value = line.rstrip(b"\r\n").partition(b": ")
        if field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"data":
            data = value
        elif not field and not value:
            if data:
                yield name, data
            name, data = "", b""


class WebSocketChannel(_HttpChannel):
    """A WebSocket."""

    def subscribe(self, envelope: Envelope) -> Iterator[Received]:
        """See Channel."""
        # The standard library makes the connection, TLS included; wsproto speaks on it.
        connection = self._make_connection()
        try:
            connection.connect()
            yield from self._talk(connection.sock, envelope)
        except ProtocolError as error:
            raise Failed(Code.UNREACHABLE, f"{self._target}: no WebSocket: {describe(error)}") from None
        except OSError as error:
            raise Failed(Code.UNREACHABLE, f"{self._target}: {describe(error)}") from None
        finally:
            connection.close()

    def _talk(self, connection: socket.socket, envelope: Envelope) -> Iterator[Received]:
        machine = WSConnection(ConnectionType.CLIENT)
        authority = str(self._target).removesuffix(self._target.path).split("://", 1)[1]
        opening = Request(
            host=authority,
            target=self._target.path,
            subprotocols=[SUBPROTOCOL],
            extra_headers=[(b"user-agent", AGENT.encode())],
        )
        connection.sendall(machine.send(opening))
        text, status, refusal = "", 0, b""
        for event in _events(machine, connection):
            if isinstance(event, AcceptConnection):
                message = Message(data=json.dumps(as_members(envelope)))
                connection.sendall(machine.send(message))
            elif isinstance(event, RejectData):
                refusal += event.data
                if event.body_finished:
                    raise _refused(status, refusal, None)
            elif isinstance(event, RejectConnection):
                status = event.status_code
                if not event.has_body:
                    raise _refused(status, b"", None)
            elif isinstance(event, Ping):
                connection.sendall(machine.send(event.response()))
            elif isinstance(event, CloseConnection):
                connection.sendall(machine.send(event.response()))
                raise _closed(event.code, event.reason or "")
            elif isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    whole, text = text, ""
                    yield read_event_members(_object(whole.encode()))


def _events(machine: WSConnection, connection: socket.socket) -> Iterator[Event]:
    """What comes, for ever; ConnectionError when the connection is closed."""
    while True:
        yield from machine.events()
        data = connection.recv(65536)
        if not data:
            raise ConnectionError("the connection was closed")
        machine.receive_data(data)


def _object(data: bytes) -> Mapping[str, Any]:
    members = json_or_none(data)
    return members if isinstance(members, dict) else {}


def _closed(code: int, reason: str) -> Ended:
    """What a close frame says."""
    found = _RETRY.fullmatch(reason)
    text, wait_s = (reason, None) if found is None else (found[1], int(found[2]) / 1000)
    return Ended(f"{code} {plain(text)}".strip(), final=code in _FINAL_CODES and wait_s is None, wait_s=wait_s)


def _refused(status: int, body: bytes, retry_after: str | None) -> Ended:
    """What an answer other than a stream says."""
    error = _object(body).get("error")
    if isinstance(error, dict):
        members = dict(error)
        if retry_after is not None and retry_after.isdigit():
            members.setdefault("retry_after_ms", int(retry_after) * 1000)
        return _ended(members)
    return Ended(f"HTTP {status}", final=status < 500)


def _ended(error: Mapping[str, Any]) -> Ended:
    """What an `error` says."""
    code, wait_ms = str(error.get("code")), error.get("retry_after_ms")
    text = f"{plain(code, 40)}: {plain(error.get('message', ''))}"
    return Ended(text, final=code in _FINAL, wait_s=wait_ms / 1000 if isinstance(wait_ms, int) else None)
