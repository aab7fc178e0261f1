"""
The seams with more than one implementation, and their contracts. Nothing else stands here.

Every implementation is run through the same suite in tests/contracts.
"""

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from gatewayd.bus.publication import BusState, Message, Published, Stored, Unpublished
from gatewayd.committed import Running
from gatewayd.http.message import Request, Response
from gatewayd.ingress.admission import Admitted, Claim, Limit, Limited, Outcome


class ILeaf(Interface):
    """What answers requests at a path, behind the HTTP channel."""

    def begin(request: Request) -> Response | int:
        """
        Look at a request whose head is complete and whose body has not been read.

        Return the body's bound in bytes (0: a body is read and dropped up to the channel's own bound), or the
        Response that refuses the request now: its body is then dropped, never buffered. Called once, before answer.
        """

    def answer(request: Request) -> Response | Deferred[Response] | Running[Response]:
        """
        Answer a complete request.

        What is still to come never fails with anything expected: any failure is a bug, answered 500. When the client
        goes away the channel cancels it; whoever made it decides whether that still means anything.
        """


class IAdmission(Interface):
    """
    What was seen and what is under way: per-source limits, nonces, identities and keys.

    Lifetimes are in seconds on the monotonic clock; an entry may live up to 1 s longer, never shorter, unless the
    bound on entries evicts it. Losing an entry never loses or doubles an event: the stream is asked again.
    Fails only with Unavailable.
    """

    def take(source: str, limit: Limit) -> Limited | None:
        """Take one token of `source`, for a request that is refused after authentication; None when there was one."""

    def admit(claim: Claim) -> Admitted | Deferred[Admitted]:
        """
        Take one token of the source, then the nonce, then identity and key, atomically; a refusal keeps only the token.

        Gives, or fires with, Fresh when this claim now holds them until settle() is called for it. While a twin (same
        identity, or same key) holds them, it fires when the twin is settled: Duplicate or Conflict after Accepted and
        Taken, the twin's Failed for the same body; after Cancelled, or when the twin had another body and failed, this
        claim may become Fresh in its place. A nonce that another request holds or used is Replayed at once; the same
        request while it is under way is a twin. Cancelling the Deferred gives the place in the queue up.
        """

    def settle(claim: Claim, outcome: Outcome) -> None:
        """
        Say what became of a Fresh claim. Accepted is remembered: identity and key for the idempotency lifetime, the
        nonce for the nonce lifetime, the nonces of the twins that waited too. Of Taken it is remembered that every
        other body than the holder's conflicts; the holder's own is Fresh, for its pair may be half stored. Anything
        else releases the claim. Never fails, never raises.
        """

    def remember_nonce(nonce: bytes, used_by: bytes, age_s: float) -> None:
        """Fill in a nonce that the request of fingerprint `used_by` used `age_s` seconds ago (oldest first)."""

    def forget() -> int:
        """Drop everything remembered (not what is under way): the stream is another one. Returns how many."""

    def entries() -> int:
        """How many entries are remembered now, for the metric."""


class IEventBus(Interface):
    """The stream, as the pipeline needs it. Every Deferred fires within its deadline, whatever the server does."""

    state: BusState = Attribute("What is known of the server; DISCONNECTED: a publish is refused at once.")
    max_message: int = Attribute("Bytes that a message's headers and body may have together (max_payload).")
    last_success: float | None = Attribute("Wall time of the last acknowledgement, else of the last connect; or None.")
    attempts: int = Attribute("Failed attempts to connect since the connection was last up.")

    def publish(messages: Sequence[Message]) -> Deferred[Published | Unpublished]:
        """
        Write the messages in one go, in order, and wait for every acknowledgement: one outcome for all of them.

        Messages of one process are written in the order of the calls. Unpublished says nothing about what is stored,
        except for BUFFER (nothing was written). Cancelling the Deferred does nothing.
        """

    def read(sequence: int, msg_id: bytes) -> Deferred[Stored | Unpublished | None]:
        """
        The message stored at `sequence`, which must carry `msg_id`; None when it is gone, asked of the leader too;
        Unpublished when the server does not say.
        """
