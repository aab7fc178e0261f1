"""
Worlds that once found something, each with what it found; they are lived through again in every run of the tests.

A seed makes the same world only while the generator is asked for the same numbers in the same order: after a change of
the simulation a kept seed is a world like any other, and the bug's own test is what keeps it away.
"""

from typing import Final

KEPT: Final[dict[int, str]] = {
    58: "a subscription that was given up left a task whose failure was reported, and a dead future in nats-py",
    63: "the same, at the end of a process",
}
"""What each seed found."""
