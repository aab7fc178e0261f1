"""
The seam between a command and the service behind its route.

Decides nothing: commands.nats and commands.http implement it, commands.guarded bounds it.
"""

from twisted.internet.defer import Deferred
from zope.interface import Interface

from gatewayd.sessions.endings import Ending
from gatewayd.sessions.values import Answered, Command


class IRoute(Interface):
    """One service, as a command meets it. Every implementation passes the suite in tests/contracts."""

    def call(command: Command, deadline_s: float) -> Deferred[Answered | Ending]:
        """
        Hand a command over and wait for the answer, at most `deadline_s` seconds, above 0.

        The service gets the very payload, and session, user, message type, request id and trace context beside it. It
        gets a command once; that it was not heard of again says nothing about whether it was carried out. Fires with
        UPSTREAM_FAILED when there is no answer to be had (at once, where that is known), with `retry_after_ms` when
        that is for a reason of the gateway's own, which says nothing about the service; with UPSTREAM_TIMED_OUT when
        there was none in time, or INVALID_ARGUMENT for a payload that the way there does not take. Never fails, but
        when it is cancelled, which gives the answer up.
        """
