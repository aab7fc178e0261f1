"""
How much CPU one accepted webhook costs, and what comes with it. `python -m tests.bench [--quick]`; with `--overload`,
what becomes of more webhooks than can be served.

gatewayd on one processor; nats-server (file storage) and the load on the others. Interleaved rounds, medians; every
run is checked: two stored messages for each 202, and nothing but 202. The access log is on, into a file. Not a test:
figures depend on the machine, only their ratios travel.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tests.bench import exposition, overload
from tests.bench.rig import Bench
from tests.streams import run


async def _fill(url: str, pairs: int) -> None:
    """Put pairs into the stream that look as if gatewayd had accepted them a moment ago."""
    import asyncio
    import secrets

    import nats

    client = await nats.connect(url)
    stream = client.jetstream()
    now_ms = int(time.time() * 1000)
    for start in range(0, pairs, 500):
        published = []
        for _ in range(min(500, pairs - start)):
            identity = secrets.token_hex(16)
            facts = f"1 body {secrets.token_hex(16)} {secrets.token_hex(16)} v1 {now_ms}"
            for subject, part in (("signals.raw", "raw"), ("signals.normalized", "norm")):
                headers = {"Gw-Facts": facts, "Nats-Msg-Id": f"gw:{identity}:{part}", "Source": "tradingview"}
                published.append(stream.publish(subject, b"{}" * 120, headers=headers))
        await asyncio.gather(*published)
    await client.close()


def measure_start(root: Path, pairs: int) -> dict[str, float]:
    """Seconds from the start to ready on a stream with so many recent pairs, and the memory then."""
    bench = Bench(root, {})
    try:
        bench.gateway.start(wait="/readyz")
        bench.gateway.stop()
        run(_fill(bench.server.url, pairs))
        took = bench.gateway.start(wait="/readyz", timeout_s=60)
        return {"pairs": pairs, "ready_s": took, "rss_mib": bench.gateway.rss_mib()}
    finally:
        bench.close()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--overload", action="store_true", help="offer up to three times the peak instead")
    options = parser.parse_args()
    rounds, seconds = (1, 3.0) if options.quick else (options.rounds, options.seconds)
    if options.overload:
        overload.main(seconds)
        return
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        bench = Bench(root / "load", {})
        try:
            bench.gateway.start(wait="/readyz")
            at_rest = bench.gateway.rss_mib()
            bench.round(64, 1.0)  # warm
            results = [bench.round(connections, seconds) for _ in range(rounds) for connections in (64, 1)]
            log_lines = bench.gateway.log_text().count("Incoming request")
        finally:
            bench.close()
        starts = [measure_start(root / f"start{pairs}", pairs) for pairs in ((0,) if options.quick else (0, 30_000))]
    columns = {
        "accepted/s": ("per_second", 0),
        "per CPU s": ("per_cpu_second", 0),
        "CPU us": ("cpu_us", 1),
        "p50 ms": ("p50_ms", 2),
        "p99 ms": ("p99_ms", 2),
        "RSS MiB": ("rss_mib", 1),
    }
    print("connections" + "".join(f"{title:>12}" for title in columns))
    for connections in (64, 1):
        rows = [row for row in results if row["connections"] == connections]
        middles = ((statistics.median(row[name] for row in rows), digits) for name, digits in columns.values())
        print(f"{connections:>11}" + "".join(f"{middle:>12.{digits}f}" for middle, digits in middles))
    print(f"memory at rest {at_rest:.1f} MiB; {log_lines} access lines written")
    for start in starts:
        print(f"ready after {start['ready_s']:.2f} s on {start['pairs']} recent pairs ({start['rss_mib']:.1f} MiB)")
    exposition.main()


if __name__ == "__main__":
    main()
