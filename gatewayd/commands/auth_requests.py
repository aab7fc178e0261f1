"""
Requests of the public authentication: what may be asked, how often for one email or challenge, and what an answer of
the service becomes. Pure.

Decides forms, limits and statuses. Never sends anything, and shows nothing of a body: an email and a code are nobody's.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from http import HTTPStatus
from typing import Final

from msgspec import Struct

from gatewayd.http.message import JSON
from gatewayd.ingress import strict
from gatewayd.ingress.admission import Limit
from gatewayd.push.refusals import Problem

PREFIX: Final = b"/api/v1/public/auth/"
MAX_BODY_BYTES: Final = 8192
MAX_ANSWER_BYTES: Final = 65_536

ADDRESS: Final = Limit(rps=1.0, burst=10.0)
"""One address: an office behind one address can log in, a list of emails cannot be tried through."""

_EMAIL_CHARACTERS: Final = 254  # RFC 5321 4.5.3.1.3, less the angle brackets
_CHALLENGE_CHARACTERS: Final = 512

_WORD: Final = re.compile(rb"[\x20-\x7e]{1,256}")
_MEDIA: Final = re.compile(rb"[!-~]+/[!-~]+(?:; ?[!-~ ]+)?")
_SECONDS: Final = re.compile(rb"[0-9]{1,6}")

NOT_FOUND: Final = Problem(404, "not_found", "there is nothing at this path")
NOT_ALLOWED: Final = Problem(405, "method_not_allowed", "POST", ((b"Allow", b"POST"),))
TOO_LARGE: Final = Problem(413, "payload_too_large", f"the body has more than {MAX_BODY_BYTES} bytes")
NOT_JSON: Final = Problem(415, "unsupported_media_type", "the body must be application/json, not compressed")
LIMITED: Final = Problem(429, "rate_limit_exceeded", "too many requests; come back later")
NO_SERVICE: Final = Problem(503, "service_unavailable", "authentication is not available here")
UNAVAILABLE: Final = Problem(503, "service_unavailable", "the authentication service is unavailable")
MAINTENANCE: Final = Problem(503, "service_unavailable", "the gateway is in maintenance")
STOPPING: Final = Problem(503, "service_unavailable", "the gateway is stopping")
BROKEN: Final = Problem(502, "bad_gateway", "the authentication service gave no answer that can be used")
TIMED_OUT: Final = Problem(504, "upstream_timeout", "the authentication service did not answer in time")


class Action(Struct, frozen=True):
    """One path: the member whose value is limited, how long that may be, and its limit."""

    name: str
    member: str
    characters: int
    limit: Limit


ACTIONS: Final[Mapping[bytes, Action]] = {
    PREFIX + action.name.encode("ascii"): action
    for action in (
        # Mails cost money and annoy: three at once, then one a minute.
        Action("send-email-code", "email", _EMAIL_CHARACTERS, Limit(rps=1 / 60, burst=3.0)),
        # Six digits have a million values: five tries at once, then one in ten seconds, are 360 an hour.
        Action("confirm-email-code", "challenge_id", _CHALLENGE_CHARACTERS, Limit(rps=0.1, burst=5.0)),
    )
}


def subject_of(action: Action, body: bytes) -> str | Problem:
    """
    Whose bucket a body counts in, as a digest, so that no email is kept; or why it is refused.

    The service reads what is read here: one JSON object, strictly, so that no second member of that name hides behind
    the first. Emails that differ in case or in blanks around them share a bucket.
    """
    members = strict.read(body)
    if not isinstance(members, dict):
        return Problem(400, "invalid_request", "the body is not one object in strict JSON")
    value = members.get(action.member)
    if not isinstance(value, str) or not value.strip() or len(value) > action.characters:
        return Problem(400, "invalid_request", f"{action.member} is missing or malformed")
    same = value.strip().casefold() if action.member == "email" else value
    return sha256(f"{action.member}:{same}".encode()).hexdigest()


def forwarded(headers: Mapping[bytes, bytes], client_ip: str, corr_id: str) -> dict[str, str]:
    """
    The headers that the service gets: a list of our own, so that nothing of the connection, no credential and no claim
    about addresses goes through.
    """
    found = {"Content-Type": "application/json", "X-Request-Id": corr_id}
    if client_ip:
        found["X-Forwarded-For"] = client_ip
    for name in ("Accept-Language", "User-Agent", "Traceparent"):
        value = headers.get(name.lower().encode("ascii"), b"")
        if _WORD.fullmatch(value) is not None:
            found[name] = value.decode("ascii")
    return found


class Passed(Struct, frozen=True):
    """An answer of the service that goes through; `headers` beside the common ones."""

    status: int
    body: bytes
    content_type: bytes
    headers: tuple[tuple[bytes, bytes], ...]


def judge(status: int, headers: Mapping[bytes, bytes], body: bytes) -> Passed | Problem:
    """
    What an answer becomes: 2xx and 4xx go through, with their Content-Type and Retry-After; 503 becomes ours, with the
    service's Retry-After; redirects, other 5xx and statuses that nobody knows are no answers.
    """
    wait = headers.get(b"retry-after", b"")
    waits = _SECONDS.fullmatch(wait) is not None
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return Problem(503, UNAVAILABLE.code, UNAVAILABLE.message, retry_after_ms=int(wait) * 1000 if waits else None)
    known = status in HTTPStatus._value2member_map_ and (200 <= status < 300 or 400 <= status < 500)
    if not known:
        return BROKEN
    media = headers.get(b"content-type", JSON)
    lines = ((b"Retry-After", wait),) if waits else ((b"Retry-After", b"1"),) if status == 429 else ()
    return Passed(status, body, media if _MEDIA.fullmatch(media) is not None else b"application/octet-stream", lines)
