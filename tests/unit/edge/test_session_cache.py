"""Sessions in memory and in Redis: what is asked, what is believed, and that revoked is for ever."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.errors import Unavailable
from gatewayd.sessions.cache import MAX_LOOKUPS, SessionCache
from gatewayd.sessions.endings import SESSION_MALFORMED, UNAVAILABLE_NOW
from gatewayd.sessions.snapshots import write_key
from gatewayd.sessions.values import Session
from gatewayd.stores.redisreplies import RedisRefused
from gatewayd.times import Monotonic
from tests.edge_requests import SESSION, session
from tests.fakes.session_redis import FakeLink, Store

KEY = f"s:{SESSION}"
MARK = f"s:{SESSION} revoked"
REVOKED = session(revoked=True)


class World(SynchronousTestCase):
    """A cache on a store, with a session stream that is heard of."""

    def setUp(self) -> None:
        self.store = Store()
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.revoked: list[str] = []
        self.sizes: list[int] = [0]
        self.begin()

    def begin(self, bound: int = 100) -> None:
        """A new process."""
        self.link = FakeLink(self.store)
        self.cache = SessionCache(
            self.link,
            clock=self.clock,
            key_prefix="s:",
            on_revoked=self.revoked.append,
            on_size=self.sizes.append,
            bound=bound,
        )
        self.seen()

    def seen(self) -> None:
        self.cache.poller_seen(Monotonic(self.clock.seconds()))

    def later(self, seconds: float) -> None:
        """Time passes; the session stream is heard of meanwhile."""
        for _ in range(int(seconds)):
            self.clock.advance(1.0)
            self.seen()

    def look(self, name: str = SESSION) -> Any:
        """What a request gets, at once."""
        found = self.cache.fresh(name)
        return self.successResultOf(self.cache.read(name)) if found is None else found

    def put(self, of: Session) -> None:
        """Somebody else writes a session's key."""
        self.store.values[f"s:{of.device_session_id}"] = write_key(of)


class LookupTests(World):
    """At use."""

    def test_three_answers(self) -> None:
        """Unknown, malformed and unreachable are told apart."""
        self.assertIsNone(self.look())
        self.store.values[KEY] = b"{"
        self.assertIs(self.look(), SESSION_MALFORMED)
        self.link.down = Unavailable("away")
        self.assertIs(self.look(), UNAVAILABLE_NOW)
        self.link.down = None
        self.put(session())
        self.assertEqual(self.look(), session())

    def test_memory(self) -> None:
        """For 5 s after Redis was asked it is not asked again; then it is, and what it says holds."""
        self.put(session())
        self.look()
        asked = len(self.store.seen)
        self.later(5)
        self.assertEqual(self.look(), session())
        self.assertEqual(len(self.store.seen), asked)
        self.later(1)
        self.put(session(user="user-2"))
        self.assertEqual(self.look(), session(user="user-2"))
        del self.store.values[KEY]
        self.later(6)
        self.assertIsNone(self.look())
        self.assertEqual(self.sizes[-1], 0)

    def test_age_counts_from_the_question(self) -> None:
        """An answer is as old as its question, however long it took."""
        self.put(session())
        self.link.held = True
        waiting = self.cache.read(SESSION)
        self.later(4)
        self.link.answer(0)
        self.assertEqual(self.successResultOf(waiting), session())
        self.later(1)
        self.assertIsNotNone(self.cache.fresh(SESSION))
        self.later(1)
        self.assertIsNone(self.cache.fresh(SESSION))

    def test_unknown_is_not_remembered(self) -> None:
        """A session that is written after it was asked for is found at once."""
        self.assertIsNone(self.look())
        self.put(session())
        self.assertEqual(self.look(), session())

    def test_one_question_for_all(self) -> None:
        """All who ask for one session at once share one command; one that gives up leaves the others alone."""
        self.put(session())
        self.link.held = True
        waiting = [self.cache.read(SESSION) for _ in range(50)]
        other = self.cache.read("another")
        self.assertEqual(len(self.link.waiting), 2)
        for cancelled in waiting[::2]:
            cancelled.addErrback(lambda _: None)
            cancelled.cancel()
        self.link.answer(0)
        for left in waiting[1::2]:
            self.assertEqual(self.successResultOf(left), session())
        self.assertNoResult(other)
        self.link.answer(0)
        self.assertIsNone(self.successResultOf(other))

    def test_all_give_up(self) -> None:
        """When nobody waits any more the answer is kept all the same, and asked anew later."""
        self.put(session())
        self.link.held = True
        waiting = self.cache.read(SESSION)
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        self.link.answer(0)
        self.assertEqual(self.cache.fresh(SESSION), session())

    def test_bound_of_questions(self) -> None:
        """More sessions than the bound are not asked for at once."""
        self.link.held = True
        for number in range(MAX_LOOKUPS):
            self.cache.read(f"unknown-{number}")
        self.assertIs(self.successResultOf(self.cache.read("one-more")), UNAVAILABLE_NOW)
        self.link.answer(0)
        self.assertNoResult(self.cache.read("one-more"))

    def test_bound_of_sessions(self) -> None:
        """Past the bound the session used longest ago is forgotten, and read again at use."""
        self.begin(bound=2)
        for name in ("one", "two", "three"):
            self.put(session(name))
        self.look("one")
        self.look("two")
        self.look("one")
        self.look("three")
        self.assertEqual(self.sizes[-1], 2)
        self.assertIsNone(self.cache.fresh("two"))
        self.assertIsNotNone(self.cache.fresh("one"))
        self.assertEqual(self.look("two"), session("two"))

    def test_refusal_is_not_an_answer(self) -> None:
        """A server that refuses the command is as one that is away, and is logged."""
        self.link.down = RedisRefused("ERR", "ERR no")
        with capturedLogs() as logged:
            self.assertIs(self.look(), UNAVAILABLE_NOW)
        self.assertEqual([event["event"] for event in logged], ["edge.sessions_refused"])


