"""
`python -m tests.fuzz [SECONDS [TARGET...]]`: fuzz for so long each, and keep what behaves like nothing that was kept.

A promise that breaks ends it with the input, which belongs into the target's file in tests/fuzz/corpus once it holds.
"""

import json
import sys
from random import SystemRandom

from tests.fuzz.mutation import Fuzzer
from tests.fuzz.targets import TARGETS
from tests.fuzz.test_fuzz import CORPUS, kept

LARGEST_BYTES = 400
MOST = 150


def keep(name: str, seconds: float) -> str:
    """Fuzz one target and write its file anew; what was kept before stays."""
    fuzzed = TARGETS[name]
    before = kept(name)
    fuzzer = Fuzzer(fuzzed.target, [*before, *fuzzed.seeds], fuzzed.tokens, SystemRandom())
    fuzzer.start()
    seeds = len(fuzzer.pool)
    fuzzer.run(seconds=seconds)
    found = [data for data in fuzzer.pool[seeds:] if len(data) <= LARGEST_BYTES]
    texts = [data.decode("latin-1") for data in dict.fromkeys([*before, *sorted(found, key=len)])][:MOST]
    (CORPUS / f"{name}.json").write_text(json.dumps(texts, indent=0) + "\n", "utf-8")
    return f"{name}: {fuzzer.runs} tries, {len(fuzzer.known)} outcomes, {len(texts)} kept"


if __name__ == "__main__":
    for name in sys.argv[2:] or TARGETS:
        print(keep(name, float((sys.argv[1:] or ["10"])[0])), flush=True)
