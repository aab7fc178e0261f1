"""
The one table of codes, and refusals as values of it. Pure.

Decides what each GW code means: status, slug, text, what it counts as, what to do about it. Answers, the
documentation, alerts and `gatewayctl explain` are made from this table. It never writes a response
(http.message does) and never logs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Row:
    """
    One code. `status` is the usual HTTP status, `statuses` all that may carry the code; `counted` is the metric
    family (and its label) that a refusal adds to, None for none; `cause` and `remedy` are for people.
    """

    code: str
    status: int
    slug: str
    message: str
    counted: tuple[str, str] | None
    cause: str
    remedy: str
    statuses: tuple[int, ...] = ()


def _rows(*rows: Row) -> dict[str, Row]:
    return {row.code: row for row in rows}


TABLE: Final[Mapping[str, Row]] = _rows(
    Row(
        "GW-001",
        401,
        "invalid_signature",
        "The request's signature is missing, malformed or does not match.",
        ("validation_errors", "signature"),
        "The secret differs, the body was changed after signing (a trailing newline, re-serialised JSON), "
        "the scheme is not switched on for the source, or the secret belongs to another source.",
        "Sign the exact bytes that are sent: `gatewayctl sign` shows the expected value. During a rotation list "
        "both secrets. If many senders fail at once, look for a rotation that they were not told of.",
    ),
    Row(
        "GW-002",
        401,
        "replay_window_exceeded",
        "The request's time or nonce is missing, malformed, outside the window or already used.",
        ("validation_errors", "replay"),
        "X-Timestamp is outside the window (clock wrong, request delayed), X-Nonce was used before, or, with "
        "sha256=, the body's own time is too old or too far ahead.",
        "Send a fresh X-Timestamp and X-Nonce with every attempt, also when retrying. `original_corr_id` in the "
        "details means that the event is stored already. Check NTP on both sides.",
    ),
    Row(
        "GW-003",
        422,
        "payload_schema_invalid",
        "The body is JSON but not a signal.",
        ("validation_errors", "schema"),
        "A required field is missing or has the wrong form; `validation_errors` names each one.",
        "Correct the sender's template. The body was kept as a dead letter.",
    ),
    Row(
        "GW-004",
        429,
        "rate_limit_exceeded",
        "Too many requests.",
        ("rate_limit_exceeded", "source"),
        "The source, or the client's address, sent more than its limit.",
        "Wait for Retry-After seconds. Raise RATE_LIMIT_RPS, RATE_LIMIT_SOURCES or RATE_LIMIT_ADDRESS_RPS if the "
        "traffic is legitimate.",
    ),
    Row(
        "GW-005",
        503,
        "nats_unavailable",
        "The event could not be stored for certain; send the same request again.",
        ("nats_errors", "connection"),
        "NATS cannot be reached, does not answer in time, or refuses the publish.",
        "Check the server, its disk and its stream: `gatewayctl stream check`, /readyz. A sender retries the same "
        "body after Retry-After seconds; it cannot double. Timeouts while connected point at a full or failing disk: "
        "free it, then restart nats-server.",
    ),
    Row(
        "GW-006",
        409,
        "idempotency_conflict",
        "The idempotency key was used with another body.",
        ("idempotency_conflicts", ""),
        "A client sends two different bodies under one Idempotency-Key.",
        "Make a new key for each event. `original_corr_id` names the event that holds the key.",
    ),
    Row(
        "GW-007",
        400,
        "source_not_allowed",
        "The source is not allowed here.",
        ("validation_errors", "source"),
        "The body's source is not in ALLOWED_SOURCES (case matters), or differs from the path's.",
        "Correct the sender's source or add it to ALLOWED_SOURCES.",
    ),
    Row(
        "GW-008",
        413,
        "payload_too_large",
        "The body is too large.",
        ("validation_errors", "size"),
        "The body is longer than 1 MiB, or than the NATS server's max_payload allows.",
        "Send less. If max_size is under 1 MiB, raise the server's max_payload to 2MB.",
    ),
    Row(
        "GW-009",
        500,
        "normalization_failed",
        "The signal could not be normalised; the body was kept.",
        ("normalization_errors", "source"),
        "A fault of this gateway: a valid body could not be turned into an event.",
        "Report it with the corr_id. The body is kept as a dead letter.",
    ),
    Row(
        "GW-010",
        503,
        "backpressure",
        "The gateway or its stream is full; send the same request again.",
        ("backpressure", ""),
        "Too many publishes wait for their acknowledgement, the stream is full, its consumer is too far behind, or "
        "more comes than can be served.",
        "`reason` says which: buffer (NATS is slow, or too many large bodies at once), stream_full (raise its limits "
        "or shorten max_age), lag (the consumer does not keep up), overload (webhooks wait for the processor).",
    ),
    Row(
        "GW-011",
        503,
        "maintenance_mode",
        "The gateway is in maintenance.",
        ("maintenance_mode", ""),
        "Maintenance was switched on.",
        "Send the same request again after Retry-After seconds. Operators: `gatewayctl maintenance off`.",
    ),
    Row(
        "GW-012",
        503,
        "store_unavailable",
        "A store that this request needs is unavailable; send the same request again.",
        ("store_errors", "unavailable"),
        "Redis or the database cannot be reached.",
        "Check the store named in /readyz.",
    ),
    Row(
        "GW-013",
        400,
        "malformed_json",
        "The body is not strict JSON.",
        ("validation_errors", "json"),
        "The text breaks JSON's grammar at the line and column given, or has a duplicate key, NaN, Infinity, an "
        "unpaired surrogate, a byte order mark or more than 32 levels.",
        "Correct the sender's template. The body was kept as a dead letter.",
    ),
    Row(
        "GW-014",
        415,
        "unsupported_media_type",
        "The body must be application/json.",
        ("validation_errors", "media_type"),
        "Content-Type is missing or another, its charset is not utf-8, or the body is compressed.",
        "Send `Content-Type: application/json` and no Content-Encoding.",
    ),
    Row(
        "GW-015",
        400,
        "bad_request",
        "The request is malformed.",
        ("validation_errors", "http"),
        "The request breaks HTTP's framing, a limit or a deadline, or a header has a wrong form; `reason` says which.",
        "Correct the client.",
        (400, 408, 414, 417, 431, 501, 505),
    ),
    Row(
        "GW-016",
        500,
        "internal_error",
        "An error of the gateway; the event is not known to be stored. Send the same request again.",
        ("internal_errors", ""),
        "A fault of this gateway.",
        "Report it with the corr_id; the log has the traceback.",
    ),
    Row(
        "GW-017",
        404,
        "not_found",
        "There is nothing at this path.",
        None,
        "The path or the method is not served here.",
        "POST /webhook/<source> for a configured source; `Allow` names the methods of a path.",
        (404, 405),
    ),
    Row(
        "GW-018",
        503,
        "not_ready",
        "The gateway is not ready; send the same request again.",
        None,
        "The gateway is starting or stopping, or the source has no secret.",
        "`reason` says which: starting and draining pass by themselves; source_not_configured needs a secret.",
    ),
)
"""Every code of this product. The README's table is generated from it."""