class SilenceTests(World):
    """The session stream's reader."""

    def test_fail_closed(self) -> None:
        """Nobody passes before the stream was heard of, nor after 5 s without it; then again, once confirmed."""
        self.put(session())
        self.assertEqual(self.look(), session())
        self.clock.advance(5.0)
        self.assertIsNot(self.cache.fresh(SESSION), UNAVAILABLE_NOW)
        self.clock.advance(0.1)
        self.assertIs(self.cache.fresh(SESSION), UNAVAILABLE_NOW)
        self.assertIs(self.cache.fresh("unknown"), UNAVAILABLE_NOW)
        self.seen()
        self.assertIsNone(self.cache.fresh(SESSION))
        self.assertEqual(self.look(), session())
        fresh = SessionCache(
            self.link, clock=self.clock, key_prefix="s:", on_revoked=self.revoked.append, on_size=self.sizes.append
        )
        self.assertIs(fresh.fresh(SESSION), UNAVAILABLE_NOW)

    def test_revoked_all_the_same(self) -> None:
        """What is known to be revoked is said to be, also in silence."""
        self.cache.apply([REVOKED])
        self.clock.advance(60.0)
        self.assertEqual(self.cache.fresh(SESSION), REVOKED)

    def test_cold_after_silence(self) -> None:
        """What was confirmed just before a silence is not believed in it, and is confirmed again after it."""
        self.put(session())
        self.clock.advance(3.0)
        self.look()
        self.clock.advance(2.5)
        self.assertIs(self.cache.fresh(SESSION), UNAVAILABLE_NOW)
        self.seen()
        self.assertIsNone(self.cache.fresh(SESSION))


