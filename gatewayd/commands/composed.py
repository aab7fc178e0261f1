"""
The routes of the settings, put together.

Decides which client each route gets. Never makes a client: it asks for the HTTP one where a route needs it.
"""

from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IReactorTime

from gatewayd.commands.api import IRoute
from gatewayd.commands.guarded import Complaints, GuardedRoute, Room
from gatewayd.commands.http import HttpRoute
from gatewayd.commands.nats import Asking, NatsRoute
from gatewayd.commands.received import Posting
from gatewayd.commands.routes import RouteSpec, RouteTable


def make_routes(
    specs: Iterable[RouteSpec],
    *,
    bus: Asking,
    upstream: Callable[[], Posting],
    clock: IReactorTime,
    random: Callable[[int], bytes],
) -> RouteTable[GuardedRoute]:
    """
    The table that commands are looked up in. `upstream` gives the one commands.upstream.Upstream of the process, and is
    called only when there is a route to HTTP.
    """
    room, complaints = Room(), Complaints(clock)

    def guarded(spec: RouteSpec) -> GuardedRoute:
        complain = complaints.about(spec.message_type)
        route: IRoute
        if spec.url:
            route = HttpRoute(upstream(), spec.url, random=random, complain=complain)
        else:
            route = NatsRoute(bus, spec.subject, random=random, complain=complain)
        return GuardedRoute(spec.message_type, route, spec.deadline_s, room=room, clock=clock)

    return RouteTable({spec.message_type: guarded(spec) for spec in specs})
