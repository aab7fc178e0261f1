"""
What comes of a request to a service that speaks HTTP: values, and the seam to the client.

Decides nothing.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

from msgspec import Struct
from twisted.internet.defer import Deferred


class Cause(Enum):
    """Why there is no answer."""

    DOWN = "down"  # there was no connection
    BROKEN = "broken"  # there was one, and no answer that can be used came over it
    TIMED_OUT = "timed out"


class Unanswered(Struct, frozen=True):
    """There is no answer; `text` says why, for the log."""

    cause: Cause
    text: str


class Received(Struct, frozen=True):
    """An answer: of its headers, in lower case, those that matter here, the first value of each."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Posting(Protocol):
    """What routes and the public authentication need of commands.upstream, which takes 0.1 s to import."""

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes, deadline_s: float
    ) -> Deferred[Received | Unanswered]:
        """POST once; see Upstream."""
