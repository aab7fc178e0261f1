"""
The product on virtual time, under one seeded scheduler, against every promise at once.

Everything that compose wires is the real thing, nats-py included; the server, the network and the clients are models.
`python -m tests.simulation --seed S --trace` lives through one world again.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import count
from pathlib import Path

import pytest
from twisted.logger import LogEvent

from tests.simulation.batch import REQUESTS_PER_WORLD, Summary, run
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.seeds import KEPT
from tests.simulation.world import REQUESTS_PER_FAULT, World

FULL = os.environ.get("GATEWAYD_TEST_FULL") == "1"
REQUESTS, CRASHES = (10_000_000, 100_000) if FULL else (100_000, 1_000)
FIRST_SEED = 1000
SEEDS_OF_A_MUTANT = 80


def test_worlds_full_of_faults_break_no_promise(capsys: pytest.CaptureFixture[str]) -> None:
    """100,000 requests through 1,000 crashes (ten million and 100,000 in the long form), and every invariant holds."""

    def enough(summary: Summary) -> bool:
        done = summary.seen["requests"] >= REQUESTS and summary.seen["crashes"] >= CRASHES
        return done or len(summary.broken) >= 3

    summary = run(count(FIRST_SEED), enough, processes=os.cpu_count() or 1, progress_s=60.0 if FULL else 0.0)
    with capsys.disabled():
        print("\n" + "\n".join(summary.lines()))
    assert summary.broken == {}
    assert summary.seen["requests"] >= REQUESTS
    assert summary.seen["crashes"] >= CRASHES
    for happened in ("202", "duplicates", "409 GW-006", "replays", "503 GW-005", "503 GW-010", "ghosts"):
        assert summary.seen[happened] > 0, happened
    for happened in ("repaired halves", "server restarts", "freezes", "stalls", "being proposed", "aged worlds"):
        assert summary.seen[happened] > 0, happened


@pytest.mark.parametrize("seed", KEPT)
def test_what_once_found_something(seed: int) -> None:
    """A world that found a bug finds none any more."""
    assert World(seed, REQUESTS_PER_WORLD).run().invariants.broken == []


def test_a_seed_is_a_world(tmp_path: Path) -> None:
    """The same seed makes the same world to the last step, in another process and under another hash seed too."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", "9", "--requests", "150"]
    outputs = []
    for hash_seed in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert f"trace {World(9, 150).run().digest}" in outputs[0]
    assert World(10, 150).run().digest != World(9, 150).run().digest


def test_every_fault_befalls_some_world() -> None:
    """No kind of fault is left out by accident."""
    drawn: Counter[str] = Counter()
    for seed in range(200):
        drawn.update(World(seed, 1).intervals)
    assert set(drawn) == set(REQUESTS_PER_FAULT)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_is_noticed(mutant: Mutant, no_logged_failures: list[LogEvent]) -> None:
    """With one rule of the product broken, some world among the first ones says what is wrong."""
    found: list[str] = []
    for seed in range(SEEDS_OF_A_MUTANT):
        world = World(seed, REQUESTS_PER_WORLD, faults=mutant.faults, emphasis=mutant.emphasis, mutated=mutant.in_place)
        found = world.run().invariants.broken
        if found:
            break
    no_logged_failures.clear()
    assert any(re.search(mutant.broken, text) for text in found), found
