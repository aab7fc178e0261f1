"""
What is published and what became of it: values that the pipeline and the bus exchange. Pure.

Decides nothing; says what each outcome means.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import msgspec

from gatewayd.times import Wall


class Message(msgspec.Struct, frozen=True, gc=False):
    """
    One message to store. `headers` is the encoded block of header lines, each ending in CR LF, `Nats-Msg-Id` among
    them, without the leading version line and the closing empty line. Nothing in it comes from a client unchecked.
    """

    subject: bytes
    headers: bytes
    body: bytes


class Ack(msgspec.Struct, frozen=True, gc=False):
    """JetStream's acknowledgement: the sequence of the stored message, and whether its id was known already."""

    sequence: int
    duplicate: bool


class Published(msgspec.Struct, frozen=True, gc=False):
    """Every message of one publication is in the stream; one Ack for each, in the order given."""

    acks: tuple[Ack, ...]


class Cause(Enum):
    """Why a publication is not known to be stored."""

    DISCONNECTED = "disconnected"  # refused at once, or the connection went while it was under way
    TIMEOUT = "timeout"  # no acknowledgement within the deadline: unknown
    BUFFER = "buffer"  # refused at once: the bound of unacknowledged publications is reached; not written
    STREAM_FULL = "stream_full"  # JetStream error 10077 and its kin: not stored
    REJECTED = "rejected"  # any other error of JetStream, or nobody listens on the subject


@dataclass(frozen=True, slots=True)
class Unpublished:
    """Not known to be stored. `error` is the server's own text where there is one, for the log."""

    cause: Cause
    error: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """One message read back from the stream. Header names as stored; of a repeated header the first value."""

    sequence: int
    subject: str
    headers: Mapping[str, str]
    body: bytes
    time: Wall


class BusState(Enum):
    """What the bus's own publishes and connection say of it; the words are those of /healthz."""

    CONNECTED = "connected"
    DEGRADED = "degraded"  # connected, but publishes lately were slow or failed
    DISCONNECTED = "disconnected"  # no connection, or no publish has succeeded for so long that none is tried
