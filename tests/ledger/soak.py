"""
The soak: a random fault every few seconds, under load, for as long as is asked; then the same checks as after one.

Decides which fault comes when, from a seed. Never makes one (acts.py does).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.ledger import acts
from tests.ledger.faults import Row, judge
from tests.ledger.report import Result
from tests.ledger.run import Options, Run, Strike

PACE_RPS: Final = 300.0
QUIET_S: Final = (0.5, 4.0)
"""Between two faults."""

RECOVER_S: Final = 5.0
"""A restart reads the nonces of what was accepted in the last minutes back: about 0.1 s for a thousand (measured)."""


@dataclass(frozen=True)
class _Choice:
    """An act, and the range of what it is given."""

    act: Callable[[Run, float], None]
    least: float
    most: float


_CHOICES: Final = (
    _Choice(acts.kill_nats, 0.1, 3.0),
    _Choice(acts.stop_nats, 0.1, 2.0),
    _Choice(acts.freeze_nats, 0.5, 5.0),
    _Choice(acts.fill_stream, 0.5, 3.0),
    _Choice(acts.fill_disk, 3.0, 6.0),
    _Choice(acts.silence, 0.5, 5.0),
    _Choice(acts.reset_at_random, 1, 5),
    _Choice(acts.delay, 1.0, 3.0),
    _Choice(acts.half_open, 3.0, 5.0),
    _Choice(acts.ghosts, 3.0, 6.0),
    _Choice(acts.kill_gateway, 1, 3),
    _Choice(acts.kill_behind_ack, 1, 1),
    _Choice(acts.kill_all, 0.1, 2.0),
    _Choice(acts.stop_gateway, 1, 1),
    _Choice(acts.reload_gateway, 1, 3),
    _Choice(acts.freeze_gateway, 0.2, 3.0),
)


class Soak:
    """One soak: the run, and the names of the faults in their order."""

    def __init__(self, root: Path, seconds: float, seed: int) -> None:
        options = Options(
            count=int(PACE_RPS * seconds),
            seed=seed,
            deadline_s=2 * seconds + 120.0,
            eager=2,
            pace_rps=PACE_RPS,
            proxied=True,
            probed=True,
        )
        self.made: list[str] = []
        self._random = Random(seed)
        self._seconds = seconds
        self._run = Run(root, options, [Strike(0.0, 1.0, self._act)])

    def run(self, slack: float = 1.0) -> Result:
        """Run it and judge it."""
        row = Row("soak", "a random fault every few seconds", acts.nothing, same=False, recover_s=RECOVER_S)
        try:
            self._run.send()
            return judge(row, self._run, self._run.reconcile(), slack)
        finally:
            self._run.close()

    def _act(self, run: Run) -> None:
        ends_at = time.monotonic() + self._seconds
        while run.sending and time.monotonic() < ends_at:
            chosen = self._random.choice(_CHOICES)
            self.made.append(chosen.act.__name__)
            run.await_ready(20.0)
            chosen.act(run, self._random.uniform(chosen.least, chosen.most))
            time.sleep(self._random.uniform(*QUIET_S))
