"""
What stands between gatewayd's spawnProcess and nats-server: a small program that prepares and then becomes it.

Takes a session of its own, asks the kernel to kill it when gatewayd dies, waits for the lock on the store, writes the
configuration that it reads from stdin, and executes the server, which inherits session, death signal and lock. Run by
path with `python -I -S`; imports the standard library only. It never outlives gatewayd and never logs: its stderr is
read by gatewayd.
"""

import ctypes
import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

NOTE: Final = "[GWD] "
"""Lines of this program begin so; all others are nats-server's."""

LOCKED: Final = 75
"""Exit status when the store stayed locked (EX_TEMPFAIL)."""

CANNOT: Final = 78
"""Exit status when the store cannot be used or the server not be executed (EX_CONFIG)."""

_PR_SET_PDEATHSIG: Final = 1
_LOOK_EVERY_S: Final = 0.02
_SAY_EVERY_S: Final = 10.0


def main(argv: list[str]) -> int:
    """`argv`: gatewayd's pid, the seconds to wait for the lock, the store directory, the server's path."""
    parent, patience_s, store, server = int(argv[0]), float(argv[1]), Path(argv[2]), argv[3]
    os.setsid()
    # SIGKILL: also a hung server must go, and what it acknowledged is on the disk already.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        return CANNOT
    configuration = sys.stdin.buffer.read()
    try:
        lock = os.open(store / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if not _lock(lock, patience_s, store):
            return LOCKED
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        os.set_inheritable(lock, True)
        path = store / "nats.conf"
        _write(path, configuration)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and what is ignored stays so across exec
        os.execv(server, [server, "-c", str(path)])  # noqa: S606  (becoming the server is the point)
    except OSError as error:
        _say(f"{error.strerror}: {error.filename or server}")
        return CANNOT


def _lock(lock: int, patience_s: float, store: Path) -> bool:
    """Take the lock; two servers on one store would both acknowledge and lose data."""
    began = time.monotonic()
    say_at = began
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        now = time.monotonic()
        if now - began >= patience_s:
            _say(f"the store {store} is still in use by process {holder}; another gatewayd runs with it")
            return False
        if now >= say_at:
            say_at = now + _SAY_EVERY_S
            _say(f"waiting for process {holder}, which uses the store {store}")
        time.sleep(_LOOK_EVERY_S)


def _write(path: Path, text: bytes) -> None:
    """Write the file anew with mode 0600: it holds the password."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
    fresh.replace(path)


def _say(text: str) -> None:
    sys.stderr.write(f"{NOTE}{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