class SnapshotTests(World):
    """Snapshots as they are consumed."""

    def test_active(self) -> None:
        """An active snapshot is written under the key first, and known then."""
        self.link.held = True
        done = self.cache.apply([session()])
        self.assertIsNone(self.cache.fresh(SESSION))
        self.link.answer(0)
        self.assertIsNone(self.successResultOf(done))
        self.assertEqual(self.cache.fresh(SESSION), session())
        self.assertEqual(self.store.values, {KEY: write_key(session())})

    def test_revoked(self) -> None:
        """A revocation is known, and said, before anything is written; it is written with its mark."""
        self.link.held = True
        done = self.cache.apply([session("one"), REVOKED])
        self.assertEqual(self.revoked, [SESSION])
        self.assertEqual(self.cache.fresh(SESSION), REVOKED)
        self.assertNoResult(done)
        self.link.answer(0)
        self.successResultOf(done)
        self.assertEqual(self.store.values[KEY], write_key(REVOKED))
        self.assertEqual(self.store.values[MARK], write_key(REVOKED))

    def test_said_once(self) -> None:
        """A session that was known to be revoked is not said to be again."""
        for _ in range(3):
            self.cache.apply([REVOKED])
        self.assertEqual(self.revoked, [SESSION])

    def test_later_active_snapshot(self) -> None:
        """A revoked session stays so, whatever snapshot follows, in this process and in the next ones."""
        self.cache.apply([REVOKED])
        self.cache.apply([session()])
        self.assertEqual(self.look(), REVOKED)
        self.begin()
        self.cache.apply([session()])
        self.assertEqual(self.look(), REVOKED)
        self.begin()
        self.assertEqual(self.look(), REVOKED)

    def test_somebody_elses_key(self) -> None:
        """A key that somebody else writes over as active revives nobody."""
        self.cache.apply([REVOKED])
        self.put(session())
        self.begin()
        self.assertEqual(self.look(), REVOKED)
        self.store.values.pop(KEY)
        self.begin()
        self.assertEqual(self.look(), REVOKED)

    def test_revoked_by_its_key(self) -> None:
        """A revocation that is only seen under the key is said, and kept from then on."""
        self.put(session())
        self.look()
        self.put(REVOKED)
        self.later(6)
        self.assertEqual(self.look(), REVOKED)
        self.assertEqual(self.revoked, [SESSION])
        self.put(session())
        self.begin()
        self.assertEqual(self.look(), REVOKED)

    def test_mark_alone(self) -> None:
        """A mark that holds no snapshot says revoked all the same."""
        self.put(session())
        self.store.values[MARK] = b"1"
        self.assertEqual(self.look(), Session(SESSION, "", b"", None, True))
        self.begin()
        self.cache.apply([session()])
        self.assertTrue(self.cache.revoked(SESSION))

    def test_answer_on_its_way(self) -> None:
        """A look-up whose answer was on its way when the revocation came gets the revocation."""
        self.put(session())
        self.link.held = True
        waiting = self.cache.read(SESSION)
        self.link.execute(0)
        self.cache.apply([REVOKED])
        self.link.answer(0)
        self.assertEqual(self.successResultOf(waiting), REVOKED)

    def test_forgotten_meanwhile(self) -> None:
        """Also when the revoked entry has been forgotten again since, and when the look-up comes after that."""
        self.begin(bound=1)
        self.put(session())
        self.link.held = True
        waiting = self.cache.read(SESSION)
        self.link.execute(0)
        self.cache.apply([REVOKED])
        self.cache.apply([session("other", revoked=True)])
        self.assertEqual(self.cache.fresh(SESSION), REVOKED)
        self.link.answer(0)
        self.assertEqual(self.successResultOf(waiting), REVOKED)

    def test_redis_away(self) -> None:
        """A snapshot is written when Redis is back, at most a second later; what waits is heard of by its Deferred."""
        self.link.down = Unavailable("away")
        done = self.cache.apply([REVOKED, session("one")])
        self.clock.pump([0.5] * 20)
        self.assertNoResult(done)
        self.assertEqual(self.cache.fresh(SESSION), REVOKED)
        self.link.down = None
        self.clock.advance(1.0)
        self.successResultOf(done)
        self.assertIn(MARK, self.store.values)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_and_cancel(self) -> None:
        """A snapshot that waits for Redis is given up by stop() and by cancelling, and leaves nothing behind."""
        self.link.down = Unavailable("away")
        first, second = self.cache.apply([REVOKED]), self.cache.apply([session("one")])
        second.addErrback(lambda _: None)
        second.cancel()
        self.cache.stop()
        self.successResultOf(first)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.link.down = None
        self.put(session("one"))
        self.assertEqual(self.look("one"), session("one"))

    def test_refused(self) -> None:
        """Snapshots that the server refuses are given up, loudly; a revocation holds in memory all the same."""
        self.link.down = RedisRefused("ERR", "ERR script")
        with capturedLogs() as logged:
            self.successResultOf(self.cache.apply([REVOKED, session("one")]))
        self.assertEqual([event["event"] for event in logged], ["edge.sessions_refused"])
        self.assertEqual(self.cache.fresh(SESSION), REVOKED)
        self.assertIsNone(self.cache.fresh("one"))

    def test_pages(self) -> None:
        """Many snapshots go in pages, one after the other."""
        self.link.held = True
        done = self.cache.apply([session(f"s-{number}") for number in range(250)])
        for _ in range(3):
            self.assertEqual(len(self.link.waiting), 1)
            self.link.answer(0)
        self.successResultOf(done)
        self.assertEqual(len(self.store.values), 250)


class GapTests(World):
    """After entries were missed."""

    def test_all_is_read_again(self) -> None:
        """Nothing is believed unconfirmed; what was revoked meanwhile is found, also of sessions not in memory."""
        for name in ("one", "two", "three"):
            self.put(session(name))
        self.look("one")
        self.look("two")
        self.put(session("two", revoked=True))
        self.put(session("three", revoked=True))
        self.link.held = True
        done = self.cache.gap(["three"])
        self.assertIsNone(self.cache.fresh("one"))
        self.link.held = False
        self.link.answer(0)
        self.successResultOf(done)
        self.assertEqual(self.revoked, ["two", "three"])
        self.assertEqual(self.cache.fresh("one"), session("one"))

    def test_redis_away(self) -> None:
        """The keys are read once Redis is back; until then nobody is believed."""
        self.put(session())
        self.look()
        self.link.down = Unavailable("away")
        done = self.cache.gap()
        self.clock.pump([0.5] * 4)
        self.assertNoResult(done)
        self.assertIsNone(self.cache.fresh(SESSION))
        self.link.down = None
        self.clock.advance(1.0)
        self.successResultOf(done)
        self.assertEqual(self.cache.fresh(SESSION), session())


