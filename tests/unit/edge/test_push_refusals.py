"""Endings as HTTP answers and as close frames."""

import json
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.http.message import render
from gatewayd.push.inbound import close_frame
from gatewayd.push.refusals import Problem, answer, close_reason, problem_of
from gatewayd.sessions import endings
from gatewayd.sessions.endings import Ending, malformed
from tests.fakes.connection import read_answers
from tests.websockets import frames_in

EVERY = [value for value in vars(endings).values() if isinstance(value, Ending)]


class RefusalTests(SynchronousTestCase):
    def test_statuses(self) -> None:
        """Each ending has the HTTP status that its client can act on."""
        wanted = {
            "malformed": 400,
            "version": 400,
            "stale": 400,
            "authentication": 401,
            "revoked": 403,
            "replay": 409,
            "limit": 429,
            "no_route": 501,
            "unavailable": 503,
            "shutdown": 503,
            "deadline": 504,
            "internal": 500,
        }
        found = {ending.reason: problem_of(ending).status for ending in [*EVERY, malformed("signature")]}
        self.assertEqual({reason: found[reason] for reason in wanted}, wanted)
        self.assertGreater(len(EVERY), 12)

    def test_body(self) -> None:
        """Every refusal has one shape, and 429 and 503 say when to come back, rounded up."""
        for ending in EVERY:
            for wait_ms, seconds in ((None, "1"), (1, "1"), (1001, "2")):
                problem = problem_of(Ending(*_members(ending), retry_after_ms=wait_ms))
                (read,) = read_answers(render(answer(problem, "req_1"), keep_alive=True))
                error = {"code": ending.reason, "message": ending.message}
                if wait_ms is not None:
                    error["retry_after_ms"] = wait_ms  # type: ignore[assignment]
                self.assertEqual(json.loads(read.body), {"error": error})
                self.assertEqual(read.headers.get("retry-after"), seconds if read.status in (429, 503) else None)
                self.assertEqual(read.headers["x-correlation-id"], "req_1")

    def test_documents(self) -> None:
        """Whoever writes a client reads of every close code and of every word, with its status, that a POST may get."""
        page = (Path(__file__).parents[3] / "docs/clients/README.md").read_text()
        rows = dict(re.findall(r"^\| ([0-9, ]+)(?:, with Retry-After)? \| (.*) \|$", page, re.MULTILINE))
        statuses = {status: words for key, words in rows.items() for status in key.split(", ")}
        commands_only = {"upstream", "deadline", "overflow"}
        for ending in [*EVERY, malformed("signature")]:
            self.assertIn(str(ending.close_code), statuses)
            if ending.reason not in commands_only:
                self.assertIn(f"`{ending.reason}`", statuses[str(problem_of(ending).status)], ending)

    def test_headers(self) -> None:
        """A problem's own headers and those of the page that asks stand in the answer."""
        problem = Problem(405, "method_not_allowed", "GET or POST", ((b"Allow", b"GET, POST"),))
        made = answer(problem, "req_1", ((b"Vary", b"Origin"),))
        self.assertEqual(made.headers, ((b"Allow", b"GET, POST"), (b"Vary", b"Origin")))

    def test_close_reasons(self) -> None:
        """A close frame fits its 125 bytes whatever ends the stream, and says when to come back."""
        long = Ending("malformed", 3, 1008, "x" * 200, 2**31)
        for ending in [*EVERY, malformed("device_session_id"), long]:
            (frame,) = frames_in(close_frame(ending.close_code, close_reason(ending)))
            self.assertLessEqual(len(frame.payload), 125)
            self.assertEqual(frame.code, ending.close_code)
        later = Ending(*_members(endings.SHUTTING_DOWN), retry_after_ms=1500)
        self.assertEqual(close_reason(later), b"gateway is shutting down; retry_after_ms=1500")


def _members(ending: Ending) -> tuple[str, int, int, str]:
    return ending.reason, ending.grpc_status, ending.close_code, ending.message
