"""Every implementation of IAdmission under its contract."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.stores.memory import MemoryAdmission
from gatewayd.times import Monotonic

from .admission import IDENTITY_S, NONCE_S, AdmissionContract


class MemoryAdmissionTests(AdmissionContract, SynchronousTestCase):
    """The store in dictionaries."""

    def make(self, clock: Clock, entries_bound: int = 1000) -> MemoryAdmission:
        return MemoryAdmission(
            lambda: Monotonic(clock.seconds()),
            nonce_lifetime_s=NONCE_S,
            identity_lifetime_s=IDENTITY_S,
            entries_bound=entries_bound,
        )
