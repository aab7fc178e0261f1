"""Ids, places in a stream, and what is noticed of entries that were removed unread."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.streams.cursor import ORIGIN, Break, Cursor, Look, StreamId, next_count, parse_id

LARGEST = (1 << 64) - 1


class IdTest(SynchronousTestCase):
    def test_ids_are_what_the_server_writes(self) -> None:
        """Both numbers go up to 64 bits, and come back as the same text."""
        for text in (b"0-0", b"1795273001862-4", b"18446744073709551615-18446744073709551615"):
            found = parse_id(text)
            assert found is not None
            self.assertEqual(found.text.encode(), text)
        self.assertEqual(parse_id(b"18446744073709551615-0"), StreamId(LARGEST, 0))

    def test_nothing_else_is_an_id(self) -> None:
        """No sign, blank, leading zero, other digit, missing part or larger number is taken."""
        wrong = [b"", b"1", b"1-", b"-1", b"1-2-3", b" 1-2", b"1-2\n", b"+1-2", b"01-2", b"1-02", b"1_0-2", b"$", b"*"]
        wrong += [
            b"18446744073709551616-0",
            b"0-18446744073709551616",
            b"9" * 400 + b"-0",
            "1-\u0663".encode(),
            b"(1-2",
        ]
        for text in wrong:
            self.assertIsNone(parse_id(text), text)

    def test_order(self) -> None:
        """Ids are ordered by time, then by number, not as texts."""
        self.assertLess(StreamId(9, 9), StreamId(10, 0))
        self.assertLess(StreamId(10, 9), StreamId(10, 10))
        self.assertLess(ORIGIN, StreamId(0, 1))


class Model:
    """A stream, and a reader of it that is told nothing of what is lost."""

    def __init__(self) -> None:
        self.entries: list[int] = []
        self.last = self.added = self.lost = 0
        self.epoch = 0

    def look(self) -> Look:
        first = StreamId(self.entries[0], 0) if self.entries else ORIGIN
        return Look(f"e{self.epoch}", ORIGIN, first, StreamId(self.last, 0), self.added, len(self.entries))

    def add(self, count: int) -> None:
        for _ in range(count):
            self.last += 1
            self.added += 1
            self.entries.append(self.last)

    def remove(self, count: int, at: int) -> None:
        """The oldest ones; what the reader has not seen is lost."""
        gone, self.entries = self.entries[:count], self.entries[count:]
        self.lost += sum(entry > at for entry in gone)


STEPS = st.lists(st.tuples(st.sampled_from("arktd"), st.integers(0, 6)), max_size=60)


class CursorTest(SynchronousTestCase):
    def cursor(self, model: Model, *, newest: bool = False) -> Cursor:
        look = model.look()
        return Cursor(look, look.last if newest else ORIGIN)

    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, 5), st.booleans(), STEPS)
    def test_every_entry_that_was_removed_unread_is_counted(
        self, before: int, newest: bool, steps: list[tuple[str, int]]
    ) -> None:
        """
        Whatever is added, read and trimmed in whatever order, looked at now and then or not: once the reader has
        caught up, a look has told of exactly the entries that it never saw, and of none too early.
        """
        model = Model()
        model.add(before + 3)
        model.remove(2, 0)
        model.lost = told = 0
        cursor = self.cursor(model, newest=newest)
        for what, count in steps:
            if what == "a":
                model.add(count)
            elif what == "r":
                unread = [entry for entry in model.entries if entry > cursor.at.ms][:count]
                if unread:
                    cursor.advance(StreamId(unread[-1], 0), len(unread))
            elif what in "td":
                model.remove(count, cursor.at.ms)
            else:
                found = cursor.compare(model.look())
                told += (found.lost or 0) if found is not None else 0
                assert told <= model.lost
        rest = [entry for entry in model.entries if entry > cursor.at.ms]
        cursor.advance(StreamId(model.last, 0), len(rest))
        found = cursor.compare(model.look())
        told += (found.lost or 0) if found is not None else 0
        self.assertEqual(told, model.lost)
        self.assertIsNone(cursor.compare(model.look()))

    def test_a_trim_that_passed_the_reader_is_seen_at_once(self) -> None:
        """Entries beyond the reader's place are gone while others still wait: the look says how many."""
        model = Model()
        model.add(2)
        cursor = self.cursor(model, newest=True)
        model.add(10)
        model.remove(9, 2)
        self.assertEqual(cursor.compare(model.look()), Break(7))
        self.assertIsNone(cursor.compare(model.look()))

    def test_all_unread_entries_are_gone(self) -> None:
        """A stream that was emptied before the reader came is a gap too."""
        model = Model()
        cursor = self.cursor(model)
        model.add(4)
        model.remove(4, 0)
        self.assertEqual(cursor.compare(model.look()), Break(4))

    def test_what_was_removed_before_the_start_is_no_gap(self) -> None:
        """Reading from the beginning begins with what is there."""
        model = Model()
        model.add(100)
        model.remove(90, 0)
        cursor = self.cursor(model)
        cursor.advance(StreamId(100, 0), 10)
        self.assertIsNone(cursor.compare(model.look()))

    def test_another_stream_with_lower_ids_is_read_from_its_base(self) -> None:
        """When the ids went back, what was read here lies at or before the base of the new epoch, and no further."""
        model = Model()
        model.add(9)
        for base in (0, 3):
            cursor = self.cursor(model, newest=True)
            other = Look("other", StreamId(base, 0), StreamId(1, 0), StreamId(5, 0), 5, 5)
            self.assertEqual(cursor.compare(other), Break(None, new_epoch=True))
            self.assertEqual((cursor.at, cursor.epoch), (StreamId(base, 0), "other"))
            cursor.advance(StreamId(5, 0), 5 - base)
            self.assertIsNone(cursor.compare(other))

    def test_another_stream_with_higher_ids_is_read_on(self) -> None:
        """Some of it may have been read already: nothing is read twice."""
        model = Model()
        model.add(9)
        cursor = self.cursor(model, newest=True)
        other = Look("other", ORIGIN, StreamId(10, 0), StreamId(12, 0), 3, 3)
        self.assertEqual(cursor.compare(other), Break(None, new_epoch=True))
        self.assertEqual(cursor.at, StreamId(9, 0))

    def test_an_id_far_in_the_future(self) -> None:
        """The largest id is a place like another: nothing comes after it, and that is no gap."""
        model = Model()
        model.add(3)
        cursor = self.cursor(model)
        model.added, model.last = 4, LARGEST
        model.entries.append(LARGEST)
        cursor.advance(StreamId(LARGEST, 0), 4)
        self.assertIsNone(cursor.compare(model.look()))


class CountTest(SynchronousTestCase):
    def test_the_next_batch_fits_the_budget(self) -> None:
        """As many as the last ones' size allows, between one and the most."""
        self.assertEqual(next_count(100, 100 * 1000, most=128, budget_bytes=50_000), 50)
        self.assertEqual(next_count(100, 0, most=128, budget_bytes=50_000), 128)
        self.assertEqual(next_count(1, 10**9, most=128, budget_bytes=50_000), 1)
