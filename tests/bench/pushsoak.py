"""
Whether the edge grows: streams that stay, streams of every transport that come and go, events and commands for all of
them, turn after turn. `python -m tests.bench --push --soak SECONDS`.

The events that are kept for those who come back, 10,000 of them, take 3 KB each: until there are so many, it grows.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.bench import report
from tests.bench.pushrig import ECHO, EdgeStand, Load, Signalling, rss_kib

STAYING: Final = 300
COMING: Final = 100
"""Streams of each transport that are opened and left in one turn."""
EVENTS: Final = 100
PAUSE_S: Final = 0.01
COMMANDS: Final = 20
LINES: Final = 12


class Soak:
    """One gatewayd and what is done to it."""

    def __init__(self, stand: EdgeStand) -> None:
        self.pid, self.ports = stand.start_edge()
        self._publisher = Signalling(stand.server)
        self._number = 0
        self._staying = Load("websocket", self.ports["websocket"])
        self._staying.ask("open", count=STAYING, message_type="all.subscribe")
        self.opened, self.delivered, self.commands = STAYING, 0, 0

    def turn(self) -> dict[str, Any]:
        """Clients come, get their events, send commands, and go."""
        coming = [Load(kind, port) for kind, port in self.ports.items()]
        try:
            for load in coming:
                load.ask("open", count=COMING, message_type="all.subscribe", own=True)
                self.opened += COMING
            found = self._events([self._staying, *coming])
            coming[-1].ask("run", count=COMMANDS, message_type=ECHO)
            self.commands += COMMANDS
        finally:
            for load in coming:
                load.close()
        return found

    def _events(self, loads: list[Load]) -> dict[str, Any]:
        for load in loads:
            load.ask("expect", events=EVENTS)
        for load in loads:
            load.begin("go_on")
        for _ in range(EVENTS):
            time.sleep(PAUSE_S)
            self._publisher.publish(self._number, 1)
            self._number += 1
        seen = [load.end() for load in loads]
        self._publisher.settle()
        self.delivered += sum(one["deliveries"] for one in seen)
        return seen[0]

    def close(self) -> None:
        """The staying ones leave."""
        self._staying.close()


def main(seconds: float) -> None:
    """Print what it had taken by then, LINES times."""
    os.sched_setaffinity(0, set(range(1, os.cpu_count() or 1)) or {0})
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        stand = EdgeStand(Path(directory))
        stand.add_sessions(STAYING)
        stand.add_sessions(COMING, own=True)
        stand.answer_echoes()
        soak = Soak(stand)
        began = time.monotonic()
        try:
            while (elapsed := time.monotonic() - began) < seconds or not rows:
                found = soak.turn()
                if elapsed >= len(rows) * seconds / LINES:
                    descriptors = len(os.listdir(f"/proc/{soak.pid}/fd"))
                    shown = (elapsed, soak.opened, soak.delivered, soak.commands, descriptors)
                    rows.append(
                        [*(f"{one:,.0f}" for one in shown), f"{rss_kib(soak.pid) / 1024:.1f}", f"{found['p99_ms']:.1f}"]
                    )
        finally:
            soak.close()
            stand.close()
    titles = ["seconds", "streams so far", "events delivered", "commands", "descriptors", "RSS MiB", "p99 ms"]
    print(report.table(titles, rows))
