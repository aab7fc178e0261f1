"""
What the process says of itself. Pure.

Decides, from the state of its parts, whether a webhook is taken, and what the two probes answer. Never asks a part
anything: the parts tell it, or are handed in.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from gatewayd.bus.publication import BusState
from gatewayd.errors import Refused
from gatewayd.maintenance import Maintenance
from gatewayd.times import Monotonic, Wall, format_wall


class Phase(Enum):
    """The life of the process; it only ever goes forward."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Health:
    """
    The state that probes and the webhook paths share.

    `warnings` gives what /readyz warns of, each text with what to do; `stores` gives each store that is on, "ok" or
    "error".
    """

    def __init__(
        self,
        *,
        maintenance: Maintenance,
        now: Callable[[], Monotonic],
        wall: Callable[[], Wall],
        version: str,
        warnings: Callable[[], Sequence[str]],
        stores: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._maintenance = maintenance
        self._now = now
        self._wall = wall
        self._version = version
        self._warnings = warnings
        self._stores = stores
        self._started_at = now()
        self.phase = Phase.STARTING
        self._takes_last = False

    def drain(self, *, takes_last: bool) -> None:
        """
        The process ends. `takes_last`: no new connection can come, so that what is still asked on those that are open
        is taken; else it is refused, or it would never end.
        """
        self.phase = Phase.DRAINING
        self._takes_last = takes_last

    def refuse_webhook(self, bus: BusState) -> Refused | None:
        """Maintenance, then the bus known to be down, then starting and draining: the published order."""
        if self.phase is Phase.READY and bus is not BusState.DISCONNECTED and self._maintenance.window() is None:
            return None
        window = self._maintenance.window()
        if window is not None:
            return Refused("GW-011", {"maintenance_window": window.text}, retry_after=window.retry_after_s)
        if bus is BusState.DISCONNECTED:
            return Refused("GW-005", {"nats_status": bus.value}, logged={"nats_status": bus.value})
        if self.phase is Phase.DRAINING and self._takes_last:
            return None
        return Refused("GW-018", {"reason": self.phase.value})

    def _status(self, bus: BusState) -> str:
        if self._maintenance.window() is not None:
            return "maintenance"
        if bus is BusState.DISCONNECTED:
            return "nats_unavailable"
        return "ok" if self.phase is Phase.READY else self.phase.value

    def alive(self, bus: BusState) -> dict[str, object]:
        """The members of /healthz; `ok` is false while webhooks would get 503."""
        return {
            "ok": self.refuse_webhook(bus) is None,
            "status": self._status(bus),
            "nats": bus.value,
            **self._stores(),
            "uptime_s": round(self._now() - self._started_at, 3),
            "version": self._version,
            "timestamp": format_wall(self._wall()),
        }

    def ready(self, bus: BusState, *, to_stranger: bool = False) -> tuple[bool, dict[str, object]]:
        """
        Whether /readyz answers 200, and its members. Warnings name weak secrets and sources without one: a stranger is
        only told how many there are.

        Maintenance is no fault: the process stays ready, so that clients get its own answer with the real Retry-After.
        """
        usable = self.phase is Phase.READY and bus is not BusState.DISCONNECTED
        status = self._status(bus)
        warnings = list(self._warnings())
        if warnings and to_stranger:
            warnings = [f"{len(warnings)} in all, shown to METRICS_ALLOW_CIDRS only"]
        return usable, {
            "ready": usable,
            "status": status,
            "parts": {"webhook": {"ready": usable, "status": status, "nats": bus.value}},
            "warnings": warnings,
            "version": self._version,
            "timestamp": format_wall(self._wall()),
        }
