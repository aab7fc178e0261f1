"""
A link to a real Valkey that answers before it returns, for what is tested without a reactor; and a clock whose
advance ages what the server holds, since its own clock cannot be moved.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from gatewayd.errors import Unavailable
from gatewayd.stores.redisreplies import judge
from gatewayd.stores.script import Script
from tests.valkey import Client, ServerError

_AGE = b"""
for _, key in ipairs(redis.call('KEYS', '*')) do
    local left = redis.call('PTTL', key)
    if string.find(key, ':b:', 1, true) then
        local full_at = tonumber(redis.call('GET', key)) - ARGV[1] * 1000
        redis.call('SET', key, string.format('%.0f', full_at), 'KEEPTTL')
    end
    if left >= 0 then redis.call('PEXPIRE', key, math.max(0, left - ARGV[1])) end
end
return 1
"""


class AgeingClock(Clock):
    """
    Time passes for the server's keys, too: they expire so much earlier, and buckets fill up. Between its jumps it goes
    on as the server's does.
    """

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self._began = time.monotonic()

    def seconds(self) -> float:
        """The jumps and the time since the beginning."""
        return super().seconds() + time.monotonic() - self._began

    def advance(self, amount: float) -> None:
        """Let `amount` seconds pass."""
        self._client.call("EVAL", _AGE, 0, round(amount * 1000))
        super().advance(amount)


class SynchronousLink:
    """RedisLink's calls over a test's client. `connected` may be set; then watchers are told."""

    def __init__(self, client: Client, *, connected: bool = True) -> None:
        self._client = client
        self._connected = connected
        self._watchers: list[Callable[[bool], object]] = []
        self.calls = 0

    @property
    def connected(self) -> bool:
        """As it was set."""
        return self._connected

    @connected.setter
    def connected(self, up: bool) -> None:
        self._connected = up
        for told in self._watchers:
            told(up)

    def watch(self, told: Callable[[bool], object]) -> None:
        """See RedisLink.watch."""
        self._watchers.append(told)

    def call(self, *arguments: bytes | str | int) -> Deferred[Any]:
        """See RedisLink.call."""
        self.calls += 1
        if not self._connected:
            return fail(Unavailable("not connected"))
        try:
            return succeed(self._client.call(*arguments))
        except ServerError as error:
            return fail(judge(str(error))[1])

    def run(
        self, script: Script, keys: Sequence[bytes | str] = (), arguments: Sequence[bytes | str | int] = ()
    ) -> Deferred[Any]:
        """See RedisLink.run."""
        return self.call("EVAL", script.text, len(keys), *keys, *arguments)