_SLUG_BY_STATUS: Final = {405: "method_not_allowed"}

RETRYABLE: Final = frozenset({429, 503})
"""Statuses that always carry Retry-After."""


@dataclass(frozen=True, slots=True)
class Refused:
    """
    A refusal as a value.

    `details` go into the answer, `logged` only into the access line; both hold JSON values and never a secret, a
    signature or a body. `status` is the table's unless the code has several. `retry_after` is in seconds and is
    rounded up, at least 1, by the writer. `headers` are further header lines of the answer. `rest` has the connection
    not read for the second that its client is told to wait.
    """

    code: str
    details: Mapping[str, object] = field(default_factory=dict)
    status: int = 0
    retry_after: float | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    logged: Mapping[str, object] = field(default_factory=dict)
    rest: bool = False

    @property
    def row(self) -> Row:
        """The table's row of this code."""
        return TABLE[self.code]

    @property
    def http_status(self) -> int:
        """The HTTP status of the answer."""
        return self.status or self.row.status

    @property
    def slug(self) -> str:
        """The stable word of the answer's `error` member."""
        return _SLUG_BY_STATUS.get(self.http_status, self.row.slug)


class Unavailable(Exception):
    """The one exception that a store or the bus may fail with: it cannot be reached; nothing is known."""
