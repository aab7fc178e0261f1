"""What the process says of itself: maintenance, readiness, the probes' members."""

import json

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.publication import BusState
from gatewayd.health import Health, Phase
from gatewayd.maintenance import Maintenance
from gatewayd.times import Monotonic, Wall, format_wall

NOW = 1_700_000_000.0


class _World(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.now = NOW
        self.maintenance = Maintenance(lambda: Wall(self.now), on=False, until=None, retry_after_s=300.0)
        self.health = Health(
            maintenance=self.maintenance,
            now=lambda: Monotonic(self.clock.seconds()),
            wall=lambda: Wall(self.now),
            version="1.2.3",
            warnings=lambda: ["something to do"],
        )


class MaintenanceTests(_World):
    """The switch, by settings and by file."""

    def file(self, **members: object) -> None:
        self.maintenance.read_file(json.dumps(members).encode())

    def test_by_settings(self) -> None:
        """Switched on by the settings the wait is the configured one, or the time to the known end."""
        self.maintenance.configure(on=True, until=None, retry_after_s=120.0)
        window = self.maintenance.window()
        assert window is not None
        assert (window.until, window.retry_after_s) == (None, 120.0)
        self.maintenance.configure(on=True, until=Wall(NOW + 60), retry_after_s=120.0)
        window = self.maintenance.window()
        assert window is not None
        assert (window.until, window.retry_after_s) == (NOW + 60, 60.0)

    def test_a_known_end_ends_it(self) -> None:
        """A window is over when its end has passed."""
        self.file(until=format_wall(NOW + 60))
        assert self.maintenance.window() is not None
        self.now += 61
        assert self.maintenance.window() is None

    def test_by_file(self) -> None:
        """A file is enough, and taking it away switches off."""
        self.file(until=None)
        assert self.maintenance.window() is not None
        self.maintenance.read_file(None)
        assert self.maintenance.window() is None

    def test_a_broken_file_means_maintenance(self) -> None:
        """Somebody who wrote the file meant to switch it on."""
        for content in (b"", b"{", b"[]", b'{"until": 5}', b"\xff", b'{"until": "tomorrow"}'):
            self.maintenance.read_file(content)
            window = self.maintenance.window()
            assert window is not None, content
            assert window.until is None


class HealthTests(_World):
    """Which refusal comes first, and what the probes say."""

    def code(self, bus: BusState) -> str:
        refused = self.health.refuse_webhook(bus)
        return "" if refused is None else refused.code

    def test_order(self) -> None:
        """Maintenance, then the bus, then starting."""
        self.maintenance.configure(on=True, until=None, retry_after_s=300.0)
        assert self.code(BusState.DISCONNECTED) == "GW-011"
        self.maintenance.configure(on=False, until=None, retry_after_s=300.0)
        assert self.code(BusState.DISCONNECTED) == "GW-005"
        assert self.code(BusState.CONNECTED) == "GW-018"
        self.health.phase = Phase.READY
        assert self.code(BusState.DEGRADED) == ""
        self.health.phase = Phase.DRAINING
        assert self.code(BusState.CONNECTED) == "GW-018"

    def test_drain(self) -> None:
        """While nothing new can come the last requests are taken, and not ready all the same; else they are refused."""
        self.health.phase = Phase.READY
        self.health.drain(takes_last=True)
        assert self.code(BusState.CONNECTED) == ""
        assert self.code(BusState.DISCONNECTED) == "GW-005"
        usable, members = self.health.ready(BusState.CONNECTED)
        assert (usable, members["status"]) == (False, "draining")
        self.health.drain(takes_last=False)
        refused = self.health.refuse_webhook(BusState.CONNECTED)
        assert refused is not None
        assert (refused.code, refused.details) == ("GW-018", {"reason": "draining"})

    def test_alive(self) -> None:
        """ok is true exactly while webhooks are taken; the members of the runbook are there."""
        self.clock.advance(12.5)
        members = self.health.alive(BusState.CONNECTED)
        assert members == {
            "ok": False,
            "status": "starting",
            "nats": "connected",
            "uptime_s": 12.5,
            "version": "1.2.3",
            "timestamp": format_wall(NOW),
        }
        self.health.phase = Phase.READY
        assert self.health.alive(BusState.DEGRADED)["ok"] is True
        members = self.health.alive(BusState.DISCONNECTED)
        assert (members["ok"], members["status"]) == (False, "nats_unavailable")

    def test_ready(self) -> None:
        """Ready while started and the bus is there; maintenance is said and does not make it unready."""
        assert self.health.ready(BusState.CONNECTED)[0] is False
        self.health.phase = Phase.READY
        assert self.health.ready(BusState.DISCONNECTED)[0] is False
        self.maintenance.configure(on=True, until=None, retry_after_s=300.0)
        ready, members = self.health.ready(BusState.CONNECTED)
        assert ready
        assert members["status"] == "maintenance"
        assert members["warnings"] == ["something to do"]

    def test_warnings_are_not_for_strangers(self) -> None:
        """Who may not read the metrics learns how many warnings there are, and none of their texts."""
        self.health.phase = Phase.READY
        _, members = self.health.ready(BusState.CONNECTED, to_stranger=True)
        assert members["warnings"] == ["1 in all, shown to METRICS_ALLOW_CIDRS only"]
