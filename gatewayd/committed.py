"""
A Deferred for what cannot be called back.

Decides only that cancelling does nothing: bytes that were written may be stored, so whoever waits must hear the
outcome, also when its client has gone.
"""

from typing import TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class Committed(Deferred[T]):
    """
    A Deferred whose cancel() does nothing. A coroutine that awaits one runs on to its outcome when it is cancelled,
    which spares the request a second Deferred around every publication (4 us).
    """

    def cancel(self) -> None:
        """Nothing: see the class."""
