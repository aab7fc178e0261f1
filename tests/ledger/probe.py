"""
Asks /healthz again and again from a process of its own, and writes down how long each answer took.

`python -m tests.ledger.probe PORT INTERVAL_S FILE` appends one JSON line for each question, until it is ended. Never
judges: faults.py does.
"""

import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

INTERVAL_S: Final = 0.05
TIMEOUT_S: Final = 2.0


class Sample(msgspec.Struct, frozen=True):
    """One question: wall time, milliseconds to the answer, its status (0: none) and what it says of NATS."""

    at: float
    ms: float
    status: int
    nats: str

    @property
    def ended_at(self) -> float:
        """Wall time of the answer."""
        return self.at + self.ms / 1000


def _ask(connection: http.client.HTTPConnection) -> tuple[int, str]:
    """Status and NATS's state; (0, "") when there was no answer."""
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        return answer.status, str(json.loads(answer.read()).get("nats", ""))
    except (OSError, http.client.HTTPException, ValueError):
        connection.close()
        return 0, ""


def main(port: int, interval_s: float, path: Path) -> None:
    """See the module."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    encode = msgspec.json.Encoder().encode
    with path.open("ab", buffering=0) as file:
        while True:
            at, began = time.time(), time.perf_counter()
            status, nats = _ask(connection)
            ms = (time.perf_counter() - began) * 1000
            file.write(encode(Sample(at, round(ms, 2), status, nats)) + b"\n")
            time.sleep(max(0.005, interval_s - ms / 1000))


class Probe:
    """The probe's process; samples() are there once it was stopped."""

    def __init__(self, port: int, path: Path) -> None:
        self._path = path
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ledger.probe", str(port), str(INTERVAL_S), str(path)],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)

    def samples(self) -> list[Sample]:
        """Everything that was asked."""
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        return [msgspec.json.decode(line, type=Sample) for line in lines if line.endswith(b"\n")]


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
