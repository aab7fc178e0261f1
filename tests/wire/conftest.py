"""What the wire tests of plain TCP share: each runs on the event loop's transports and on Twisted's."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias

import pytest

from tests.wire import listeners

Serving: TypeAlias = Callable[..., AbstractAsyncContextManager[listeners.Served]]


@pytest.fixture(params=["loop", "twisted"])
def tcp_serving(request: pytest.FixtureRequest) -> Serving:
    """listeners.serving() of plain TCP, once on either kind of transport."""
    return partial(listeners.serving, on_loop=request.param == "loop")
