"""What the answers of a running gatewayd have in common, and what none of them has, whatever a browser asks for."""

import time
from collections.abc import Iterator

import pytest

from tests.clients import SECRET, stamped, tradingview_body
from tests.gateway import Gateway

COMMON = {"content-type", "content-length", "cache-control", "x-content-type-options", "x-correlation-id"}
BROWSER = {
    "Origin": "https://example.com",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-signature",
    "Cookie": "session=1",
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gatewayd without NATS."""
    settings = {"NATS_URL": "nats://127.0.0.1:1", "API_KEY_HMAC_SECRET": SECRET.decode()}
    made = Gateway(tmp_path_factory.mktemp("answers"), settings)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "more"),
    [
        ("OPTIONS", "/webhook/tradingview", 405, {"allow"}),
        ("OPTIONS", "/webhook/generic", 405, {"allow"}),
        ("OPTIONS", "/metrics", 405, {"allow"}),
        ("GET", "/webhook/tradingview", 405, {"allow"}),
        ("POST", "/webhook/tradingview", 503, {"retry-after"}),
        ("GET", "/healthz", 200, set()),
        ("GET", "/readyz", 503, {"retry-after"}),
        ("GET", "/metrics", 200, set()),
        ("GET", "/index.html", 404, set()),
    ],
)
def test_headers(gateway: Gateway, method: str, path: str, status: int, more: set[str]) -> None:
    """Asked across origins: no Access-Control, no cookie, no Server, nothing but what every answer has."""
    body = tradingview_body(time.time()) if method == "POST" else b""
    headers = stamped(body, time.time()) if body else {}
    answered, found, _ = gateway.ask(method, path, body, {**headers, **BROWSER})
    assert answered == status
    assert set(found) == COMMON | more
    assert (found["cache-control"], found["x-content-type-options"]) == ("no-store", "nosniff")
    assert found["content-type"].split(";")[0] in ("application/json", "text/plain")
