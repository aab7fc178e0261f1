"""Responses as bytes."""

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.errors import TABLE, Refused
from gatewayd.http.message import Request, Response, accepted, refusal, render, wants_problem
from gatewayd.times import Wall

NOW = Wall(1_700_000_000.5)


def body_of(response: Response) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(response.body)
    return members


class RenderTests(SynchronousTestCase):
    """One answer, in one piece."""

    def test_head_and_body(self) -> None:
        """Common headers, the length, the correlation id, the further lines, then the body."""
        made = Response(200, b"{}", headers=((b"Allow", b"GET"),), corr_id="req_1")
        assert render(made, keep_alive=True) == (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nCache-Control: no-store\r\n"
            b"X-Content-Type-Options: nosniff\r\nX-Correlation-ID: req_1\r\nAllow: GET\r\n\r\n{}"
        )

    def test_connection(self) -> None:
        """The connection is said to close, or, to an old client, to stay."""
        assert b"\r\nConnection: close\r\n\r\n" in render(Response(200), keep_alive=False)
        assert b"\r\nConnection: keep-alive\r\n\r\n" in render(Response(200), keep_alive=True, http_1_0=True)
        assert b"Connection" not in render(Response(200), keep_alive=True)

    def test_head_only(self) -> None:
        """HEAD leaves the body out and keeps its length."""
        made = render(Response(200, b"12345"), keep_alive=True, head_only=True)
        assert made.endswith(b"\r\n\r\n")
        assert b"Content-Length: 5\r\n" in made

    def test_no_server_version(self) -> None:
        """Nothing says which software answers."""
        assert b"Server" not in render(Response(200), keep_alive=True)


class RefusalTests(SynchronousTestCase):
    """Refusals as answers."""

    def test_every_code(self) -> None:
        """Every code has its members, its status and a text; 429 and 503 have Retry-After."""
        for code, row in TABLE.items():
            for status in row.statuses or (row.status,):
                made = refusal(Refused(code, {"reason": "x"}, status=status), "req_1", NOW)
                members = body_of(made)
                assert set(members) == {"error", "code", "message", "corr_id", "timestamp", "details"}
                assert members["code"] == made.code == code
                assert members["timestamp"] == "2023-11-14T22:13:20.500Z"
                assert made.status == status
                assert (b"Retry-After" in dict(made.headers)) == (status in (429, 503)), code
                assert render(made, keep_alive=True).startswith(b"HTTP/1.1 %d " % status)

    def test_retry_after_is_rounded_up(self) -> None:
        """The wait is the real one in whole seconds, never less than it and never under 1."""
        for wait, said in ((None, b"1"), (0.0, b"1"), (0.01, b"1"), (1.0, b"1"), (1.01, b"2"), (300.0, b"300")):
            made = refusal(Refused("GW-004", retry_after=wait), "req_1", NOW)
            assert dict(made.headers)[b"Retry-After"] == said
            assert body_of(made)["details"]["retry_after_seconds"] == int(said)

    def test_slug_by_status(self) -> None:
        """404 and 405 share a code and differ in their word."""
        assert body_of(refusal(Refused("GW-017"), "r", NOW))["error"] == "not_found"
        assert body_of(refusal(Refused("GW-017", status=405), "r", NOW))["error"] == "method_not_allowed"

    def test_problem(self) -> None:
        """Asked for, the same members come as application/problem+json."""
        asked = Request(b"POST", b"/", {b"accept": b"Application/Problem+JSON, */*"})
        assert wants_problem(asked)
        assert not wants_problem(Request(b"POST", b"/", {b"accept": b"*/*"}))
        made = refusal(Refused("GW-005", {"a": 1}), "req_1", NOW, problem=True)
        assert made.content_type == b"application/problem+json"
        members = body_of(made)
        assert (members["status"], members["type"], members["details"]) == (503, "urn:gatewayd:GW-005", {"a": 1})
        assert members["title"] == members["message"]

    def test_logged_members_stay_inside(self) -> None:
        """What is for the log only is not in the answer."""
        made = refusal(Refused("GW-005", logged={"inner": "detail"}), "req_1", NOW)
        assert b"inner" not in made.body
        assert made.logged == {"inner": "detail"}


class AcceptedTests(SynchronousTestCase):
    """The 202."""

    def test_members(self) -> None:
        """A first acceptance, and a duplicate with its header."""
        first = accepted("req_1", 'a"b', NOW, duplicate=False, source="custom", instrument="ES1!")
        assert body_of(first) == {
            "status": "accepted",
            "corr_id": "req_1",
            "idempotency_key": 'a"b',
            "timestamp": "2023-11-14T22:13:20.500Z",
            "duplicate": False,
        }
        again = accepted("req_1", "k", NOW, duplicate=True, source="custom", instrument="ES1!")
        assert body_of(again)["duplicate"] is True
        assert b"Idempotent-Replayed: true\r\n" in render(again, keep_alive=True)
        assert b"Idempotent-Replayed" not in render(first, keep_alive=True)


class RequestTests(SynchronousTestCase):
    """What leaves see of a request."""

    def test_target(self) -> None:
        """Path and query are the target's bytes, not decoded."""
        made = Request(b"GET", b"/a%20b?x=1?y", {})
        assert (made.path, made.query) == (b"/a%20b", b"x=1?y")

    def test_values(self) -> None:
        """All values of a repeated name, in order."""
        made = Request(b"GET", b"/", {b"a": b"1", b"b": b"2"}, repeated={b"b": [b"2", b"3"]})
        assert (made.values(b"a"), made.values(b"b"), made.values(b"c")) == ([b"1"], [b"2", b"3"], [])
