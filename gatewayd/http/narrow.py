"""
A connection that is written to for hours: little is kept for a peer that does not read, and a dead one is noticed.

Decides which knobs of the three kinds of transport say so. Never decides what becomes of a peer that reads too slowly:
its protocol is paused, as by any transport.

Left alone, 3.9 MB go out to a loopback client that has stopped reading before its transport pauses the producer; with
32 KiB here and in the kernel it is 105 KiB (measured).
"""

import socket
from contextlib import suppress
from typing import Any, Final

from gatewayd.http.loopport import LoopTransport
from gatewayd.http.tls import Secured

UNSENT_BYTES: Final = 32768
SILENCE_S: Final = 30.0


def narrow(transport: Any, unsent_bytes: int = UNSENT_BYTES, silence_s: float = SILENCE_S) -> None:
    """
    Keep at most `unsent_bytes` here, and so much in the kernel, for an accepted connection.

    The kernel ends it when nothing that was sent is acknowledged, or no room is made, for `silence_s` (RFC 5482): a
    peer that is gone without a word would be noticed after a quarter of an hour.
    """
    opened: Any
    if isinstance(transport, Secured):
        transport = transport.below
    if isinstance(transport, LoopTransport):
        opened = transport.bound_unsent(unsent_bytes)
    else:
        # Twisted's; in memory as well.
        transport.bufferSize = unsent_bytes
        opened = transport.getHandle()
    # The kernel doubles what it is told (socket(7)). A socket that is closed already takes no options, and a UNIX one
    # knows nothing of TCP.
    with suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, unsent_bytes)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_s * 1000))
