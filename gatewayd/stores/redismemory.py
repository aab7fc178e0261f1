"""
What a Redis server does when its memory is full: a server that drops keys by itself drops what we rely on.

Decides what is worth a warning, and counts what was dropped. Never changes the server's configuration.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred

from gatewayd.errors import Unavailable
from gatewayd.stores.redisreplies import RedisRefused

LOOK_S: Final = 10.0
"""How often it is looked at; INFO takes a server some 0.1 ms."""


class Link(Protocol):
    """What asks the server: a RedisLink."""

    name: str

    @property
    def connected(self) -> bool:
        """True while a call would be sent."""

    def call(self, *arguments: bytes | str | int) -> Deferred[Any]:
        """See RedisLink.call."""


class RedisMemory:
    """`evicted` is told of keys that the server dropped between two looks."""

    def __init__(self, link: Link, evicted: Callable[[int], object]) -> None:
        self._link = link
        self._tell = evicted
        self._before: int | None = None
        self.policy = ""

    async def look(self) -> None:
        """Ask once; nothing happens when the server cannot or may not say."""
        if not self._link.connected:
            return
        try:
            info = read_info(await self._link.call("INFO"))
        except (Unavailable, RedisRefused):
            return
        self.policy = info.get("maxmemory_policy", "")
        text = info.get("evicted_keys", "")
        if not text.isdecimal():
            return
        before, now = self._before, int(text)
        self._before = now
        if before is not None and now != before:
            self._tell(now - before if now > before else now)  # a server that was restarted counts anew

    def warnings(self) -> list[str]:
        """What /readyz says of it."""
        if not self.policy.startswith("allkeys"):
            return []
        text = (
            f"{self._link.name} drops any key when its memory is full (maxmemory-policy {self.policy}): set "
            "noeviction, so that it says so instead, and a maxmemory that suffices."
        )
        return [text]


def read_info(reply: bytes) -> dict[str, str]:
    """The members of an INFO reply."""
    lines = reply.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
