"""The bus without a server, whose stream can be read back too: what the repair needs of NatsBus."""

from twisted.internet.defer import Deferred, succeed

from gatewayd.bus.publication import BusState, Cause, Unpublished
from gatewayd.bus.tail import Gently, ReadBack, Seen
from gatewayd.times import Wall
from tests.fakes.bus import DoubleBus


class TailingBus(DoubleBus):
    """
    `wall` is the server's time, which a test moves; `tails` are the stretches that were asked for: how many seconds
    back, from which sequence. `gate`, when set, holds the next one up until it fires;
    `says_time` is False for an old server; `seen` is who was shown messages last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tails: list[tuple[float | None, int | None]] = []
        self.gate: Deferred[None] | None = None
        self.says_time = True
        self.seen: Seen | None = None

    def tail(
        self,
        subject: str,
        seen: Seen,
        *,
        back_s: float | None = None,
        from_sequence: int | None = None,
        limit: int | None = None,
        gently: Gently | None = None,
    ) -> Deferred[ReadBack | Unpublished]:
        """See NatsBus."""
        assert subject == ">"
        assert gently is not None
        self.tails.append((back_s, from_sequence))
        self.seen = seen
        if self.state is BusState.DISCONNECTED:
            return succeed(Unpublished(Cause.DISCONNECTED, "not connected"))
        last, now = max(self.messages, default=0), self.wall if self.says_time else None
        stored = list(self.messages.values())
        if from_sequence is not None:
            stored = [one for one in stored if one.sequence >= from_sequence]
        elif back_s is not None and stored:
            stored = [one for one in stored if one.time >= stored[-1].time - back_s]
        stored = stored[:limit]

        def read(_: object) -> ReadBack:
            for one in stored:
                seen(one.subject, one.headers, one.sequence, Wall(one.time))
            return ReadBack(len(stored), last, now)

        gate, self.gate = self.gate, None
        return (gate or succeed(None)).addCallback(read)
