"""
Refusals as responses: the correlation id and the clock that a refusal needs to become one.

Decides which correlation id an answer carries and in which of the two forms an error is sent. Never decides that
anything is refused.
"""

import os
from collections.abc import Callable

from gatewayd.errors import Refused
from gatewayd.http.message import Request, Response, refusal, wants_problem
from gatewayd.times import Wall


def random_corr_id() -> str:
    """A correlation id for what has no identity of its own."""
    return f"req_{os.urandom(10).hex()}"


class Answers:
    """Makes the Response of every refusal in the process."""

    def __init__(self, wall: Callable[[], Wall]) -> None:
        self._wall = wall

    def refuse(self, request: Request | None, refused: Refused, source: str = "", corr_id: str = "") -> Response:
        """The answer to a refused request; `request` is None when not even its head could be read."""
        problem = request is not None and wants_problem(request)
        return refusal(refused, corr_id or random_corr_id(), self._wall(), source=source, problem=problem)
