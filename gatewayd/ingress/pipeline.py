"""
One webhook, from complete request to answer. Pure: it awaits what it is handed and never makes a Deferred.

Decides the order of the checks and what each outcome is answered with; each check itself is a plain call into the
module that decides it. Never writes a response's bytes, never reads a clock, never touches a driver.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from gatewayd.bus.publication import Cause, Message, Published, Unpublished
from gatewayd.errors import Refused
from gatewayd.http.message import Request, Response, accepted
from gatewayd.ingress.addresses import contains
from gatewayd.ingress.admission import (
    ADMITTED,
    BODY,
    KEY,
    Accepted,
    Claim,
    Conflict,
    Failed,
    Fresh,
    Limited,
    Outcome,
    Replayed,
    Taken,
    Verdict,
    accepted_corr_id,
    digest,
    digest_behind,
    fingerprint,
    refuse_limited,
    verdict,
)
from gatewayd.ingress.events import (
    FACTS_HEADER,
    DeadLetter,
    Envelope,
    Events,
    parse_facts,
    raw_id,
    refused_corr_id,
    refused_digest,
)
from gatewayd.ingress.headers import Stamp, read_headers, refuse_replay, refuse_signature
from gatewayd.ingress.normalise import Generic, Invalid, Malformed, Signal
from gatewayd.ingress.signature import Authenticated, Signed, verify
from gatewayd.ingress.sources import UNKNOWN_SOURCE, Rules, Source
from gatewayd.interfaces import IAdmission, IEventBus
from gatewayd.times import format_wall

ANSWER_WITHIN_S: Final = 2.3
"""Seconds from a complete request to its answer at the most; TradingView gives up after 3 s."""

_MAX_SOURCE_SHOWN: Final = 64
_UNFINISHED: Final = Failed(Refused("GW-016"))  # what twins are told of a request that never came to its end

T = TypeVar("T")


class Within(Protocol):
    """Bounds an await."""

    def __call__(self, waiting: Awaitable[T], seconds: float) -> Awaitable[T | Unpublished]:
        """What `waiting` comes to, or Unpublished(TIMEOUT) when the seconds are over; `waiting` goes on then."""


class Counters(Protocol):
    """What the pipeline counts."""

    def authenticated(self, source: str, scheme: str, key: int) -> None:
        """A signature matched: which of the source's secrets is still in use."""

    def duplicate(self, source: str) -> None:
        """A request was answered 202 for an event that was stored before."""

    def dead_letter(self, code: str) -> None:
        """A dead letter was stored."""

    def dead_letter_lost(self) -> None:
        """A dead letter could not be stored; its sender was refused all the same."""


class _Accepting(msgspec.Struct, frozen=True, gc=False):
    """An authenticated request on its way: what every later step needs."""

    request: Request
    stamp: Stamp
    auth: Authenticated


