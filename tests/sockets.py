"""
Listening sockets passed to a process as systemd passes them: descriptors from 3 on, and three variables that say so.

The sockets stay open here, so that what connects while no process runs waits in their queue.
"""

import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BACKLOG = 4096

# LISTEN_PID is the pid of the process that is to have them, which is known only after the fork.
_EXEC = """
import fcntl, os, sys
given = [int(text) for text in sys.argv[1].split(",")]
copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 100) for descriptor in given]
for descriptor in given:
    os.set_inheritable(descriptor, False)
for place, descriptor in enumerate(copies):
    os.dup2(descriptor, 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def listening_tcp(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A socket that listens on TCP."""
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((host, port))
    opened.listen(BACKLOG)
    return opened


def listening_unix(path: Path) -> socket.socket:
    """A UNIX socket that listens."""
    opened = socket.socket(socket.AF_UNIX)
    opened.bind(str(path))
    opened.listen(BACKLOG)
    return opened


class Passed:
    """Sockets for a process to inherit, by their names in order; more than one may have the same name."""

    def __init__(self, *sockets: tuple[str, socket.socket]) -> None:
        self.sockets = [opened for _, opened in sockets]
        self.variables = {
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in sockets),
        }

    def spawned(self, command: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
        """What subprocess.Popen is called with, so that `command` (an absolute path first) has the sockets."""
        numbers = [opened.fileno() for opened in self.sockets]
        return {
            "args": [sys.executable, "-I", "-S", "-c", _EXEC, ",".join(map(str, numbers)), *command],
            "env": {**environ, **self.variables},
            "pass_fds": numbers,
        }

    def close(self) -> None:
        """Close them here: where no process holds them, nothing listens any more."""
        for opened in self.sockets:
            opened.close()
