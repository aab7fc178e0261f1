"""What is kept for those who come back."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.frames import Event, EventSigner
from gatewayd.push.position import Position
from gatewayd.push.ring import Entry, Ring
from gatewayd.sessions.signing import event_input

SIGNER = EventSigner(lambda signed: bytes(64), event_input)


def entry(at: int, key: str, payload: bytes = b"") -> Entry:
    event = Event(SIGNER, event_type="a", event_id="b", timestamp_ms=at, payload=payload, position="")
    return Entry(event, Position(), (at, 0), at, key=key)


class RingTest(SynchronousTestCase):
    """The ring."""

    @given(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 2000)), max_size=60),
        st.integers(1, 12),
        st.integers(0, 70),
    )
    def test_model(self, published: list[tuple[str, int, int]], most: int, after: int) -> None:
        """Whatever comes: what is kept of a key behind a place is its tail, and the floor says from where on."""
        ring = Ring(most, 10.0, 20_000)
        kept: list[tuple[int, float, str, int]] = []
        now, floor = 0.0, 0
        for at, (key, seconds, size) in enumerate(published, 1):
            now += seconds
            one = entry(at, key, bytes(size))
            ring.append(one, now)
            kept.append((at, now, key, one.cost))
            while len(kept) > most or sum(cost for *_, cost in kept) > 20_000 or now - kept[0][1] > 10.0:
                floor = kept.pop(0)[0]
        self.assertEqual((len(ring), ring.floor[0]), (len(kept), floor))
        for key in "abc":
            expected = [at for at, _, owner, _ in kept if owner == key and at > after]
            self.assertEqual([one.at[0] for one in ring.after((after, 0), key)], expected)

    def test_age(self) -> None:
        """A quiet ring forgets too."""
        ring = Ring(10, 600.0, 10**6)
        ring.append(entry(1, "a"), 0.0)
        ring.append(entry(2, "a"), 500.0)
        ring.expire(700.0)
        self.assertEqual(([one.at for one in ring.after((0, 0), "a")], ring.floor), ([(2, 0)], (1, 0)))

    def test_cleared(self) -> None:
        """Cleared, it begins at its new floor; an entry that a stream still holds holds nothing else."""
        ring = Ring(10, 600.0, 10**6)
        first = entry(1, "a")
        for one in (first, entry(2, "a"), entry(3, "b")):
            ring.append(one, 0.0)
        ring.clear((7, 0))
        ring.append(entry(8, "a"), 1.0)
        self.assertEqual(([one.at for one in ring.after((0, 0), "a")], ring.floor), ([(8, 0)], (7, 0)))
        small = Ring(1, 600.0, 10**6)
        small.append(first, 0.0)
        small.append(entry(2, "a"), 0.0)
        self.assertIsNone(first.later)

    def test_memory(self) -> None:
        """What an entry is counted for is at least what it takes, with every form of its event made."""
        for size in (0, 300, 5000):
            tracemalloc.start()
            kept = [entry(at, f"user-{at}", bytes(size)) for at in range(200)]
            for one in kept:
                self.assertTrue(one.event.grpc_message and one.event.websocket_frame and one.event.sse_frame)
            taken, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertLess(taken, sum(one.cost for one in kept))

    def test_bytes(self) -> None:
        """One that is larger than all may be is not kept, and nobody resumes from before it."""
        ring = Ring(10, 600.0, 5_000)
        ring.append(entry(1, "a"), 0.0)
        ring.append(entry(2, "a", bytes(10_000)), 0.0)
        self.assertEqual((len(ring), ring.floor), (0, (2, 0)))
