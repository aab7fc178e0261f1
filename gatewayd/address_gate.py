"""
How much one client address may ask of a path: the same for everything that has no limit of another kind yet.

Decides which address a request counts as and whether it has a token left. Never answers.
"""

from collections.abc import Callable

from gatewayd.http.message import Request
from gatewayd.ingress.addresses import AddressBuckets, contains
from gatewayd.ingress.admission import Limit, Limited
from gatewayd.ingress.sources import Rules
from gatewayd.times import Monotonic


class AddressGate:
    """
    Buckets of its own for each address, at most 10,000 of them (see AddressBuckets); RATE_LIMIT_EXEMPT_CIDRS are not
    limited. `limit` None: RATE_LIMIT_ADDRESS_RPS.
    """

    def __init__(self, rules: Callable[[], Rules], now: Callable[[], Monotonic], limit: Limit | None = None) -> None:
        self._rules = rules
        self._now = now
        self._limit = limit
        self._buckets = AddressBuckets()

    def refuse(self, request: Request) -> Limited | None:
        """Fill in the client's address and take one of its tokens; a Limited when there is none."""
        rules = self._rules()
        request.client_ip = rules.proxies.client(request.peer, request.values(b"x-forwarded-for"))
        if contains(rules.exempt, request.client_ip):
            return None
        return self._buckets.take(request.client_ip, self._limit or rules.address_limit, self._now())
