"""What the wire tests of HTTP share: each runs on the event loop's transports and on Twisted's, plain or with TLS."""

import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from socket import socket
from typing import TypeAlias

import pytest

from gatewayd.http.certificates import Certificate
from tests.servers import Certificates, make_certificates
from tests.wire import listeners

Serving: TypeAlias = Callable[..., AbstractAsyncContextManager[listeners.Served]]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A server's certificate and the authority that made it."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def in_force(certificates: Certificates) -> Certificate:
    """The server's certificate as listeners have it."""
    certificate = Certificate(str(certificates.cert), str(certificates.key))
    certificate.use(certificate.load())
    return certificate


def secured(certificates: Certificates, connection: socket, **options: bool) -> ssl.SSLSocket:
    """The client's side of TLS."""
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context.wrap_socket(connection, server_hostname="localhost", **options)


@pytest.fixture(params=["loop", "twisted"])
def tcp_serving(request: pytest.FixtureRequest) -> Serving:
    """listeners.serving() of plain TCP, once on either kind of transport."""
    return partial(listeners.serving, on_loop=request.param == "loop")
