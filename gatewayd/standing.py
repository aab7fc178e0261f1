"""
The line that `systemctl status` shows of a running gatewayd.

Decides what the line says (whether webhooks are taken, where, how NATS is, what the last reload came to) and when it
is sent: once for each change. Never decides any of it, and never says what the log would not.
"""

from collections.abc import Callable, Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from gatewayd.bus.publication import BusState
from gatewayd.health import Health, Phase
from gatewayd.lifecycle import Notifier, Ticker
from gatewayd.maintenance import Window
from gatewayd.times import Wall, format_wall

TICK_S: Final = 1.0


def status_line(phase: Phase, window: Window | None, bus: BusState, error: str, *, listening: str, reload: str) -> str:
    """The line: what becomes of webhooks first, then what concerns the operator besides."""
    if window is not None and phase is not Phase.DRAINING:
        taken = f"maintenance, {window.text or 'no end known'}: webhooks get 503 GW-011"
    elif phase is not Phase.READY:
        taken = phase.value
    elif bus is BusState.DISCONNECTED:
        taken = "webhooks get 503 GW-005"
    else:
        taken = "taking webhooks"
    nats = f"NATS {bus.value}" + (f" ({error})" if error and bus is not BusState.CONNECTED else "")
    return "; ".join([f"{taken} on {listening}", nats, *([f"last reload {reload}"] if reload else [])])


class Standing:
    """
    What systemd is told of this process from its start to its stop.

    `window` is the maintenance that is on, `nats` how the connection is and what went wrong with it last; `clean` takes
    secrets out of a text; `listening` are the public addresses.
    """

    def __init__(
        self,
        notifier: Notifier,
        *,
        health: Health,
        window: Callable[[], Window | None],
        nats: Callable[[], tuple[BusState, str]],
        listening: Sequence[object],
        clean: Callable[[str], str],
        wall: Callable[[], Wall],
    ) -> None:
        self.notifier = notifier
        self._health = health
        self._window = window
        self._nats = nats
        self._listening = ", ".join(str(address) for address in listening)
        self._clean = clean
        self._wall = wall
        self._reload = ""
        self._told = ""

    def line(self) -> str:
        """The line as it is now."""
        state, error = self._nats()
        phase, window = self._health.phase, self._window()
        return self._clean(status_line(phase, window, state, error, listening=self._listening, reload=self._reload))

    def tell(self) -> None:
        """Send the line when it is another one."""
        line = self.line()
        if line != self._told:
            self._told = line
            self.notifier.status(line)

    def started(self) -> None:
        """Everything is up."""
        self._told = self.line()
        self.notifier.ready(self._told)

    def reloading(self) -> None:
        """A reload begins."""
        self.notifier.reloading()

    def reloaded(self, outcome: str) -> None:
        """It has ended, well or not; `outcome` says which in a few words."""
        self._reload = f"{format_wall(self._wall())}: {outcome}"
        self.started()

    def stopping(self) -> None:
        """The shutdown begins: nothing else is reported any more."""
        self.notifier.stopping()

    def ticker(self, clock: IReactorTime) -> Ticker | None:
        """What keeps the line up to date; None without systemd."""
        return Ticker(clock, TICK_S, self.tell, "status", at_once=True) if self.notifier.listens else None
