"""
/.well-known/gatewayd/keys: the public keys that answers and events are verified with.

Decides who may ask how often, and how long an answer may be kept. Never makes the document (sessions.keys does).
"""

from collections.abc import Callable
from typing import Final

from zope.interface import implementer

from gatewayd.address_gate import AddressGate
from gatewayd.answers import Answers, random_corr_id
from gatewayd.errors import Refused
from gatewayd.http.message import Request, Response
from gatewayd.ingress.admission import refuse_limited
from gatewayd.interfaces import ILeaf

PATH: Final = b"/.well-known/gatewayd/keys"
MAX_AGE_S: Final = 10
"""A key that was just taken into use is found by whoever asks for it so much later."""

_NOT_ALLOWED: Final = Refused("GW-017", status=405, headers=((b"Allow", b"GET, HEAD"),))
# Public keys are for everybody, and so for the pages of every origin (Fetch, 3.2).
_FOR_ALL: Final = ((b"Access-Control-Allow-Origin", b"*"),)


@implementer(ILeaf)
class PublishedKeys:
    """`document` gives the bytes to serve, as they are now."""

    def __init__(self, document: Callable[[], bytes], gate: AddressGate, answers: Answers) -> None:
        self._document = document
        self._gate = gate
        self._answers = answers

    def begin(self, request: Request) -> Response | int:
        """See ILeaf."""
        if request.method not in (b"GET", b"HEAD"):
            return self._answers.refuse(request, _NOT_ALLOWED)
        limited = self._gate.refuse(request)
        return 0 if limited is None else self._answers.refuse(request, refuse_limited(limited, "keys"))

    def answer(self, request: Request) -> Response:
        """See ILeaf."""
        response = Response(200, self._document(), headers=_FOR_ALL, corr_id=random_corr_id())
        response.max_age_s = MAX_AGE_S
        return response