class Pipeline:
    """
    The steps of one webhook. `rules` gives the rules in force, `refuse` makes the answer of a refusal, `within` bounds
    an await in seconds (it then gives Unpublished), `shed` says that a consumer is too far behind, `report` logs the
    exception being handled.
    """

    def __init__(
        self,
        *,
        rules: Callable[[], Rules],
        admission: IAdmission,
        bus: IEventBus,
        events: Events,
        refuse: Callable[..., Response],
        within: Within,
        elapsed: Callable[[Request], float],
        shed: Callable[[], bool],
        report: Callable[[str], None],
        counters: Counters,
    ) -> None:
        self._rules = rules
        self._admission = admission
        self._bus = bus
        self._events = events
        self._refuse = refuse
        self._within = within
        self._elapsed = elapsed
        self._shed = shed
        self._report = report
        self._counters = counters

    async def accept(self, request: Request, source: Source | None) -> Response:
        """
        Answer a complete webhook that nothing refused at its head; `source` is the path's, None where a body names it.

        The steps stand in the published order. Everything up to admission is plain calls in one turn of the loop, so
        that events enter the stream in the order in which their requests were complete. Cancelling it ends the wait for
        a twin and nothing else: from the first publication on it runs to its outcome, since bus and `within` give
        Deferreds that cannot be cancelled.
        """
        rules = self._rules()
        name = "" if source is None else source.name
        stamp = read_headers(request, rules.replay_window_s, rules.clock_skew_s)
        if isinstance(stamp, Refused):
            return self._refuse(request, stamp, name)
        auth = verify(
            stamp.signatures,
            rules.keys if source is None else source.keys,
            rules.schemes if source is None else source.schemes,
            Signed(stamp.timestamp, stamp.nonce, stamp.key or b"", request.body),
        )
        if auth is None:
            return self._refuse(request, refuse_signature(request), name)
        request.client_corr_id = stamp.client_corr_id or ""
        accepting = _Accepting(request, stamp, auth)
        read = rules.generic if source is None else source.read
        try:
            body = read(request.body, name or None)
        except Exception:
            self._report("read")
            return await self._bury(accepting, source, _fault("read"), ["fault of the gateway"], None, parsed=False)
        if isinstance(body, Malformed):
            return await self._bury_malformed(accepting, source, body)
        if isinstance(body, Invalid):
            return await self._bury_invalid(accepting, source, body)
        if isinstance(body, Generic):
            known = self._find_source(body.source, source, rules)
            signal = body.signal
        else:
            known, signal = source or Refused("GW-017"), body  # a format without a source is read on its own path only
        if isinstance(known, Refused):
            return self._refuse(request, known, name)
        source = known
        refused = _refuse_foreign_key(accepting, source)
        if refused is not None:
            return self._refuse(request, refused, source.name)
        self._counters.authenticated(source.name, auth.scheme.name, auth.key.number)
        if isinstance(signal, Invalid):
            return await self._bury_invalid(accepting, source, signal)
        refused = _refuse_age(accepting, source, signal, rules)
        if refused is not None:
            return self._refuse(request, refused, source.name)
        return await self._admit(accepting, source, signal)

    def _find_source(self, named: str, path_source: Source | None, rules: Rules) -> Source | Refused:
        """The source that the body names: an allowed one, the path's where the path is one's, with a secret."""
        source = rules.sources.get(named)
        if source is None or (path_source is not None and named != path_source.name):
            return Refused("GW-007", {"source_provided": named[:_MAX_SOURCE_SHOWN]})
        return source if source.keys else Refused("GW-018", {"reason": "source_not_configured"})

    async def _admit(self, accepting: _Accepting, source: Source, signal: Signal) -> Response:
        request = accepting.request
        claim = _claim(accepting, source)
        answer = self._admission.admit(claim)
        admitted = answer if isinstance(answer, ADMITTED) else await answer
        if isinstance(admitted, Fresh):
            outcome, duplicate = await self._publish(accepting, claim, signal)
        elif isinstance(admitted, Limited):
            return self._refuse(request, _limited(admitted, source), source.name)
        elif isinstance(admitted, Replayed):
            return self._replayed(accepting, claim, admitted)
        elif isinstance(admitted, Conflict):
            return self._conflict(accepting, claim, admitted.original)
        elif isinstance(admitted, Failed):
            outcome, duplicate = admitted, False
        else:
            outcome, duplicate = Accepted(), True
        if isinstance(outcome, Failed) and outcome.refused.code == "GW-009":
            return await self._bury(accepting, source, outcome.refused, ["fault of the gateway"], None, parsed=True)
        if isinstance(outcome, Failed):
            corr_id = accepted_corr_id(claim.identity)
            return self._refuse(request, outcome.refused, source.name, corr_id)
        if isinstance(outcome, Taken):
            return self._conflict(accepting, claim, claim.identity)
        if duplicate:
            self._counters.duplicate(source.name)
        return accepted(
            accepted_corr_id(claim.identity),
            claim.identity.hex() if accepting.stamp.key is None else accepting.stamp.key.decode("ascii"),
            request.received_wall,
            duplicate=duplicate,
            source=source.name,
            instrument=signal.instrument,
        )

    async def _publish(self, accepting: _Accepting, claim: Claim, signal: Signal) -> tuple[Outcome, bool]:
        """Store a Fresh claim's events and settle it, whatever happens; the outcome, and whether it was known."""
        outcome: Outcome = _UNFINISHED
        duplicate = False
        try:
            if self._shed():
                outcome = Failed(Refused("GW-010", {"reason": "lag"}))
                return outcome, False
            request = accepting.request
            envelope = Envelope(
                accepted_corr_id(claim.identity),
                request.received_wall,
                accepting.auth.scheme.name,
                None if accepting.stamp.key is None else accepting.stamp.key.decode("ascii"),
                accepting.stamp.traceparent,
            )
            try:
                raw, normalised = self._events.pair(claim, signal, request.body, envelope)
            except Exception:
                self._report("events")
                outcome = Failed(_fault("events"))
                return outcome, False
            # A body identity can only ever mean this body, so both events go out in one write. A key might stand for
            # another body, so its normalised event waits until raw's acknowledgement says that the key was free.
            together = claim.kind is BODY
            published = await self._bus.publish((raw, normalised) if together else (raw,))
            if isinstance(published, Unpublished):
                outcome = Failed(self._unstored(published))
            elif published.acks[0].duplicate:
                duplicate = True
                outcome = await self._judge(request, claim, published.acks[0].sequence)
            else:
                outcome = Accepted()
            if isinstance(outcome, Accepted) and not together:
                outcome = await self._complete(request, normalised)
        finally:
            self._admission.settle(claim, outcome)
        return outcome, duplicate

    async def _judge(self, request: Request, claim: Claim, sequence: int) -> Outcome:
        """JetStream called raw a duplicate: the stored message says of what."""
        stored = await self._within(self._bus.read(sequence, raw_id(claim.identity)), self._left(request))
        if isinstance(stored, Unpublished):
            return Failed(self._unstored(stored))
        facts = parse_facts(stored.headers.get(FACTS_HEADER)) if stored is not None else None
        body = None if facts is None else facts.body
        return Accepted() if verdict(claim, body) is Verdict.SAME else Taken(body)

    async def _complete(self, request: Request, normalised: Message) -> Outcome:
        """Publish the normalised event after its raw one; under its id that is harmless however often it happens."""
        published = await self._within(self._bus.publish((normalised,)), self._left(request))
        return Accepted() if isinstance(published, Published) else Failed(self._unstored(published))

    def _left(self, request: Request) -> float:
        """Seconds that are left for the answer: every webhook is answered within 2.5 s."""
        return max(0.05, ANSWER_WITHIN_S - self._elapsed(request))

    def _unstored(self, failed: Unpublished) -> Refused:
        if failed.cause is Cause.BUFFER:
            return Refused("GW-010", {"reason": "buffer"})
        if failed.cause is Cause.STREAM_FULL:
            return Refused("GW-010", {"reason": "stream_full"}, logged={"nats_error": failed.error})
        last = self._bus.last_success
        last_success = None if last is None else format_wall(last)
        status = {
            "nats_status": self._bus.state.value,
            "last_success": last_success,
            "connection_attempts": self._bus.attempts,
        }
        logged = {"nats_status": self._bus.state.value, "last_success": last_success, "cause": failed.cause.value}
        return Refused("GW-005", status, logged={**logged, "nats_error": failed.error} if failed.error else logged)

    def _replayed(self, accepting: _Accepting, claim: Claim, replayed: Replayed) -> Response:
        details = {"original_corr_id": accepted_corr_id(claim.identity)} if replayed.same else {}
        timestamp = accepting.stamp.timestamp.decode("ascii")
        refused = refuse_replay("nonce_used", self._rules().replay_window_s, timestamp_provided=timestamp, **details)
        corr_id = accepted_corr_id(claim.identity)
        return self._refuse(accepting.request, refused, claim.source, corr_id)

    def _conflict(self, accepting: _Accepting, claim: Claim, original: bytes | None) -> Response:
        key = accepting.stamp.key
        details = {
            "idempotency_key": claim.identity.hex() if key is None else key.decode("ascii"),
            "original_corr_id": None if original is None else accepted_corr_id(original),
        }
        corr_id = refused_corr_id(refused_digest(claim.source, accepting.request.body))
        return self._refuse(accepting.request, Refused("GW-006", details), claim.source, corr_id)

    async def _bury_malformed(self, accepting: _Accepting, source: Source | None, body: Malformed) -> Response:
        details = {"line": body.line, "column": body.column, "likely_cause": body.likely_cause, "reason": body.message}
        reasons = [body.message] if body.likely_cause is None else [body.message, body.likely_cause]
        refused = Refused("GW-013", details)
        return await self._bury(accepting, source, refused, reasons, (body.line, body.column), parsed=False)

    async def _bury_invalid(self, accepting: _Accepting, source: Source | None, body: Invalid) -> Response:
        faults = [{"path": f.path, "message": f.message, "got": f.got} for f in body.faults]
        refused = Refused("GW-003", {"validation_errors": faults, "schema_version": self._events.schema_version})
        reasons = [f"{fault.path}: {fault.message}" if fault.path else fault.message for fault in body.faults]
        keep_raw = body.is_object and not body.is_empty
        return await self._bury(accepting, source, refused, reasons, None, parsed=body.is_object, keep_raw=keep_raw)

    async def _bury(
        self,
        accepting: _Accepting,
        source: Source | None,
        refused: Refused,
        reasons: Sequence[str],
        position: tuple[int, int] | None,
        *,
        parsed: bool,
        keep_raw: bool = False,
    ) -> Response:
        """
        Refuse an authenticated body and keep it as a dead letter, at the price of a token of its source.

        The refusal stands whether the dead letter could be stored or not: the sender cannot cure what it sent by
        sending it again.
        """
        request, rules = accepting.request, self._rules()
        source = source or rules.sources.get(accepting.auth.key.source or "")
        name = UNKNOWN_SOURCE if source is None else source.name
        limited = self._admission.take(name, rules.default_limit if source is None else source.limit)
        if limited is not None:
            return self._refuse(request, _limited(limited, source), name)
        origin = request.path.decode("latin-1") if source is None else name
        digest_of_refused = refused_digest(origin, request.body)
        key = accepting.stamp.key
        letter = DeadLetter(
            digest_of_refused,
            refused.code,
            name,
            request.received_wall,
            parsed,
            reasons,
            position,
            None if key is None else key.decode("ascii"),
            accepting.auth.scheme.binds_headers,
        )
        published = await self._bus.publish((letter.message(request.body),))
        if isinstance(published, Unpublished):
            self._counters.dead_letter_lost()
        else:
            self._counters.dead_letter(refused.code)
            if keep_raw:
                rejected = self._events.rejected(letter, request.body)
                kept = await self._within(self._bus.publish((rejected,)), self._left(request))
                if isinstance(kept, Unpublished):
                    self._counters.dead_letter_lost()
        return self._refuse(request, refused, name, letter.corr_id)


