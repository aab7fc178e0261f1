"""
What one body costs to read, in CPU: the usual ones and those that are meant to hurt. `python -m tests.bench.bodies`.

The least of five for each; the hostile ones have bounds to be held against: 5 ms for depth, 50 ms for a valid MiB,
100 ms for the error of one.
"""

import time

from gatewayd.ingress.normalise import read_generic, read_tradingview
from gatewayd.ingress.strict import read
from tests.clients import generic_body, tradingview_body

MIB = 2**20
MEMBER = b'{"ticker":"EURUSD","price":1.0945,"note":"\\u20ac and more of it"},'
LARGE = b"[" + MEMBER * (MIB // len(MEMBER))
USUAL = {
    "TradingView": (read_tradingview, tradingview_body(1_700_000_000)),
    "generic": (read_generic, generic_body(1_700_000_000)),
    "TradingView, exact reader": (read_tradingview, tradingview_body(1_700_000_000, other="an unknown field")),
}
HOSTILE = {
    "depth 100,000": b"[" * 100_000,
    "objects 100,000 deep": b'{"a":' * 100_000,
    "a MiB of empty arrays": b"[" + b"[]," * (MIB // 3) + b"[]]",
    "10,000 keys": b"{" + b",".join(b'"k%d":%d' % (i, i) for i in range(10_000)) + b"}",
    "a MiB of string": b'"' + b"a" * MIB + b'"',
    "a MiB, broken at its end": LARGE + b"x]",
    "a MiB, NaN at its end": LARGE + b"NaN]",
    "a MiB, a doubled key at its end": LARGE + b'{"a":1,"a":2}]',
}


def least(call: object, body: bytes, times: int) -> float:
    """CPU seconds of one call, the least of five series."""
    assert callable(call)
    spent = []
    for _ in range(5):
        before = time.process_time()
        for _ in range(times):
            call(body)
        spent.append((time.process_time() - before) / times)
    return min(spent)


def main() -> None:
    """Print both tables."""
    for name, (reader, body) in USUAL.items():
        print(f"{name:<34}{least(reader, body, 20_000) * 1e6:>8.2f} us")
    for name, body in HOSTILE.items():
        print(f"{name:<34}{least(read, body, 1) * 1e3:>8.2f} ms")


if __name__ == "__main__":
    main()
