"""
A connection to Redis of its own, for commands that block (XREAD BLOCK).

Decides when a blocked command has hung, and that the way to end one is to end its connection: a command that is only
forgotten still takes what it was waiting for. Never tries anything again by itself: the next call connects anew.
"""

from typing import Any, Final, Protocol

from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from gatewayd.errors import Unavailable
from gatewayd.stores.redisreplies import RedisRefused
from gatewayd.stores.rediswire import OpenFailed, Wire

GRACE_S: Final = 2.0
"""A command that blocks for BLOCK milliseconds has hung when it is so much longer silent."""


class Reported(Protocol):
    """What a reader tells the link it came from."""

    def refused(self, text: str) -> Unavailable | RedisRefused:
        """The server answered with this error; what the caller gets."""

    def timed_out(self, count: int, text: str = "") -> None:
        """So many calls had no reply in time."""

    def lost(self, why: Failure | None) -> None:
        """A connection was lost."""

    def could_not_connect(self, error: BaseException | None) -> None:
        """An attempt failed."""


class BlockingReader:
    """Commands that block, one at a time; RuntimeError for a second one."""

    def __init__(self, wire: Wire, reactor: Any, link: Reported) -> None:
        self._wire = wire
        self._reactor = reactor
        self._link = link
        self._connection: Any = None
        self._ended = False
        self._under_way: Deferred[Any] | None = None

    def call(self, *arguments: bytes | str | int) -> Deferred[Any]:
        """
        One command, on a connection that is made when there is none; the reply as from RedisLink.call.

        Fails with Unavailable (also by disconnect()) or RedisRefused. Cancelling ends the connection.
        """
        if self._under_way is not None:
            raise RuntimeError("a reader reads one thing at a time")
        under_way = Deferred.fromCoroutine(self._call(arguments))

        def ended(result: Any) -> Any:
            if self._under_way is under_way:
                self._under_way = None
            return result

        self._under_way = under_way
        return under_way.addBoth(ended)

    async def _call(self, arguments: tuple[bytes | str | int, ...]) -> Any:
        connection = self._connection
        if connection is None or connection.lost is not None:
            self._ended = False
            try:
                connection = self._connection = await self._wire.open()
            except OpenFailed as error:
                self._link.could_not_connect(error)
                raise Unavailable(f"Redis: {error}") from None
            except CancelledError:
                if self._ended:
                    raise Unavailable("disconnected") from None
                raise
        reply = connection.execute_command(*arguments).addTimeout(_block_s(arguments) + GRACE_S, self._reactor)
        try:
            return await reply
        except CancelledError:
            self._drop(connection)
            raise
        except defer.TimeoutError:
            self._drop(connection)
            self._link.timed_out(1, "a blocking command had no reply in time")
            raise Unavailable("Redis did not answer in time") from None
        except Exception as error:
            if connection.lost is None:
                raise self._link.refused(str(error)) from None
            if self._connection is connection:
                self._connection = None
                self._link.lost(connection.lost)
            raise Unavailable("the connection to Redis was lost") from None

    def _drop(self, connection: Any) -> None:
        if self._connection is connection:
            self._connection = None
        connection.transport.abortConnection()

    def disconnect(self) -> None:
        """End the connection and with it the command that is under way, at once, also when the server is frozen."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.transport.abortConnection()
        elif self._under_way is not None:
            self._ended = True
            self._under_way.cancel()


def _block_s(arguments: tuple[bytes | str | int, ...]) -> float:
    """How long the command may block: what stands behind BLOCK, in seconds; 0 without it."""
    words = [bytes(word).upper() if isinstance(word, bytes) else str(word).upper().encode() for word in arguments]
    if b"BLOCK" not in words[:-1]:
        return 0.0
    return int(words[words.index(b"BLOCK") + 1]) / 1000
