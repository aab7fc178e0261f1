"""
Sockets that a process is started with, as systemd passes them (sd_listen_fds(3)). Pure.

Decides from LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID which descriptors there are and which of them an address means.
Never touches a descriptor: endpoint does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gatewayd.http.addresses import MAX_INHERITED, Address

FIRST: Final = 3
"""The first passed descriptor; the others follow it."""

VARIABLES: Final = ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID")
_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class Inherited:
    """`names[i]` is the name of descriptor FIRST + i. `problem` says why there are none, "" where there are some."""

    names: tuple[str, ...] = ()
    problem: str = ""

    def descriptors(self, address: Address) -> tuple[int, ...]:
        """
        Those of the address's name or index, whatever kind of socket they are: one unit names all of its sockets alike.

        Raises ValueError with a text that says what there is instead.
        """
        found = [
            FIRST + place
            for place, name in enumerate(self.names)
            if (place == address.index if address.name == "" else name == address.name)
        ]
        if not found:
            there = f"there is {', '.join(map(repr, self.names))[:_SHOWN]}" if self.names else self.problem
            raise ValueError(f"{address}: no such socket was passed to this process: {there}")
        return tuple(found)


def read_inherited(environ: Mapping[str, str], pid: int) -> Inherited:
    """What was passed to the process `pid`."""
    count, owner = environ.get("LISTEN_FDS", ""), environ.get("LISTEN_PID", "")
    if not count:
        return Inherited(problem="LISTEN_FDS is not set, so that no socket unit has started it")
    if owner != str(pid):
        return Inherited(problem=f"LISTEN_PID is {owner[:_SHOWN]!r} and this process is {pid}: they are another one's")
    if not (count.isascii() and count.isdigit() and len(count) <= 4 and 0 < int(count) <= MAX_INHERITED):
        return Inherited(problem=f"LISTEN_FDS is {count[:_SHOWN]!r}, and not a number from 1 to {MAX_INHERITED}")
    # Without names systemd's own reader calls every socket so.
    names = tuple(environ["LISTEN_FDNAMES"].split(":")) if "LISTEN_FDNAMES" in environ else ("unknown",) * int(count)
    if len(names) != int(count):
        return Inherited(problem=f"LISTEN_FDS is {count} and LISTEN_FDNAMES has {len(names)} names")
    return Inherited(names)
