"""Every implementation of IAdmission under its contract."""

from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.ingress.admission import Admitted, Claim, Limit, Limited, Outcome
from gatewayd.stores.memory import MemoryAdmission
from gatewayd.stores.redis import RedisAdmission
from tests.fakes.redis_link import AgeingClock, SynchronousLink
from tests.stores import memory, on_redis
from tests.valkey import Client, ValkeyServer

from .admission import AdmissionContract, BoundedContract, RememberedContract

pytest_plugins = ("tests.valkey",)


class Hosts:
    """Two hosts on one Redis, asked in turn: what one of them remembers the other one must know."""

    def __init__(self, *hosts: RedisAdmission) -> None:
        self._hosts = hosts
        self._turn = 0
        self._granted: dict[int, RedisAdmission] = {}

    def _next(self) -> RedisAdmission:
        self._turn += 1
        return self._hosts[self._turn % len(self._hosts)]

    def take(self, source: str, limit: Limit) -> Limited | None:
        """See IAdmission."""
        return self._next().take(source, limit)

    def admit(self, claim: Claim) -> Admitted | Deferred[Admitted]:
        """See IAdmission."""
        host = self._granted[id(claim)] = self._next()
        return host.admit(claim)

    def settle(self, claim: Claim, outcome: Outcome) -> None:
        """See IAdmission."""
        self._granted.pop(id(claim)).settle(claim, outcome)

    def remember_nonce(self, nonce: bytes, used_by: bytes, age_s: float) -> None:
        """Every host reads the stream back for itself."""
        for host in self._hosts:
            host.remember_nonce(nonce, used_by, age_s)


class MemoryAdmissionTests(BoundedContract, SynchronousTestCase):
    """The store in dictionaries."""

    def make(self, clock: Clock, entries_bound: int = 1000) -> MemoryAdmission:
        return memory(clock, entries_bound)


class OnValkey:
    """A test case with a connection to the session's server."""

    client: Client
    slack_s = 0.1
    early_s = 5.0

    @pytest.fixture(autouse=True)
    def connect(self, valkey: ValkeyServer) -> Iterator[None]:
        """A connection for each test, to an empty server."""
        with valkey.client() as self.client:
            yield

    def make_clock(self) -> Clock:
        return AgeingClock(self.client)


class RedisAdmissionTests(OnValkey, AdmissionContract, SynchronousTestCase):
    """The store on Redis."""

    def make(self, clock: Clock, entries_bound: int = 1000) -> RedisAdmission:
        return on_redis(clock, SynchronousLink(self.client), entries_bound)


class RedisAcrossHostsTests(OnValkey, RememberedContract, SynchronousTestCase):
    """The store on Redis, with every request on another host than the last."""

    def test_provides_the_interface(self) -> None:
        """Two hosts are no store; each of them is."""
        assert isinstance(self.store, Hosts)

    def make(self, clock: Clock, entries_bound: int = 1000) -> Hosts:
        return Hosts(*[on_redis(clock, SynchronousLink(self.client), entries_bound) for _ in range(2)])


class RedisGoneTests(OnValkey, BoundedContract, SynchronousTestCase):
    """The store on Redis while Redis is not there: memory keeps the whole contract."""

    slack_s, early_s = 0.0, 0.5

    def make_clock(self) -> Clock:
        """Time is this process's alone: no server counts it, and none of it passes while a test computes."""
        return Clock()

    def make(self, clock: Clock, entries_bound: int = 1000) -> RedisAdmission:
        return on_redis(clock, SynchronousLink(self.client, connected=False), entries_bound)
