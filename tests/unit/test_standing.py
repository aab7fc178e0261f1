"""The line that systemctl status shows."""

import os
import socket
from collections.abc import Sequence

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.publication import BusState
from gatewayd.health import Health, Phase
from gatewayd.lifecycle import Notifier
from gatewayd.maintenance import Maintenance, Window
from gatewayd.standing import Standing, status_line
from gatewayd.times import Monotonic, Wall

NOW = Wall(1_768_471_800.0)
ON = "0.0.0.0:8001"


def line(
    phase: Phase = Phase.READY, window: Window | None = None, bus: BusState = BusState.CONNECTED, error: str = ""
) -> str:
    return status_line(phase, window, bus, error, listening=ON, reload="")


class TestStatusLine(SynchronousTestCase):
    def test_what_becomes_of_webhooks_stands_first(self) -> None:
        """Each state of the process has its own words."""
        self.assertEqual(line(), f"taking webhooks on {ON}; NATS connected")
        self.assertEqual(line(Phase.STARTING), f"starting on {ON}; NATS connected")
        self.assertEqual(
            line(bus=BusState.DISCONNECTED, error="refused"),
            f"webhooks get 503 GW-005 on {ON}; NATS disconnected (refused)",
        )
        self.assertEqual(
            line(bus=BusState.DEGRADED, error="no answer"), f"taking webhooks on {ON}; NATS degraded (no answer)"
        )

    def test_maintenance(self) -> None:
        """Its end, where one is known; a process that stops says that it stops."""
        until = Window(NOW, 60)
        self.assertIn("maintenance, until 2026-01-15T10:10:00.000Z: webhooks get 503 GW-011", line(window=until))
        self.assertIn("maintenance, no end known", line(window=Window(None, 300)))
        self.assertTrue(line(Phase.DRAINING, until).startswith("draining"))

    def test_an_old_error_is_not_shown(self) -> None:
        """What went wrong before the connection was there is past."""
        self.assertNotIn("refused", line(error="refused"))


class TestStanding(SynchronousTestCase):
    def setUp(self) -> None:
        self.state, self.error = BusState.CONNECTED, ""
        self.maintenance = Maintenance(lambda: NOW, on=False, until=None, retry_after_s=300)
        self.health = Health(
            maintenance=self.maintenance, now=lambda: Monotonic(0.0), wall=lambda: NOW, version="0", warnings=list
        )
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(self.socket.close)
        address = f"@gatewayd-standing-{os.getpid()}"
        self.socket.bind(address.replace("@", "\0"))
        self.standing = self.make({"NOTIFY_SOCKET": address})

    def make(self, environ: dict[str, str], listening: Sequence[str] = (ON, "unix:/run/x")) -> Standing:
        return Standing(
            Notifier(environ),
            health=self.health,
            window=self.maintenance.window,
            nats=lambda: (self.state, self.error),
            listening=listening,
            clean=lambda text: text.replace("s3cret", "[redacted]"),
            wall=lambda: NOW,
        )

    def told(self) -> list[str]:
        heard = []
        while True:
            try:
                heard.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return heard

    def test_a_change_is_told_once(self) -> None:
        """Within a second of it, and not again while nothing changes."""
        clock = Clock()
        ticker = self.standing.ticker(clock)
        assert ticker is not None
        ticker.startService()
        self.addCleanup(ticker.stopService)
        clock.pump([0.0, 1.0, 1.0])
        self.assertEqual(self.told(), [f"STATUS=starting on {ON}, unix:/run/x; NATS connected"])
        self.health.phase = Phase.READY
        self.standing.started()
        clock.pump([1.0, 1.0])
        self.assertEqual(self.told(), [f"READY=1\nSTATUS=taking webhooks on {ON}, unix:/run/x; NATS connected"])
        self.state, self.error = BusState.DISCONNECTED, "s3cret was refused"
        clock.pump([1.0, 1.0])
        (said,) = self.told()
        self.assertTrue(said.endswith("NATS disconnected ([redacted] was refused)"), said)

    def test_a_reload_is_told_at_both_ends_with_its_outcome(self) -> None:
        """RELOADING=1, then READY=1 and in the status when it was and what came of it."""
        self.health.phase = Phase.READY
        self.standing.reloading()
        self.standing.reloaded("refused, the old settings stay: PORT=0x")
        begun, ended = self.told()
        self.assertTrue(begun.startswith("RELOADING=1\nMONOTONIC_USEC="))
        self.assertTrue(ended.startswith("READY=1\nSTATUS=taking webhooks"))
        self.assertTrue(ended.endswith("last reload 2026-01-15T10:10:00.000Z: refused, the old settings stay: PORT=0x"))

    def test_nobody_listens(self) -> None:
        """Without systemd nothing ticks."""
        self.assertIsNone(self.make({}).ticker(Clock()))
