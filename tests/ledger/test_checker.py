"""A gateway that does everything right leaves nothing to find, and each fault planted in its work is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.ledger.client import Ledger, read_ledger
from tests.ledger.plan import BROKEN, Kind, make_plan, only
from tests.ledger.report import FROZEN, GATEWAY, NATS, VIOLATIONS, Fault, Result, markdown, percentile
from tests.ledger.world import BEGAN, World, digest

PLAN = make_plan(600, 7, BEGAN)


def lose(world: World) -> None:
    world.drop(world.lines[world.at(Kind.VALID)].corr_id)


def halve(world: World) -> None:
    world.drop(world.lines[world.at(Kind.VALID)].corr_id, "signals.normalized")


def behead(world: World) -> None:
    """The raw event is gone, of something that nobody was told of."""
    place = world.at(Kind.STUBBORN)
    world.drop(world.change(place, status=503, code="GW-005", corr_id="").corr_id, "signals.raw")


def store_twice(world: World) -> None:
    place = world.message(world.lines[world.at(Kind.VALID)].corr_id)
    world.stored.append(replace(world.stored[place], sequence=len(world.stored) + 1))


def normalise_twice(world: World) -> None:
    place = world.message(world.lines[world.at(Kind.VALID)].corr_id, "signals.normalized")
    one = world.stored[place]
    world.stored.append(
        replace(one, sequence=len(world.stored) + 1, headers={**one.headers, "Nats-Msg-Id": "gw:x:norm"})
    )


def accept_twice(world: World) -> None:
    world.change(world.at(Kind.SIBLINGS, duplicate=True), duplicate=False)


def reverse(world: World) -> None:
    raw = world.message(world.lines[world.at(Kind.VALID)].corr_id)
    first, second = world.stored[raw], world.stored[raw + 1]
    world.stored[raw] = replace(second, sequence=first.sequence)
    world.stored[raw + 1] = replace(first, sequence=second.sequence)


def store_a_stranger(world: World) -> None:
    world.store_pair("f" * 32, make_plan(1, 99, BEGAN)[0].webhooks[0])


def store_under_another_subject(world: World) -> None:
    world.store("signals.other", "gw:x:raw", b"{}")


def accept_in_secret(world: World) -> None:
    """A conflict under an unsigned key is refused, and stored all the same."""
    steps = {step.id: step for step in world.plan if step.kind is Kind.CONFLICT}
    webhook = next(step.webhooks[0] for step in steps.values() if step.webhooks[0].scheme == "sha256")
    world.store_pair(digest(webhook.source, webhook.digest), webhook)


def store_what_was_refused(world: World) -> None:
    """A request with a wrong signature is stored."""
    webhook = next(step.webhooks[0] for step in world.plan if step.fault == "bad_signature")
    world.store_raw(f"gw:{'e' * 32}:raw", f"req_{'e' * 20}", webhook, Gw_Facts="1")


def add_a_space(world: World) -> None:
    place = world.message(world.lines[world.at(Kind.VALID)].corr_id)
    one = world.stored[place]
    world.stored[place] = replace(one, data=one.data[:-2] + b" }}")


def round_the_price(world: World) -> None:
    price = next(
        webhook.facts.price
        for step in world.plan
        for webhook in step.webhooks
        if step.kind is Kind.VALID and webhook.facts and len(webhook.facts.price) > 25
    )
    place = next(
        n
        for n, one in enumerate(world.stored)
        if f'"price":{price},'.encode() in one.data and b"payload" not in one.data
    )
    one = world.stored[place]
    world.stored[place] = replace(one, data=one.data.replace(price.encode(), repr(float(price)).encode()))


def turn_the_side(world: World) -> None:
    place = next(
        n for n, one in enumerate(world.stored) if b'"side":"buy"' in one.data and one.subject == "signals.normalized"
    )
    one = world.stored[place]
    world.stored[place] = replace(one, data=one.data.replace(b'"side":"buy"', b'"side":"sell"'))


def swap_instruments(world: World) -> None:
    place = world.message(world.lines[world.at(Kind.VALID)].corr_id, "signals.normalized")
    one = world.stored[place]
    world.stored[place] = replace(one, headers={**one.headers, "Instrument": "OTHER"})


def number_at_random(world: World) -> None:
    place = world.message(world.lines[world.at(Kind.VALID)].corr_id)
    one = world.stored[place]
    world.stored[place] = replace(one, headers={**one.headers, "Nats-Msg-Id": f"gw:{'0' * 32}:raw"})


def refuse_a_good_one(world: World) -> None:
    world.drop(
        world.change(world.at(Kind.STUBBORN), status=401, code="GW-001", duplicate=None, corr_id="req_x").corr_id
    )


def accept_a_replay(world: World) -> None:
    base = world.lines[world.at(Kind.REPLAY)].original
    world.change(world.at(Kind.REPLAY), status=202, code="", duplicate=True, original="", corr_id=base)


def forget_a_stored_nonce(world: World) -> None:
    """After a restart, although the nonce stands in the stream."""
    accept_a_replay(world)
    world.change(world.at(Kind.REPLAY, status=202), life=2)


def hide_the_original(world: World) -> None:
    world.change(world.at(Kind.REPLAY), original="")


def name_another_original(world: World) -> None:
    world.change(world.at(Kind.CONFLICT), original="req_other")


def accept_a_bad_signature(world: World) -> None:
    world.change(world.at(Kind.BROKEN, "bad_signature"), status=202, code="", duplicate=False)


def refuse_with_another_code(world: World) -> None:
    world.change(world.at(Kind.BROKEN, "malformed"), code="GW-015")


def call_a_new_event_a_duplicate(world: World) -> None:
    world.change(world.at(Kind.STUBBORN), duplicate=True)


def answer_a_duplicate_with_another_corr_id(world: World) -> None:
    world.change(world.at(Kind.DUPLICATE), corr_id="req_other")


def accept_a_conflict(world: World) -> None:
    line = world.lines[world.at(Kind.RACE, status=409)]
    world.change(line.id, status=202, code="", duplicate=True, corr_id=line.original, original="")


def drop_a_letter(world: World) -> None:
    world.drop(world.lines[world.at(Kind.BROKEN, "malformed")].corr_id)


def drop_the_rejected_raw(world: World) -> None:
    world.drop(world.lines[world.at(Kind.BROKEN, "schema")].corr_id, "signals.raw")


def keep_an_unauthenticated_body(world: World) -> None:
    webhook = next(step.webhooks[0] for step in world.plan if step.fault == "bad_signature")
    world.store("dlq.signals.raw", "gw:x:GW-013:dlq", webhook.body, Dlq_Code="GW-013", Corr_ID="req_x")


def keep_a_letter_twice(world: World) -> None:
    place = world.message(world.lines[world.at(Kind.BROKEN, "malformed")].corr_id, "dlq.signals.raw")
    one = world.stored[place]
    world.stored.append(replace(one, sequence=len(world.stored) + 1, headers={**one.headers, "Nats-Msg-Id": "gw:y"}))


def file_a_letter_wrongly(world: World) -> None:
    place = world.message(world.lines[world.at(Kind.BROKEN, "malformed")].corr_id, "dlq.signals.raw")
    world.stored[place] = replace(world.stored[place], subject="dlq.signals.normalized")


def repeat_an_id(world: World) -> None:
    places = [world.message(line.corr_id) for line in world.lines if line.kind == "valid"][:2]
    headers = world.stored[places[1]].headers
    world.stored[places[0]] = replace(world.stored[places[0]], headers={**headers})


def fail(world: World) -> None:
    world.insert_failed(world.at(Kind.VALID), status=500, code="GW-016")


def leave_retry_after_out(world: World) -> None:
    world.change(world.at(Kind.VALID), odd="no Retry-After")


def answer_late(world: World) -> None:
    world.change(world.at(Kind.DUPLICATE), latency_ms=2501.0)


def cut(world: World) -> None:
    world.insert_failed(world.at(Kind.VALID))


def never_answer(world: World) -> None:
    line = world.change(world.at(Kind.STUBBORN), status=503, code="GW-005", duplicate=None, corr_id="")
    world.drop(line.corr_id)


def never_try(world: World) -> None:
    line = world.lines.pop(world.at(Kind.STUBBORN))
    world.drop(line.corr_id)


def miscount(world: World) -> None:
    world.counted = [replace(world.counted[0], conflicts=world.counted[0].conflicts + 1)]


PLANTED: dict[Callable[[World], None], str] = {
    lose: "lost",
    halve: "half",
    behead: "half",
    store_twice: "doubled",
    normalise_twice: "doubled",
    accept_twice: "doubled",
    reverse: "unordered",
    store_a_stranger: "unexpected",
    store_under_another_subject: "unexpected",
    accept_in_secret: "unexpected",
    store_what_was_refused: "unexpected",
    add_a_space: "altered",
    round_the_price: "wrong_facts",
    turn_the_side: "wrong_facts",
    swap_instruments: "wrong_facts",
    number_at_random: "wrong_facts",
    refuse_a_good_one: "wrong_answer",
    accept_a_replay: "wrong_answer",
    forget_a_stored_nonce: "wrong_answer",
    hide_the_original: "wrong_answer",
    name_another_original: "wrong_answer",
    accept_a_bad_signature: "wrong_answer",
    refuse_with_another_code: "wrong_answer",
    call_a_new_event_a_duplicate: "wrong_answer",
    answer_a_duplicate_with_another_corr_id: "corr_id_changed",
    accept_a_conflict: "conflict_accepted",
    drop_a_letter: "letter_missing",
    drop_the_rejected_raw: "letter_missing",
    keep_an_unauthenticated_body: "letter_unexpected",
    keep_a_letter_twice: "letter_unexpected",
    file_a_letter_wrongly: "letter_unexpected",
    repeat_an_id: "repeated_id",
    fail: "other_5xx",
    leave_retry_after_out: "odd_answer",
    answer_late: "late",
    cut: "cut",
    never_answer: "unanswered",
    never_try: "unanswered",
    miscount: "miscounted",
}


class TestChecker:
    """What it finds, and what it does not take for a fault."""

    def test_a_perfect_run(self) -> None:
        """Nothing is found, and the run had something of everything in it."""
        world = World(PLAN).run()
        report = world.check()
        assert report.violations == 0, report.table()
        assert report.figures["attempts"] == len(world.lines) == sum(len(step.webhooks) for step in PLAN)
        assert {step.kind for step in PLAN} == set(Kind)

    @pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
    def test_each_fault_is_found(self, plant: Callable[[World], None]) -> None:
        """Under its name, and shown in the table."""
        world = World(PLAN).run()
        plant(world)
        report = world.check()
        assert report.found[PLANTED[plant]], report.table()
        assert report.found[PLANTED[plant]][0] in report.table()

    def test_every_name_has_a_planted_fault(self) -> None:
        """What a report can name is found by some test; what the log holds is looked for by the run."""
        assert set(PLANTED.values()) == set(VIOLATIONS) - {"logged"}

    def test_a_kill_explains(self) -> None:
        """A cut while gatewayd was killed, then a duplicate of what was stored: counted, and no violation."""
        world = World(PLAN).run()
        place = world.at(Kind.STUBBORN)
        world.change(place, duplicate=True)
        world.insert_failed(place)
        cut_at = world.lines[place].sent_at
        world.faults = [Fault("gatewayd", cut_at + 0.001, cut_at + 0.2)]
        world.count()
        report = world.check()
        assert report.violations == 0, report.table()
        assert report.figures["unknown_stored"] == 1
        world.faults = [Fault("nats-server", cut_at + 0.001, cut_at + 0.2)]
        assert world.check().found["cut"]

    def test_a_freeze_explains_lateness(self) -> None:
        """What was late only because gatewayd was frozen, or not there, is not late; anything beyond is."""
        world = World(PLAN).run()
        line = world.change(10, latency_ms=4000.0)
        assert world.check().found["late"]
        for name in (FROZEN, GATEWAY):
            world.faults = [Fault(name, line.sent_at + 1.0, line.sent_at + 3.0)]
            assert world.check().violations == 0, world.check().table()
        world.faults = [Fault(FROZEN, line.sent_at + 1.0, line.sent_at + 2.0)]
        assert world.check().found["late"]
        world.faults = [Fault(NATS, line.sent_at + 1.0, line.sent_at + 3.0)]
        assert world.check().found["late"]

    def test_the_time_to_come_back(self) -> None:
        """It is that of the slowest fault, and of none that another one outlasted before anything was accepted."""
        world = World(PLAN).run()
        accepted = [line.ended_at for line in world.lines if line.status == 202]
        late = max(range(1, len(accepted)), key=lambda place: accepted[place] - accepted[place - 1])
        gap_s = accepted[late] - accepted[late - 1]
        world.faults = [
            Fault(NATS, accepted[5] - 0.5, accepted[5]),
            Fault(NATS, accepted[late - 1], accepted[late - 1] + 0.001),
        ]
        assert world.check().figures[f"{NATS} 202 s"] == pytest.approx(gap_s, abs=0.01)
        world.faults.append(Fault(GATEWAY, accepted[late - 1] + 0.5, accepted[late] + 1000.0))
        assert world.check().figures[f"{NATS} 202 s"] < gap_s

    def test_an_outage_explains_a_lost_letter(self) -> None:
        """A dead letter may be lost while NATS is away, and at no other time."""
        world = World(PLAN).run()
        line = world.lines[world.at(Kind.BROKEN, "malformed")]
        repeated = [other for other in world.lines if other.body == line.body]
        drop_a_letter(world)
        world.faults = [Fault("nats-server", repeated[0].sent_at, repeated[-1].ended_at)]
        assert world.check().found["miscounted"]  # it was not said
        world.counted = [replace(world.counted[0], letters_lost=1)]
        report = world.check()
        assert report.violations == 0, report.table()
        assert report.figures["letters lost"] == 1
        world.faults = [Fault("gatewayd", repeated[0].sent_at, repeated[-1].ended_at)]
        assert world.check().found["letter_missing"]

    def test_a_restart_empties_the_memory(self) -> None:
        """Another body under an unsigned key is an event of its own once gatewayd was restarted, and only then."""
        world = World(PLAN).run()
        step = next(one for one in PLAN if one.kind is Kind.CONFLICT and one.webhooks[0].scheme == "sha256")
        webhook = step.webhooks[0]
        place = next(n for n, line in enumerate(world.lines) if line.plan == step.id)
        identity = digest(webhook.source, webhook.digest)
        told = {"status": 202, "code": "", "corr_id": f"req_{identity[:20]}", "original": "", "duplicate": False}
        world.change(place, **told)
        world.store_pair(identity, webhook)
        world.count()
        assert world.check().found["wrong_answer"]
        world.lines = [msgspec.structs.replace(line, life=1 if n < place else 2) for n, line in enumerate(world.lines)]
        world.counted = []
        report = world.check()
        assert report.violations == 0, report.table()


class TestPlan:
    """What is sent."""

    def test_seeds(self) -> None:
        """A seed makes the same plan again, and another one another."""
        again = make_plan(600, 7, BEGAN)
        assert again == PLAN
        assert make_plan(600, 8, BEGAN) != PLAN

    def test_order(self) -> None:
        """Steps are numbered as they stand, and each comes after what it follows."""
        assert [step.id for step in PLAN] == list(range(len(PLAN)))
        assert all(step.base < step.id for step in PLAN if step.base is not None)
        assert 600 <= sum(len(step.webhooks) for step in PLAN) < 620

    def test_bodies(self) -> None:
        """No two events are one by accident, and a valid body is JSON that says what its facts say."""
        events = [
            step.webhooks[0] for step in PLAN if step.kind in (Kind.VALID, Kind.STUBBORN, Kind.TWINS, Kind.SIBLINGS)
        ]
        assert len({event.digest for event in events}) == len(events)
        for event in events:
            assert event.facts is not None
            said = json.loads(event.body, parse_float=str, parse_int=str)
            inner = said.get("payload", said)
            assert said.get("ticker", said.get("instrument", "")).upper() == event.facts.instrument
            assert inner["price"] == event.facts.price

    def test_every_fault(self) -> None:
        """A large plan has every kind of broken webhook."""
        assert {step.fault for step in make_plan(5000, 1, BEGAN)} == {"", *BROKEN}

    def test_only_some_kinds(self) -> None:
        """Those of the kinds that follow no other, in their order and numbered anew."""
        kinds = frozenset({Kind.TWINS, Kind.BROKEN})
        some = only(PLAN, kinds)
        assert [step.webhooks for step in some] == [
            step.webhooks for step in PLAN if step.kind in kinds and step.base is None
        ]
        assert [step.id for step in some] == list(range(len(some)))


class TestResults:
    """The table of faults."""

    def test_percentiles(self) -> None:
        """The value that the share does not exceed; none of nothing."""
        assert percentile([], 0.5) is None
        assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
        assert percentile(range(100), 0.99) == 99
        assert percentile([7.0], 0.99) == 7.0

    def test_the_table(self) -> None:
        """A row for each, a sum, and every promise that was not kept below it."""
        results = [
            Result("a", requests=5, accepted=3, lost=1, recover_s=0.25, missed=["lost: one"]),
            Result("b", requests=7, accepted=7, not_run="no program"),
        ]
        text = markdown(results)
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) == 1
        assert "| a | 5 | 3 | 0 |" in rows[2]
        assert "| 0.25 |" in rows[2]
        assert rows[3].endswith("| not run: no program |")
        assert rows[4].startswith("| **all** | 12 | 10 | 0 |")
        assert rows[4].endswith("| 1 |")
        assert text.endswith("a: lost: one")


class TestLedger:
    """The file."""

    def test_lines_come_back(self, tmp_path: Path) -> None:
        """What was written is what is read, in order, and a file is never written over."""
        lines = World(PLAN).run().lines[:50]
        ledger = Ledger(tmp_path / "ledger", 8)
        for line in lines:
            ledger.write(line)
        assert read_ledger(ledger.path) == lines  # before it is closed: each line is out before the next step
        ledger.close()
        with pytest.raises(FileExistsError):
            Ledger(tmp_path / "ledger", 8)
