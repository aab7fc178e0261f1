"""Requests: which answer belongs to whom, and that nobody waits for ever."""

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.publication import Cause, Unpublished
from gatewayd.bus.requests import Answer, Reply, Requests, frame


class RequestsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.bugs: list[Exception] = []
        self.answers: list[Answer] = []
        self.requests = Requests(self.bugs.append, limit=3)

    def test_each_answer_goes_to_its_request_once(self) -> None:
        """Answers come in any order; one that nobody waits for is dropped."""
        first, second = (self.requests.add(10.0, self.answers.append) for _ in range(2))
        assert first is not None
        assert second is not None
        self.requests.answer(second, {"A": "b"}, b"two")
        self.requests.answer(second, None, b"two again")
        self.requests.answer("r99", None, b"nobody's")
        self.requests.answer(first, {"Status": "404", "Description": "Message Not Found"}, b"")
        self.assertEqual(self.answers[0], Reply(b"two", {"A": "b"}))
        assert isinstance(self.answers[1], Reply)
        self.assertEqual(self.answers[1].status, 404)
        self.assertEqual(len(self.requests), 0)

    def test_deadlines(self) -> None:
        """A request ends at its own deadline, whatever the order they were made in."""
        self.requests.add(10.0, self.answers.append)
        self.requests.add(5.0, self.answers.append)
        self.requests.sweep(5.0)
        self.assertEqual(self.answers, [Unpublished(Cause.TIMEOUT, "no answer in time")])
        self.assertEqual(len(self.requests), 1)

    def test_the_bound(self) -> None:
        """Beyond the bound there is no token; an end makes room."""
        tokens = [self.requests.add(10.0, self.answers.append) for _ in range(4)]
        self.assertIsNone(tokens[3])
        assert tokens[0] is not None
        self.requests.answer(tokens[0], None, b"")
        self.assertIsNotNone(self.requests.add(10.0, self.answers.append))

    def test_a_disconnect_ends_all_and_a_waiter_that_raises_harms_nobody(self) -> None:
        """Everybody is told, also after one that raised."""

        def broken(_: Answer) -> None:
            raise ZeroDivisionError

        self.requests.add(10.0, broken)
        self.requests.add(10.0, self.answers.append)
        self.requests.disconnect("gone")
        self.assertEqual(self.answers, [Unpublished(Cause.DISCONNECTED, "gone")])
        self.assertEqual(len(self.bugs), 1)

    def test_a_status_that_is_no_number(self) -> None:
        """Whatever a header called Status holds, the answer arrives."""
        for text in ("", "²", "-1", "abc"):
            token = self.requests.add(10.0, self.answers.append)
            assert token is not None
            self.requests.answer(token, {"Status": text}, b"x")
            answer = self.answers.pop()
            assert isinstance(answer, Reply)
            self.assertEqual((answer.status, answer.body), (0, b"x"))

    def test_who_gives_up_is_not_told(self) -> None:
        """A dropped request makes room at once, and its answer finds nobody."""
        tokens = [self.requests.add(10.0, self.answers.append) for _ in range(3)]
        assert tokens[1] is not None
        self.requests.drop(tokens[1])
        self.requests.drop(tokens[1])
        self.assertEqual(len(self.requests), 2)
        self.requests.answer(tokens[1], None, b"late")
        self.requests.sweep(11.0)
        self.assertEqual(len(self.answers), 2)


class FrameTests(SynchronousTestCase):
    def test_frames(self) -> None:
        """PUB without headers, HPUB with them; the sizes are those of the block with its version line, and of all."""
        self.assertEqual(frame(b"a.b", b"_I.x.r1", b"\x00\r\n"), b"PUB a.b _I.x.r1 3\r\n\x00\r\n\r\n")
        self.assertEqual(
            frame(b"a.b", b"_I.x.r1", b"xyz", b"A: 1\r\nB: 2\r\n"),
            b"HPUB a.b _I.x.r1 24 27\r\nNATS/1.0\r\nA: 1\r\nB: 2\r\n\r\nxyz\r\n",
        )

    def test_a_block_cannot_end_early(self) -> None:
        """Headers that would end the block before its end, or not at all, are a bug and raise."""
        for headers in (b"A: 1", b"\r\nA: 1\r\n", b"A: 1\r\n\r\nB: 2\r\n"):
            self.assertRaises(ValueError, frame, b"a", b"b", b"", headers)
