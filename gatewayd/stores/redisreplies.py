"""
What a Redis server's errors mean. Pure.

Decides which errors say "not now" (the caller may go on without the store) and which say that a command of ours was
wrong, and the few words under which they are counted. Never talks to a server and never logs.
"""

from typing import Final

from gatewayd.errors import Unavailable

_NOT_NOW: Final = frozenset(
    {
        "BUSY",  # a script has been running for longer than its limit
        "CLUSTERDOWN",
        "LOADING",  # the data set is being read after a start
        "MASTERDOWN",
        "MISCONF",  # snapshots fail, and the server takes no writes meanwhile
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "WRONGPASS",
    }
)

_DROPPING: Final = frozenset({"NOAUTH", "READONLY", "WRONGPASS"})

KINDS: Final = (
    *(code.lower() for code in sorted(_NOT_NOW)),
    "connect",  # an attempt to connect failed
    "lost",  # a connection was lost; once for the connection
    "refused",  # the server refused a command that is ours to correct
    "timeout",  # no reply within the deadline
)
"""Every word that an error is counted under."""


class RedisRefused(Exception):
    """
    The server refused a command for what it is: a wrong type, an unknown command, a script's fault. `code` is the first
    word of its reply (WRONGTYPE, ERR, UNBLOCKED), `text` the whole. A bug or foreign data, never an outage.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def code_of(text: str) -> str:
    """The code of an error reply: its first word."""
    return text.partition(" ")[0]


def judge(text: str) -> tuple[str, Unavailable | RedisRefused]:
    """An error reply as the word it is counted under and the failure that callers get."""
    code = code_of(text)
    if code in _NOT_NOW:
        return code.lower(), Unavailable(f"Redis answered {text[:200]}")
    return "refused", RedisRefused(code, text[:500])


def ends_connection(text: str) -> bool:
    """
    True when a new connection may fare better: the password was changed (only a new one logs in), or the server became
    a replica (the address may lead to another one).
    """
    return code_of(text) in _DROPPING
