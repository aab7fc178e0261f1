"""
What is said of every answer: the access line and the metrics.

Decides which requests count as webhooks and under which source. Never decides an answer; called once for each, after
it was written.
"""

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IReactorTime

from gatewayd.accesslog import AccessLog
from gatewayd.http.message import Request, Response
from gatewayd.ingress.sources import PREFIX
from gatewayd.metrics import Metrics
from gatewayd.times import Wall

_PREFIX_BYTES: Final = len(PREFIX)


class Journal:
    """The one observer of the channel's answers."""

    def __init__(self, access: AccessLog, metrics: Metrics, clock: IReactorTime, wall: Callable[[], Wall]) -> None:
        self._access = access
        self._metrics = metrics
        self._seconds = clock.seconds
        self._wall = wall

    def finished(self, request: Request | None, response: Response, *, written: bool) -> None:
        """
        An answer was written, or (`written` false) could not be because the client had gone.

        Both count alike: the outcome is the same. `request` is None when there was no head that could be read.
        """
        del written
        seconds = 0.0
        if request is not None:
            seconds = self._seconds() - request.received_at
            if request.path[:_PREFIX_BYTES] == PREFIX:
                self._metrics.webhook(response.source, response.status, seconds)
        if response.code:
            self._metrics.refused(response.code, response.source)
        self._access.write(request, response, seconds, self._wall())
