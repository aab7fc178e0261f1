"""
What remembering costs: memory for each key, and the time of one admission, against how many keys are live.

`python -m tests.bench.keys ENTRIES` prints one JSON object for a store with that bound which is full.
"""

import gc
import hashlib
import json
import os
import sys
import time
from typing import Any

from gatewayd.ingress.admission import BODY, Accepted, Claim, Fresh, Limit
from gatewayd.stores.memory import MemoryAdmission
from gatewayd.times import Monotonic
from tests.bench.rig import rss_mib

MEASURED = 20_000
LIMIT = Limit(1e9, 1e9)


def make_claim(number: int) -> Claim:
    """A body claim as the pipeline makes it: one object for identity, body and fingerprint."""
    body = hashlib.sha256(b"%d" % number).digest()[:16]
    nonce = hashlib.sha256(b"n%d" % number).digest()[:16]
    return Claim("tradingview", BODY, body, body, body, nonce, None, LIMIT)


def admit(store: MemoryAdmission, first: int, count: int) -> None:
    """So many new claims, each accepted."""
    admitted: list[Any] = []
    for number in range(first, first + count):
        claim = make_claim(number)
        admitted.append(store.admit(claim))
        store.settle(claim, Accepted())
    assert all(isinstance(found, Fresh) for found in admitted)


def main() -> None:
    """See the module."""
    entries = int(sys.argv[1])
    store = MemoryAdmission(
        lambda: Monotonic(time.monotonic()),
        nonce_lifetime_s=1e6,
        identity_lifetime_s=1e6,
        entries_bound=max(entries, 1000) + 3,
    )
    admit(store, -1000, 400)
    store.forget()
    gc.collect()
    before = rss_mib(os.getpid())
    for first in range(0, entries // 2, 1000):
        admit(store, first, min(1000, entries // 2 - first))
    gc.collect()
    live = store.entries()
    grown = rss_mib(os.getpid()) - before
    spent = time.process_time()
    for number in range(MEASURED):
        make_claim(number + 10**9)
    making = time.process_time() - spent
    spent = time.process_time()
    admit(store, 10**8, MEASURED)
    admission_us = (time.process_time() - spent - making) / MEASURED * 1e6
    print(json.dumps({"live": live, "bytes_a_key": grown * 2**20 / max(1, live), "admission_us": admission_us}))


if __name__ == "__main__":
    main()
