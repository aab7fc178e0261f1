"""What the findings about one request mean."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.publication import Stored
from gatewayd.cli.choosing import Entry
from gatewayd.cli.story import Scene, families, in_time, scene_of_event, scene_of_line, scenes_of_letter, tell
from gatewayd.ingress.admission import Kind
from gatewayd.ingress.letters import Letter
from gatewayd.ingress.replaying import Record, State
from gatewayd.times import Wall

FACTS = "1 body " + "a" * 32 + " " + "b" * 32 + " v1 1768471800000"
D, R = "req_" + "d" * 20, "req_letter"
RAW, NORMALISED = "signals.raw", "signals.normalized"


def event(subject: str, sequence: int, **headers: str) -> Scene:
    known = {"Corr-ID": D, "Gw-Facts": FACTS, **{name.replace("_", "-"): text for name, text in headers.items()}}
    return scene_of_event(Stored(sequence, subject, known, b"", Wall(1_768_471_800.0 + sequence)), None)


def line(status: int, **more: Any) -> Scene:
    return scene_of_line({"timestamp": "2026-01-15T10:10:00.000Z", "corr_id": D, "status": status, **more})


def entry(state: State | None = None, stored: tuple[int, int] | None = None, code: str = "GW-003") -> Entry:
    letter = Letter(12, "dlq.signals.raw", Wall(1.0), code, "custom", R, "", ("why",), (2, 3), None, False, 1)
    record = None
    if state is not None:
        record = Record(12, 13, state, Kind.BODY, b"\xdd" * 16, b"b" * 16, Wall(2.0), "custom", R, stored=stored)
    return Entry(12, letter, record)


class StoryTests(SynchronousTestCase):
    def told(self, *scenes: Scene, entries: tuple[Entry, ...] = (), asked: str = D) -> tuple[str, str]:
        whole = [*scenes, *(scene for one in entries for scene in scenes_of_letter(one))]
        (family,) = families([asked], entries)
        story = tell(family, in_time(whole), entries, RAW, "yesterday")
        return story.kind, story.text

    def test_accepted(self) -> None:
        """Once, and asked for more than once."""
        pair = event(RAW, 17), event(NORMALISED, 18)
        self.assertEqual(self.told(*pair), ("accepted", "accepted once, stored as 17 and 18"))
        kind, text = self.told(line(503), *pair, line(202))
        self.assertEqual((kind, text.endswith("; answered 2 times: 503, 202")), ("accepted", True))

    def test_replayed(self) -> None:
        """Refused first, told from either corr_id; also when the events have expired."""
        events = event(RAW, 19, Replayed_From="12"), event(NORMALISED, 20, Replayed_From="12")
        done = entry(State.DONE, (19, 20))
        for asked in (D, R):
            self.assertEqual(
                self.told(*events, entries=(done,), asked=asked),
                ("replayed", "refused GW-003, dead letter 12, replayed as 19 and 20"),
            )
        self.assertEqual(self.told(entries=(done,))[0], "replayed")

    def test_refused(self) -> None:
        """With its letter, with a replay that has not ended, or by the log alone."""
        self.assertEqual(
            self.told(entries=(entry(),), asked=R), ("refused", "refused GW-003, dead letter 12, not replayed")
        )
        kind, text = self.told(entries=(entry(State.CLAIMED),))
        self.assertEqual((kind, "gatewayctl dlq replay 12" in text), ("unfinished", True))
        self.assertEqual(self.told(line(401, code="GW-001"))[0], "refused")
        self.assertIn("send it again", self.told(line(503, code="GW-005"))[1])
        self.assertEqual(self.told(line(202))[0], "gone")
        rejected = scene_of_event(Stored(14, RAW, {"Corr-ID": R, "Rejected": "GW-003"}, b"", Wall(1.0)), None)
        self.assertEqual(self.told(rejected, entries=(entry(),), asked=R)[0], "refused")

    def test_halves_and_doubles(self) -> None:
        """One of two, and two of one."""
        self.assertEqual(self.told(event(RAW, 17))[0], "half")
        self.assertEqual(self.told(event(NORMALISED, 18))[0], "half")
        self.assertEqual(self.told(event(RAW, 17), event(NORMALISED, 18), event(RAW, 30))[0], "doubled")

    def test_unknown(self) -> None:
        """Nothing anywhere; a stranger's message with this id is no event."""
        self.assertEqual(
            self.told(), ("unknown", "unknown: nothing in the stream since yesterday: not stored; send it again")
        )
        foreign = scene_of_event(Stored(3, RAW, {"Corr-ID": D}, b"", Wall(1.0)), None)
        self.assertEqual(self.told(foreign)[0], "unknown")

    def test_families(self) -> None:
        """A replay ties two corr_ids together; what nothing ties stays apart."""
        self.assertEqual(families(["a", "b"], ()), [frozenset("a"), frozenset("b")])
        found = families(["a", D, R], [entry(State.DONE, (19, 20))])
        self.assertEqual(sorted(found, key=len), [frozenset("a"), frozenset({D, R})])

    def test_nothing_moves_the_cursor(self) -> None:
        """What comes from outside is printed as escapes."""
        for scene in (
            line(202, path="/\x1b[2J"),
            scene_of_event(Stored(3, "a\x1b", {"Rejected": "\x1b"}, b"", Wall(1.0)), {"instrument": "\x1b"}),
        ):
            self.assertNotIn("\x1b", scene.line)
