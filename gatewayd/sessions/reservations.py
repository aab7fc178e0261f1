"""
Request ids that were used, in Redis: each passes once, on every host together.

Decides the key and the lifetime of a reservation. Never lets a request pass that Redis has not confirmed.
"""

from typing import Final

from twisted.internet.interfaces import IReactorTime

from gatewayd.errors import Unavailable
from gatewayd.lifecycle import Overrun, within
from gatewayd.sessions.cache import Link
from gatewayd.sessions.encodings import write_base64url
from gatewayd.sessions.endings import REPLAYED, UNAVAILABLE_NOW, Ending
from gatewayd.stores.redisreplies import RedisRefused

SHORTEST_MS: Final = 1000


class Reservations:
    """
    `timeout_s` bounds the wait for Redis; None where the link's own deadline is no longer than that. A reservation that
    was not confirmed in time may have been made: the same request sent again is then a replay, one with a new
    request_id is not.
    """

    def __init__(
        self, link: Link, *, clock: IReactorTime, key_prefix: str, window_ms: int, timeout_s: float | None
    ) -> None:
        self._link = link
        self._clock = clock
        self._prefix = key_prefix
        self._window_ms = window_ms
        self._timeout_s = timeout_s

    async def reserve(self, device_session_id: str, request_id: str, timestamp_ms: int, now_ms: int) -> Ending | None:
        """
        None: the request is the first of its id, which nobody can use again until timestamp + window, and for 1 s at
        least; else REPLAYED, or UNAVAILABLE_NOW when Redis does not say.
        """
        key = f"{self._prefix}{write_base64url(device_session_id.encode())}:{write_base64url(request_id.encode())}"
        lifetime_ms = max(SHORTEST_MS, timestamp_ms + self._window_ms - now_ms)
        asked = self._link.call("SET", key, "1", "NX", "PX", lifetime_ms)
        if self._timeout_s is not None:
            asked = within(self._clock, asked, self._timeout_s)
        try:
            reply = await asked
        except (Unavailable, Overrun, RedisRefused):
            return UNAVAILABLE_NOW
        return None if reply == b"OK" else REPLAYED
