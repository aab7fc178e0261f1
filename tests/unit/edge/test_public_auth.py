"""The public authentication paths: who may ask how often, what is forwarded, and what comes back."""

import json
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.address_gate import AddressGate
from gatewayd.answers import Answers
from gatewayd.commands.auth_requests import ADDRESS, MAX_BODY_BYTES, STOPPING
from gatewayd.commands.breaker import FAILURES
from gatewayd.commands.public_auth import UNDER_WAY, AuthService, PublicAuth, in_this_shape
from gatewayd.commands.received import Cause, Received, Unanswered
from gatewayd.errors import Refused
from gatewayd.http.message import Request, Response
from gatewayd.ingress.sources import make_rules
from gatewayd.push.refusals import Problem
from gatewayd.times import Monotonic, Wall
from tests.unit.settings_case import HOME, load_from

SEND, CONFIRM = b"/api/v1/public/auth/send-email-code", b"/api/v1/public/auth/confirm-email-code"
CLIENT, PROXY = "192.0.2.7", "127.0.0.1"
OK = Received(200, {b"content-type": b"application/json"}, b'{"challenge_id":"c-1"}')


class Service:
    """The HTTP client, as the test wants it; what was posted is kept."""

    def __init__(self) -> None:
        self.said: Received | Unanswered | None = OK
        self.posted: list[tuple[str, dict[str, str], bytes, float]] = []

    def post(self, url: str, headers: Any, body: bytes, deadline_s: float) -> Deferred[Received | Unanswered]:
        self.posted.append((url, dict(headers), body, deadline_s))
        return Deferred() if self.said is None else succeed(self.said)