STEPS = st.tuples(
    st.sampled_from(
        [
            *("snapshot", "snapshot", "snapshot", "look", "look", "look", "look", "foreign", "foreign"),
            *("execute", "execute", "answer", "lose", "settle", "wait", "delete", "gap", "restart"),
        ]
    ),
    st.sampled_from("abcdefgh"),  # a revocation ends the story of a name: many have more stories
    st.booleans(),
)


class Model:
    """
    One process after another on one store and one stream, and what each can know for certain about a session.

    `prompt`: Redis answers at once; else its commands wait for steps of their own.
    """

    def __init__(self, bound: int, *, prompt: bool) -> None:
        self.bound = bound
        self.prompt = prompt
        self.store = Store()
        self.clock = Clock()
        self.stream: list[Session] = []
        self.wrong: list[str] = []
        self.begin()

    def begin(self) -> None:
        """A new process, which reads the stream from its beginning; the last one's commands are lost."""
        self.said: set[str] = set()
        self.marked_before = {key.removesuffix(" revoked") for key in self.store.values if key.endswith(" revoked")}
        self.link = FakeLink(self.store)
        self.link.held = not self.prompt
        self.cache = SessionCache(
            self.link,
            clock=self.clock,
            key_prefix="",
            on_revoked=self.said.add,
            on_size=lambda _: None,
            bound=self.bound,
        )
        self.cache.poller_seen(Monotonic(self.clock.seconds()))
        self.consume(self.stream)

    def consume(self, sessions: list[Session]) -> None:
        """Snapshots come from the stream."""
        self.cache.apply(sessions).addErrback(lambda _: None)
        self.said |= {of.device_session_id for of in sessions if of.revoked}

    def marked(self, name: str) -> bool:
        return f"{name} revoked" in self.store.values

    def told(self, found: Any, name: str, *, certain: bool) -> None:
        """A look-up ended; it must not give a session as active that was revoked for certain when it began, or now."""
        active = isinstance(found, Session) and not found.revoked
        if active and (certain or name in self.said):
            self.wrong.append(name)

    def look(self, name: str) -> None:
        certain = name in self.said or self.marked(name)
        found = self.cache.fresh(name)
        if found is None:
            asked = self.cache.read(name)
            asked.addCallbacks(lambda answer: self.told(answer, name, certain=certain), lambda _: None)
        else:
            # Memory may not know yet of a mark that a command of its own has just set.
            self.told(found, name, certain=name in self.marked_before)

    def restart(self, *, trimmed: bool) -> None:
        """The process ends; `trimmed`: meanwhile the stream has lost what was written."""
        self.cache.stop()
        if trimmed:
            self.stream = [of for of in self.stream if of.revoked and not self.marked(of.device_session_id)]
        self.begin()

    def step(self, what: str, name: str, *, flag: bool) -> None:
        waiting = len(self.link.waiting)
        number = 0 if flag else waiting - 1
        match what:
            case "snapshot":
                self.stream.append(session(name, revoked=flag))
                self.consume(self.stream[-1:])
            case "look":
                self.look(name)
            case "foreign":
                self.store.values[name] = write_key(session(name, revoked=flag))
            case "delete":
                self.store.values.pop(name, None)
            case "execute" if waiting:
                self.link.execute(number)
            case "answer" if waiting:
                self.link.answer(number)
            case "lose" if waiting:
                self.link.lose(number)
            case "settle":
                self.settle()
            case "wait":
                self.clock.advance(6.0 if flag else 0.2)
                self.cache.poller_seen(Monotonic(self.clock.seconds()))
            case "gap":
                self.cache.gap(("a",)).addErrback(lambda _: None)
            case "restart":
                self.restart(trimmed=flag)

    def settle(self) -> None:
        """Redis answers everything."""
        while self.link.waiting:
            self.link.answer(0)


class ForEver(SynchronousTestCase):
    """Once revoked, never active."""

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(STEPS, min_size=40, max_size=100), st.sampled_from((1, 100)), st.booleans())
    def test_any_order(self, steps: list[tuple[str, str, bool]], bound: int, prompt: bool) -> None:
        """
        Snapshots, look-ups, other writers' keys, answers that come late, twisted or never, forgotten entries, gaps and
        restarts in any order: from the moment on in which a session's revocation was consumed or found, no look-up
        that begins or ends gives it as active; and once Redis has the mark, none of any later process.
        """
        model = Model(bound, prompt=prompt)
        for what, name, flag in steps:
            model.step(what, name, flag=flag)
        model.settle()
        self.assertEqual(model.wrong, [])
