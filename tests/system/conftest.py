"""Real processes for the system tests, ended whatever happens."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import SECRET
from tests.gateway import Gateway
from tests.installed import Installed
from tests.servers import NatsServer


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Makes gatewayd processes under the test's own directory: name, then settings."""
    made: list[Gateway] = []

    def make(name: str = "gateway", port: int = 0, **settings: str) -> Gateway:
        gateway = Gateway(tmp_path / name, settings, port=port)
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        gateway.close()


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An image of a host, made once: nobody changes it."""
    return Installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server that is running."""
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.close()


@pytest.fixture
def gateway(make_gateway: Callable[..., Gateway], nats: NatsServer) -> Gateway:
    """A gatewayd on that server, with the tests' secret and no limits in the way, running."""
    gateway = make_gateway(
        NATS_URL=nats.url,
        API_KEY_HMAC_SECRET=SECRET.decode(),
        RATE_LIMIT_RPS="100000",
        RATE_LIMIT_EXEMPT_CIDRS="127.0.0.0/8",
    )
    gateway.start(wait="/readyz")
    return gateway
