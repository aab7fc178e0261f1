"""
One connection to Redis for one command: blocking, on a socket, in RESP2.

Decides how a connection is made and logged in, and what the end of a call means to the command. Never connects again by
itself, and never shows a password.
"""

import socket
from contextlib import suppress
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeAlias

from gatewayd.cli.caller import describe
from gatewayd.cli.console import Code, Failed, plain
from gatewayd.stores.redisplace import RedisPlace

TIMEOUT_S: Final = 2.0
_LOGIN: Final = ("NOAUTH", "WRONGPASS", "NOPERM")

Value: TypeAlias = bytes | str | int


class RedisError(Exception):
    """The server's error reply, as it says it."""


class RedisCaller:
    """An open connection, logged in; Failed when there can be none."""

    def __init__(self, place: RedisPlace) -> None:
        self._place = place
        try:
            self._socket = socket.create_connection((place.host, place.port), TIMEOUT_S)
        except OSError as error:
            raise self._lost(error) from None
        self._file: BinaryIO = self._socket.makefile("rb")
        try:
            self._log_in()
        except Failed:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        with suppress(OSError):
            self._file.close()
            self._socket.close()

    def call(self, command: str, *words: Value) -> Any:
        """One command: bytes, an int, None or a list of these. Failed for a refusal, and when there is no answer."""
        try:
            return self._exchange((command, *words))
        except RedisError as error:
            code = Code.WRONG if str(error).startswith(_LOGIN) else Code.NOT_IN_ORDER
            raise Failed(code, f"Redis at {self._place} refuses {command}: {plain(error)}") from None

    def _log_in(self) -> None:
        place = self._place
        for setting, words in (
            ("GATEWAY_REDIS_PASSWORD", ("AUTH", place.password.reveal()) if place.password is not None else ()),
            ("GATEWAY_REDIS_DB", ("SELECT", place.db) if place.db else ()),
        ):
            try:
                if words:
                    self._exchange(words)
            except RedisError as error:
                raise Failed(Code.WRONG, f"{setting}: Redis at {place} refuses it: {plain(error)}") from None

    def _exchange(self, words: tuple[Value, ...]) -> Any:
        texts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        command = b"".join([b"*%d\r\n" % len(texts), *(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)])
        try:
            self._socket.sendall(command)
            return self._read()
        except (OSError, ValueError) as error:
            raise self._lost(error) from None

    def _read(self) -> Any:
        line = self._file.readline(65536)
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection was closed")
        kind, text = line[:1], line[1:-2]
        if kind == b"+":
            return text
        if kind == b"-":
            raise RedisError(text.decode("utf-8", "replace"))
        if kind == b":":
            return int(text)
        if kind == b"$":
            return None if text == b"-1" else self._file.read(int(text) + 2)[:-2]
        if kind == b"*":
            return None if text == b"-1" else [self._read() for _ in range(int(text))]
        raise ConnectionError("what answers is no Redis")

    def _lost(self, error: Exception) -> Failed:
        return Failed(Code.UNREACHABLE, f"Redis at {self._place}: {describe(error)}")
