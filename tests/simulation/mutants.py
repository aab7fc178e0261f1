"""
The product with one rule broken, to see that the simulation notices.

A mutant is a line of the product's source and what stands in its place. The changed module is made beside the real
one, and its class stands in the real one's place while a process is built. A line that is not there any more is an
error: the mutant has to be looked at again.
"""

import importlib
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Mutant:
    """
    One broken rule: in the module and class `where`, `old` is the text that `new` replaces. `broken` is a pattern of
    the violation that must be found, in worlds with these `faults` and this `emphasis`.
    """

    name: str
    where: str
    old: str
    new: str
    broken: str
    faults: tuple[str, ...] = ("crash", "cut", "kill")
    emphasis: Mapping[str, float] = field(default_factory=dict)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The changed class in every module that has the real one."""
        module, _, name = self.where.rpartition(".")
        known = getattr(importlib.import_module(module), name)
        holders = [
            holder.__dict__
            for path, holder in list(sys.modules.items())
            if path.startswith("gatewayd") and holder.__dict__.get(name) is known
        ]
        changed = self._changed(module)[name]
        for holder in holders:
            holder[name] = changed
        try:
            yield
        finally:
            for holder in holders:
                holder[name] = known

    def _changed(self, module: str) -> dict[str, Any]:
        """The names of the changed module."""
        made = _made.get(self.name)
        if made is None:
            source = inspect.getsource(importlib.import_module(module))
            if source.count(self.old) != 1:
                raise LookupError(f"{self.name}: {module} has it {source.count(self.old)} times: {self.old}")
            made = _made[self.name] = types.ModuleType(module)
            exec(compile(source.replace(self.old, self.new), self.where, "exec"), made.__dict__)
        return made.__dict__


_made: dict[str, types.ModuleType] = {}

PIPELINE: Final = "gatewayd.ingress.pipeline.Pipeline"
ADMISSION: Final = "gatewayd.stores.memory.MemoryAdmission"
KEEPER: Final = "gatewayd.bus.keeper.StreamKeeper"
LANE: Final = "gatewayd.bus.lane.Lane"

MUTANTS: Final = (
    Mutant(
        "a key's normalised event does not wait for raw's acknowledgement",
        PIPELINE,
        "together = claim.kind is BODY",
        "together = True",
        "normalised of another body",
        ("crash", "cut"),
        {"rivals": 30.0},
    ),
    Mutant(
        "what JetStream calls a duplicate is taken for the same body",
        PIPELINE,
        "return Accepted() if verdict(claim, body) is Verdict.SAME else Taken(body)",
        "return Accepted()",
        "accepted and not stored|normalised of another body",
    ),
    Mutant(
        "a duplicate under a key is not completed",
        PIPELINE,
        "if isinstance(outcome, Accepted) and not together:",
        "if isinstance(outcome, Accepted) and not together and not duplicate:",
        "accepted without its normalised event",
    ),
    Mutant(
        "a publication without an answer counts as stored",
        PIPELINE,
        "outcome = Failed(self._unstored(published))\n            elif",
        "outcome = Accepted()\n            elif",
        "accepted and not stored|accepted without its normalised event|new for the second time",
    ),
    Mutant(
        "events are known by their nonce",
        "gatewayd.ingress.events.Events",
        "identity = claim.identity.hex()",
        "identity = claim.nonce.hex()",
        "an event that nobody sent",
    ),
    Mutant(
        "a failed claim is not released",
        ADMISSION,
        "        flight = self._flights.pop(claim.identity)\n",
        "        if isinstance(outcome, Failed):\n            return\n"
        "        flight = self._flights.pop(claim.identity)\n",
        "not answered|never told|claims left",
        ("freeze", "slow"),
    ),
    Mutant(
        "a nonce counts as used before its request is stored",
        ADMISSION,
        "        self._release_nonce(claim)\n        now = self._now()\n",
        "        self._release_nonce(claim)\n        now = self._now()\n"
        "        self._nonces.add(claim.nonce, claim.fingerprint, now)\n",
        "said to be stored, and is not",
        ("freeze", "slow", "stall"),
    ),
    Mutant(
        "an accepted nonce is not remembered",
        ADMISSION,
        "        self._nonces.add(claim.nonce, claim.fingerprint, now)\n        if claim.key is not None:",
        "        if claim.key is not None:",
        "under a nonce that was used",
    ),
    Mutant(
        "the body that came too late for its key counts as its holder's",
        ADMISSION,
        "fingerprint(claim.kind, claim.identity, outcome.body), now)",
        "claim.fingerprint, now)\n            self._identities.add(claim.identity, claim.fingerprint, now)",
        "accepted and not stored|a conflict with nothing",
        ("restart",),
        {"rivals": 10.0},
    ),
    Mutant(
        "nonces are not read back at the start",
        KEEPER,
        "self._fill(headers)",
        "pass",
        "under a nonce that was used",
    ),
    Mutant(
        "halves are not repaired",
        KEEPER,
        "    def _begin_repair(self) -> None:\n",
        "    def _begin_repair(self) -> None:\n        return\n",
        "half an event is left",
    ),
    Mutant(
        "nothing looks for overdue publications",
        LANE,
        "if publication.deadline > now:",
        "if True:",
        "answered after",
        ("freeze", "stall"),
    ),
    Mutant(
        "a publication's messages are written in any order",
        LANE,
        'return b"".join(frames)',
        'return b"".join(reversed(frames))',
        "normalised before its raw|out of order",
    ),
)
