"""
A Redis for sessions' tests: what the server holds, and a link to it whose commands run and answer when the test says.

The one script it knows does what lua/session_snapshots.lua does; a wire test holds the two against each other.
"""

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from gatewayd.errors import Unavailable
from gatewayd.stores.script import Script


class Store:
    """What the server holds: strings by key, and the lifetimes they were given."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.lifetimes_ms: dict[str, int] = {}
        self.seen: list[str] = []

    def run(self, *arguments: Any) -> Any:
        """One command, now."""
        self.seen.append(str(arguments[0]))
        match arguments:
            case ("MGET", *keys):
                return [self.values.get(key) for key in keys]
            case ("SET", key, value, "NX", "PX", lifetime_ms):
                if key in self.values:
                    return None
                self.values[key] = str(value).encode()
                self.lifetimes_ms[key] = lifetime_ms
                return b"OK"
            case ("session_snapshots", keys, texts):
                pairs = zip(keys[::2], keys[1::2], texts[::2], texts[1::2], strict=True)
                return [self._snapshot(*pair) for pair in pairs]
        raise AssertionError(arguments)

    def _snapshot(self, key: str, mark: str, snapshot: bytes, status: str) -> bytes:
        held = self.values.get(mark) or self._revoked_under(key) or (snapshot if status == "revoked" else b"")
        if held:
            self.values[mark] = held
        self.values[key] = held or snapshot
        return held

    def _revoked_under(self, key: str) -> bytes:
        held = self.values.get(key, b"")
        try:
            return held if json.loads(held)["status"] == "revoked" else b""
        except (ValueError, TypeError, KeyError):
            return b""


class FakeLink:
    """
    A link to a store. While `held` is set, commands wait: execute() runs one at the server, answer() and lose() let its
    caller know, or not. `down`: every call fails.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.down: Exception | None = None
        self.held = False
        self.waiting: list[tuple[Deferred[Any], list[Any], tuple[Any, ...]]] = []

    def call(self, *arguments: bytes | str | int) -> Deferred[Any]:
        return self._send(arguments)

    def run(self, script: Script, keys: Sequence[bytes | str], args: Sequence[bytes | str | int], /) -> Deferred[Any]:
        return self._send((script.name, keys, args))

    def _send(self, command: tuple[Any, ...]) -> Deferred[Any]:
        if self.held:
            waiting: Deferred[Any] = Deferred()
            self.waiting.append((waiting, [], command))
            return waiting
        if self.down is not None:
            return fail(self.down)
        return succeed(self.store.run(*command))

    def execute(self, number: int) -> None:
        """The server runs a waiting command."""
        _, reply, command = self.waiting[number]
        if not reply:
            reply.append(self.store.run(*command))

    def answer(self, number: int) -> None:
        """A waiting command's reply arrives."""
        self.execute(number)
        waiting, reply, _ = self.waiting.pop(number)
        waiting.callback(reply[0])

    def lose(self, number: int, error: Exception | None = None) -> None:
        """A waiting command fails, run or not."""
        waiting, _, _ = self.waiting.pop(number)
        waiting.errback(Failure(error or Unavailable("no reply")))