class PublicAuthCase(SynchronousTestCase):
    """The leaf, with a service behind it unless a test takes it away."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.upstream = Service()
        self.complaints: list[str] = []
        self.closed: Problem | None = None
        self.leaf = self.make(
            AuthService("http://auth/base", self.upstream, now=self.now, complain=self.complaints.append)
        )

    def make(self, service: AuthService | None) -> PublicAuth:
        loaded = load_from({**HOME, "TRUSTED_PROXIES": f"{PROXY}/32", "RATE_LIMIT_EXEMPT_CIDRS": "198.51.100.0/24"})
        assert loaded.settings is not None
        rules = make_rules(loaded.settings)
        gate = AddressGate(lambda: rules, self.now, ADDRESS)
        return PublicAuth(service, gate, closed=lambda: self.closed, now=self.now)

    def now(self) -> Monotonic:
        return Monotonic(self.clock.seconds())

    def begin(
        self, path: bytes = SEND, method: bytes = b"POST", peer: str = CLIENT, **headers: bytes
    ) -> tuple[Request, Response | int]:
        found = {b"content-type": b"application/json"}
        found |= {name.replace("_", "-").encode(): value for name, value in headers.items()}
        request = Request(method, path, found, peer=peer)
        return request, self.leaf.begin(request)

    def ask(self, body: object, path: bytes = SEND, peer: str = CLIENT, **headers: bytes) -> Response:
        """The answer to a request that must have one."""
        request, begun = self.begin(path, peer=peer, **headers)
        if isinstance(begun, Response):
            return begun
        request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        answered = self.leaf.answer(request)
        if isinstance(answered, Deferred):
            answered = self.successResultOf(answered)
        assert isinstance(answered, Response)
        return answered

    def assert_error(self, response: Response | int, status: int, code: str, *, waits: int | None = None) -> None:
        assert isinstance(response, Response)
        self.assertEqual(response.status, status)
        members = json.loads(response.body)
        self.assertEqual(list(members), ["error"])
        self.assertEqual(members["error"]["code"], code)
        self.assertTrue(members["error"]["message"])
        headers = dict(response.headers)
        self.assertEqual(headers.get(b"Retry-After"), None if waits is None else b"%d" % waits)


class RefusedTest(PublicAuthCase):
    """What is refused, each in the same shape."""

    def test_without_a_service(self) -> None:
        """Without GATEWAY_AUTH_SERVICE_BASE_URL both paths are there and answer 503."""
        self.leaf = self.make(None)
        for path in (SEND, CONFIRM):
            request, begun = self.begin(path)
            self.assert_error(begun, 503, "service_unavailable", waits=1)
            answered = self.leaf.answer(request)
            assert isinstance(answered, Response)
            self.assert_error(answered, 503, "service_unavailable", waits=1)

    def test_paths_and_methods(self) -> None:
        """Another path is 404, another method 405 with Allow."""
        for path in (b"/api/v1/public/auth/", b"/api/v1/public/auth/login", SEND + b"/", SEND + b"x"):
            self.assert_error(self.begin(path)[1], 404, "not_found")
        for method in (b"GET", b"HEAD", b"PUT", b"OPTIONS"):
            response = self.begin(method=method)[1]
            self.assert_error(response, 405, "method_not_allowed")
            assert isinstance(response, Response)
            self.assertIn((b"Allow", b"POST"), response.headers)

    def test_sizes_and_types(self) -> None:
        """A body that says it is too long is refused by its head; so is what is no JSON."""
        self.assertEqual(self.begin(content_length=b"%d" % MAX_BODY_BYTES)[1], MAX_BODY_BYTES)
        for length in (b"%d" % (MAX_BODY_BYTES + 1), b"9" * 11):
            self.assert_error(self.begin(content_length=length)[1], 413, "payload_too_large")
        for media in (b"text/plain", b"application/x-www-form-urlencoded"):
            self.assert_error(self.begin(content_type=media)[1], 415, "unsupported_media_type")
        self.assert_error(self.begin(content_encoding=b"gzip")[1], 415, "unsupported_media_type")

    def test_bodies(self) -> None:
        """What is no strict object with the member that is limited never reaches the service, and is not repeated."""
        for body in (b"", b"[]", b"{", b'{"email":"a@b","email":"c@d"}', b'"a@b"', b"\xff", b"[" * 5000):
            self.assert_error(self.ask(body), 400, "invalid_request")
        for members in ({}, {"email": ""}, {"email": "  "}, {"email": 1}, {"email": ["a@b"]}, {"email": "a" * 255}):
            response = self.ask(members, peer="198.51.100.1")
            self.assert_error(response, 400, "invalid_request")
        self.assert_error(self.ask({"email": "a@b"}, CONFIRM, peer="198.51.100.1"), 400, "invalid_request")
        self.assertEqual(self.upstream.posted, [])

    def test_closed(self) -> None:
        """In maintenance, or while the gateway stops, nothing is taken; when to come back is said."""
        self.closed = STOPPING
        self.assert_error(self.begin()[1], 503, "service_unavailable", waits=1)

    def test_one_address(self) -> None:
        """Ten at once, then one a second; the header of a trusted proxy says whose address it is."""
        for number in range(10):
            self.assertEqual(self.ask({"email": f"{number}@x"}).status, 200)
        self.assert_error(self.ask({"email": "n@x"}), 429, "rate_limit_exceeded", waits=1)
        self.assertEqual(self.ask({"email": "n@x"}, peer="192.0.2.8").status, 200)
        self.assertEqual(self.ask({"email": "o@x"}, peer=PROXY, x_forwarded_for=b"192.0.2.9").status, 200)
        self.assertEqual(self.ask({"email": "o@x"}, peer=PROXY, x_forwarded_for=CLIENT.encode()).status, 429)
        self.clock.advance(1)
        self.assertEqual(self.ask({"email": "n@x"}).status, 200)

    def test_one_email(self) -> None:
        """Three at once, then one a minute, from whatever address, however the email is written."""
        ways = ("Ann@Example.com", " ann@example.com", "ANN@EXAMPLE.COM ")
        for number, email in enumerate(ways):
            self.assertEqual(self.ask({"email": email}, peer=f"192.0.2.{number}").status, 200)
        self.assert_error(
            self.ask({"email": "ann@example.com"}, peer="192.0.2.99"), 429, "rate_limit_exceeded", waits=60
        )
        self.assertEqual(self.ask({"email": "bob@example.com"}, peer="192.0.2.99").status, 200)
        self.clock.advance(60)
        self.assertEqual(self.ask({"email": "ann@example.com"}).status, 200)
        self.assertEqual(len(self.upstream.posted), 5)

    def test_one_challenge(self) -> None:
        """Codes for one challenge cannot be tried through: five at once, then one in ten seconds."""
        for number in range(5):
            code = {"challenge_id": "c-1", "code": f"{number:06}"}
            self.assertEqual(self.ask(code, CONFIRM, peer=f"192.0.2.{number}").status, 200)
        again = {"challenge_id": "c-1", "code": "000006"}
        self.assert_error(self.ask(again, CONFIRM, peer="192.0.2.77"), 429, "rate_limit_exceeded", waits=10)
        self.assertEqual(self.ask({"challenge_id": "C-1", "code": "1"}, CONFIRM, peer="192.0.2.77").status, 200)


class ForwardedTest(PublicAuthCase):
    """What reaches the service, and what comes back."""

    def test_the_request(self) -> None:
        """The very bytes, at the same path below the base; of the headers a list of ours, the address the client's."""
        body = b'{ "email" : "a@b.example", "extra": {"x": 1.50} }'
        response = self.ask(
            body,
            accept_language=b"de",
            user_agent=b"App/1",
            traceparent=b"00-1",
            authorization=b"Bearer secret",
            cookie=b"session=secret",
            connection=b"x-hop",
            x_hop=b"1",
            x_forwarded_for=b"203.0.113.1",
            x_real_ip=b"203.0.113.1",
            host=b"gw",
        )
        self.assertEqual((response.status, response.body), (200, OK.body))
        ((url, headers, sent, _),) = self.upstream.posted
        self.assertEqual((url, sent), (f"http://auth/base{SEND.decode()}", body))
        self.assertEqual(
            headers,
            {
                "Content-Type": "application/json",
                "X-Request-Id": response.corr_id,
                "X-Forwarded-For": CLIENT,
                "Accept-Language": "de",
                "User-Agent": "App/1",
                "Traceparent": "00-1",
            },
        )

    def test_headers_that_could_harm(self) -> None:
        """What is not plain text is left out."""
        self.ask({"email": "a@b"}, user_agent=b"\xe4", accept_language=b"x" * 257)
        self.assertEqual(set(self.upstream.posted[0][1]), {"Content-Type", "X-Request-Id", "X-Forwarded-For"})

    def test_answers(self) -> None:
        """2xx and 4xx go through, with what the service says of waiting; everything else becomes ours."""
        for said, status, code, waits in (
            (Received(201, {}, b"{}"), 201, None, None),
            (Received(204, {}, b""), 204, None, None),
            (Received(400, {}, b'{"error":{"code":"invalid_code"}}'), 400, None, None),
            (Received(429, {b"retry-after": b"30"}, b"{}"), 429, None, 30),
            (Received(429, {b"retry-after": b"soon"}, b"{}"), 429, None, 1),
            (Received(503, {b"retry-after": b"7"}, b"secret"), 503, "service_unavailable", 7),
            (Received(500, {}, b"secret traceback"), 502, "bad_gateway", None),
            (Received(302, {}, b""), 502, "bad_gateway", None),
            (Received(499, {}, b""), 502, "bad_gateway", None),
            (Received(999, {}, b""), 502, "bad_gateway", None),
            (Unanswered(Cause.DOWN, "refused"), 503, "service_unavailable", 1),
            (Unanswered(Cause.BROKEN, "broken"), 502, "bad_gateway", None),
            (Unanswered(Cause.TIMED_OUT, "late"), 504, "upstream_timeout", None),
        ):
            self.setUp()
            self.upstream.said = said
            response = self.ask({"email": "a@b"})
            if code is None:
                assert isinstance(said, Received)
                self.assertEqual((response.status, response.body), (status, said.body))
                self.assertEqual(dict(response.headers).get(b"Retry-After"), None if waits is None else b"%d" % waits)
            else:
                self.assert_error(response, status, code, waits=waits)
                self.assertNotIn(b"secret", response.body)

    def test_types(self) -> None:
        """The answer's own type goes through if it is one."""
        for given, wanted in (
            (b"application/problem+json; charset=utf-8", b"application/problem+json; charset=utf-8"),
            (b"text/html\x0b", b"application/octet-stream"),
            (b"", b"application/octet-stream"),
        ):
            self.upstream.said = Received(200, {b"content-type": given}, b"")
            self.assertEqual(self.ask({"email": f"{wanted!r}@b"}).content_type, wanted)
        self.upstream.said = Received(200, {}, b"")
        self.assertEqual(self.ask({"email": "c@b"}).content_type, b"application/json")

    def test_the_breaker(self) -> None:
        """A service that fails again and again is left alone, and clients are told when to come back."""
        self.upstream.said = Unanswered(Cause.DOWN, "refused")
        for number in range(FAILURES):
            self.ask({"email": f"{number}@b"})
        self.assertEqual(self.complaints, ["refused"] * FAILURES)
        self.assert_error(self.ask({"email": "a@b"}), 503, "service_unavailable", waits=1)
        self.assertEqual(len(self.upstream.posted), FAILURES)
        self.upstream.said = OK
        self.clock.advance(1)
        self.assertEqual(self.ask({"email": "a@b"}).status, 200)

    def test_clients_cannot_open_the_breaker(self) -> None:
        """Refusals of the service are answers of it."""
        self.upstream.said = Received(422, {}, b"{}")
        for number in range(3 * FAILURES):
            self.assertEqual(self.ask({"email": f"{number}@b"}, peer="198.51.100.1").status, 422)

    def test_places(self) -> None:
        """So many at once; more find the service unavailable, and who goes away makes room."""
        self.upstream.said = None
        waiting = []
        for number in range(UNDER_WAY):
            request, _ = self.begin(peer="198.51.100.1")
            request.body = json.dumps({"email": f"{number}@b"}).encode()
            answered = self.leaf.answer(request)
            assert isinstance(answered, Deferred)
            waiting.append(answered)
        self.assert_error(self.ask({"email": "a@b"}, peer="198.51.100.1"), 503, "service_unavailable", waits=1)
        waiting[0].cancel()
        self.failureResultOf(waiting[0])
        self.upstream.said = OK
        self.assertEqual(self.ask({"email": "b@b"}, peer="198.51.100.1").status, 200)


class ShapeTest(SynchronousTestCase):
    """What the channel refuses by itself."""

    def test_below_the_prefix(self) -> None:
        """Below the prefix in this shape, with the same status and Retry-After; elsewhere as ever."""
        refuse = in_this_shape(Answers(lambda: Wall(1.7e9)).refuse)
        for refused, code, waits in (
            (Refused("GW-008", {"max_size": 1}), "payload_too_large", None),
            (Refused("GW-015", {"reason": "syntax"}, status=408), "bad_request", None),
            (Refused("GW-010", {"reason": "buffer"}), "backpressure", b"1"),
        ):
            response = refuse(Request(b"POST", SEND, {}), refused)
            members = json.loads(response.body)["error"]
            self.assertEqual((response.status, members["code"]), (refused.http_status, code))
            self.assertEqual(response.code, refused.code)
            self.assertEqual(dict(response.headers).get(b"Retry-After"), waits)
            for request in (None, Request(b"POST", b"/webhook/test", {})):
                self.assertEqual(json.loads(refuse(request, refused).body)["code"], refused.code)
