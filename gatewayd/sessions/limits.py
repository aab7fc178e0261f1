"""
How much one session, one user and all requests of one message type may ask for. Pure.

Decides from whose bucket a token is taken, and in which order. Never counts a request that was not authenticated.
"""

import math
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from gatewayd.ingress.admission import Buckets, Limit
from gatewayd.sessions.endings import LIMITED, Ending
from gatewayd.sessions.values import Session
from gatewayd.times import Monotonic

BOUND: Final = 20_000
"""Buckets of one kind, about 3 MB of them."""


class Limits:
    """
    The three limits of an authenticated request. `group` says under which name a message type is counted: that of its
    route, so that the many message types behind one prefix share one bucket.
    """

    def __init__(
        self, *, session: Limit, user: Limit, message_type: Limit, group: Callable[[str], str], bound: int = BOUND
    ) -> None:
        self._group = group
        self._limits = (session, user, message_type)
        self._sessions, self._users, self._message_types = Buckets(bound), Buckets(bound), Buckets(bound)

    def use(self, *, session: Limit, user: Limit, message_type: Limit) -> None:
        """Put other limits in force; what was taken stays taken."""
        self._limits = (session, user, message_type)

    def take(self, session: Session, message_type: str, now: Monotonic) -> Ending | None:
        """
        Take one token of the session, then of its user, then of the message type; LIMITED with the time to wait at the
        first that has none: what was taken before stays taken, so that a session over its user's limit cannot use up
        a message type.
        """
        of_session, of_user, of_type = self._limits
        limited = (
            self._sessions.take(session.device_session_id, of_session, now)
            or self._users.take(session.user_id, of_user, now)
            or self._message_types.take(self._group(message_type), of_type, now)
        )
        return None if limited is None else replace(LIMITED, retry_after_ms=max(1, math.ceil(limited.wait_s * 1000)))
