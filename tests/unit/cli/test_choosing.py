"""Which dead letters a choice takes, and in which state each is."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.publication import Stored
from gatewayd.cli.choosing import Box, Choice, parse_moment
from gatewayd.cli.console import Failed
from gatewayd.times import Wall
from tests.unit.cli.invocation import NOW, gatewayctl

RECORD = "1 {} body " + "a" * 32 + " " + "b" * 32 + " 1768471800000"


def letter(sequence: int, *, ago_s: float = 0.0, code: str = "GW-003", source: str = "custom") -> Stored:
    headers = {"Dlq-Code": code, "Source": source, "Corr-ID": f"req_{sequence}"}
    return Stored(sequence, "dlq.signals.raw", headers, b"", Wall(NOW - ago_s))


def record(number: int, sequence: int, text: str) -> Stored:
    word, _, places = text.partition(" ")
    headers = {"Dlq-Replay": f"{RECORD.format(word)} {places}".strip(), "Source": "custom"}
    return Stored(sequence, f"dlq.replayed.{number}", headers, b"", NOW)


class ChoiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Four letters: one claimed, one replayed; and a claim whose letter has expired."""
        self.box = Box()
        for stored in (
            record(1, 9, "claimed"),
            letter(10, ago_s=7200),
            letter(11, ago_s=60, code="GW-013"),
            letter(12, ago_s=30, source="_other"),
            letter(13),
            record(11, 14, "claimed"),
            record(12, 15, "claimed"),
            record(12, 18, "done 16 17"),
        ):
            self.box.see(stored)

    def choose(self, **given: Any) -> list[int]:
        return [entry.sequence for entry in self.box.chosen(Choice.of(NOW, **given))]

    def test_states(self) -> None:
        """The last record says it."""
        states = {entry.sequence: entry.state for entry in self.box.chosen(Choice())}
        expected = {1: "claimed", 10: "pending", 11: "claimed", 12: "replayed", 13: "pending"}
        self.assertEqual(states, expected)

    def test_filters(self) -> None:
        """Each narrows the choice, and together they narrow it further."""
        self.assertEqual(self.choose(), [1, 10, 11, 12, 13])
        self.assertEqual(self.choose(sequences=[13, 10]), [10, 13])
        self.assertEqual(self.choose(since="1h"), [1, 11, 12, 13])
        self.assertEqual(self.choose(until="2026-01-15T10:09:10Z"), [10, 11])
        self.assertEqual(self.choose(codes=["13", "gw-9"]), [11])
        self.assertEqual(self.choose(sources=["_other"]), [12])
        self.assertEqual(self.choose(replayed=True), [12])
        self.assertEqual(self.choose(replayed=False, since="1h", sources=["custom"]), [1, 11, 13])
        self.assertEqual(self.choose(sources=["custom"]), [1, 10, 11, 12, 13])

    def test_what_cannot_be_understood(self) -> None:
        """A time or a code of no form is named."""
        for given in ({"since": "yesterday"}, {"until": "10"}, {"codes": ["GW-999"]}):
            with self.assertRaises(Failed):
                Choice.of(NOW, **given)  # type: ignore[arg-type]
        self.assertEqual(parse_moment("--since", "2d", NOW), NOW - 172800)
        self.assertEqual(parse_moment("--since", "2026-01-15T10:10:00Z", NOW), NOW)

    def test_a_letter_that_has_expired(self) -> None:
        """Is still there while its replay has not ended, and no longer."""
        self.assertEqual(self.choose(sequences=[1]), [1])
        self.box.see(record(1, 20, "done 18 19"))
        self.assertEqual(self.choose(sequences=[1]), [])

    def test_a_box_is_bounded(self) -> None:
        """Beyond the bound the oldest are left out, and counted."""
        box = Box(bound=3)
        for sequence in range(1, 6):
            box.see(letter(sequence))
        self.assertEqual(([entry.sequence for entry in box.chosen(Choice())], box.dropped), ([3, 4, 5], 2))


class CommandLineTests(SynchronousTestCase):
    def test_wrong_before_anything_is_asked(self) -> None:
        """Exit code 2 without a connection: the server here would not answer."""
        environ = {"NATS_URL": "nats://127.0.0.1:9"}
        for words in (
            ("dlq", "replay"),
            ("dlq", "replay", "--limit", "5"),
            ("dlq", "replay", "1", "2", "--body", "x"),
            ("dlq", "replay", "--all", "--body", "x"),
            ("dlq", "replay", "1", "--body", "/nonexistent"),
            ("dlq", "replay", "0"),
            ("dlq", "replay", "--all", "--rate", "0"),
            ("dlq", "list", "--since", "soon"),
            ("dlq", "list", "--code", "GW-999"),
            ("dlq", "show"),
            ("dlq", "show", "1", "--raw", "--json"),
            ("trace", "no such/id"),
            ("trace", "req_1", "--log", "-", "--unit", "gatewayd"),
            ("trace", "req_1", "--since", "soon"),
        ):
            ended = gatewayctl(*words, environ=environ)
            self.assertEqual((ended.code, ended.out), (2, ""), words)