def _claim(accepting: _Accepting, source: Source) -> Claim:
    stamp, body, prefixes = accepting.stamp, accepting.request.body, source.prefixes
    key = stamp.key
    signed_key = key if accepting.auth.scheme.binds_headers else None
    body_digest = digest(body)
    if signed_key is None:
        kind, who = BODY, digest_behind(prefixes.body, body)
    else:
        kind, who = KEY, digest_behind(prefixes.key, signed_key)
    second = digest_behind(prefixes.claim, key) if key is not None and signed_key is None else None
    nonce = digest_behind(prefixes.nonce, stamp.nonce)
    return Claim(source.name, kind, who, body_digest, fingerprint(kind, who, body_digest), nonce, second, source.limit)


def _fault(step: str) -> Refused:
    """GW-009: a body that should have become an event did not, by a fault of ours; it is kept."""
    return Refused("GW-009", {"step": step})


def _refuse_foreign_key(accepting: _Accepting, source: Source) -> Refused | None:
    """GW-001 unless secret, scheme and client address are this source's."""
    bound = accepting.auth.key in source.keys and accepting.auth.scheme.name in source.schemes
    if bound and (not source.addresses or contains(source.addresses, accepting.request.client_ip)):
        return None
    return refuse_signature(accepting.request)


def _refuse_age(accepting: _Accepting, source: Source, signal: Signal, rules: Rules) -> Refused | None:
    """
    GW-002 when the signature does not bind the time and the body's own time is too old or too far ahead.

    Whoever saw such a body could send it again with fresh headers; beyond this age its id may be forgotten.
    """
    if accepting.auth.scheme.binds_headers:
        return None
    ahead_s = signal.time - accepting.request.received_wall
    if -source.max_body_age_s <= ahead_s <= rules.clock_skew_s:
        return None
    return refuse_replay(
        "body_time_in_future" if ahead_s > 0 else "body_time_too_old",
        source.max_body_age_s,
        timestamp_provided=format_wall(signal.time),
        clock_skew_ms=round(ahead_s * 1000),
        advice="sha256= does not sign X-Timestamp, so the body's own time must be recent: "
        "sign with v1=, or set max_body_age for this source",
    )


def _limited(limited: Limited, source: Source | None) -> Refused:
    """GW-004; as 503 for a sender that would give the event up on a 429."""
    if source is None:
        return refuse_limited(limited, UNKNOWN_SOURCE)
    return refuse_limited(limited, source.name, status=503 if source.transient_as_503 else 429)
