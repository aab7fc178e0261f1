"""
Every reader of somebody else's bytes, fuzzed: so many tries in `make test`, a minute each with GATEWAYD_TEST_FULL=1.

What a long run found out of the ordinary is kept in tests/fuzz/corpus and tried first in every run.
"""

import json
import os
from pathlib import Path
from random import Random, SystemRandom

import pytest

from tests.fuzz.mutation import Broken, Fuzzer
from tests.fuzz.targets import TARGETS

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
FULL_S = 60.0
CORPUS = Path(__file__).with_name("corpus")


def kept(name: str) -> list[bytes]:
    """What was kept for a target."""
    texts: list[str] = json.loads((CORPUS / f"{name}.json").read_text("utf-8"))
    return [text.encode("latin-1") for text in texts]


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    """Whatever it is given, the target keeps its promise."""
    fuzzed = TARGETS[name]
    seed = SystemRandom().getrandbits(32) if FULL else 20240115
    fuzzer = Fuzzer(fuzzed.target, [*kept(name), *fuzzed.seeds], fuzzed.tokens, Random(seed))
    fuzzer.start()
    before = fuzzer.runs
    fuzzer.run(seconds=FULL_S) if FULL else fuzzer.run(runs=before + fuzzed.runs)
    print(f"{name}: {fuzzer.runs} tries, {len(fuzzer.known)} outcomes, seed {seed}")
    assert fuzzer.runs >= before + fuzzed.runs
    assert len(fuzzer.known) > 3


def test_it_finds() -> None:
    """A promise that is broken by one input in millions is found, and the input made small."""

    def target(data: bytes) -> int:
        depth = 0
        for at, byte in enumerate(b"#{x"):
            depth += data[at : at + 1] == bytes([byte])
            if depth <= at:
                return depth
        raise ValueError("found")

    fuzzer = Fuzzer(target, [b"a good input"], [b"{", b"#"], Random(1))
    fuzzer.start()
    with pytest.raises(Broken, match=r"ValueError: found on b'#\{x'"):
        fuzzer.run(runs=200_000)
