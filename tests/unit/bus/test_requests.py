"""Requests: which answer belongs to whom, and that nobody waits for ever."""

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.publication import Cause, Unpublished
from gatewayd.bus.requests import Answer, Reply, Requests


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
