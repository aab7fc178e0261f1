"""
`python -m tests.simulation --seed 7 --trace` lives through one world again; `--worlds 1000` through many.

Exits with 1 when something was broken.
"""

import argparse
import os
import sys

from tests.simulation.batch import REQUESTS_PER_WORLD, run
from tests.simulation.world import World


def main() -> int:
    """Read the arguments and live."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, default=1, help="the world, or the first of them")
    parser.add_argument("--worlds", type=int, default=1, help="how many")
    parser.add_argument("--requests", type=int, default=REQUESTS_PER_WORLD, help="of one world")
    parser.add_argument("--trace", action="store_true", help="print everything that happens in it")
    given = parser.parse_args()
    if given.worlds > 1:
        seeds = range(given.seed, given.seed + given.worlds)
        summary = run(seeds, lambda _: False, processes=os.cpu_count() or 1, progress_s=10.0)
        print("\n".join(summary.lines()))
        return 1 if summary.broken else 0
    world = World(given.seed, given.requests, show=print if given.trace else None).run()
    for name, count in sorted(world.seen.items()):
        print(f"{count:8} {name}")
    print(f"trace {world.digest}")
    for text in world.invariants.broken:
        print(f"BROKEN {text}")
    return 1 if world.invariants.broken else 0


if __name__ == "__main__":
    sys.exit(main())
