"""
`gatewayctl send`: signed test webhooks, sent as a good client sends them.

Decides what a test signal says, when a request is sent again, and what the summary counts. A request that was not
answered for certain goes out again with the same body and key and a fresh time and nonce: the gateway knows it by its
body or key, so it cannot double. Never sends two requests at once.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from gatewayd.cli.caller import Answer, Caller, Unreached, parse_target
from gatewayd.cli.console import Code, Surroundings, json_option, note, plain, show_as
from gatewayd.cli.signing import SCHEMES, make_headers
from gatewayd.cli.situation import SecretChoice, complete_file, find_secret, own_url, read_body, secret_options
from gatewayd.errors import TABLE
from gatewayd.times import format_wall

LONGEST_WAIT_S: Final = 30.0
"""A gateway that asks for a longer wait than this is not waited for."""

_SENT_AGAIN: Final = frozenset({500, 502, 503, 504})
_FIRST_PAUSE_S: Final = 0.5
_PROGRESS_EVERY_S: Final = 0.1


@click.command()
@click.argument("file", required=False, shell_complete=complete_file)
@click.option("--data", metavar="TEXT", help="The body itself, instead of FILE.")
@click.option(
    "--url", metavar="URL", help="The gateway, or a whole webhook address.  [default: http://127.0.0.1:$PORT]"
)
@click.option("--source", metavar="NAME", default="test", show_default=True, help="Who sends.")
@secret_options
@click.option("--scheme", type=click.Choice(SCHEMES), default="v1", show_default=True, help="How to sign.")
@click.option("--idempotency-key", metavar="KEY", help="Sent with every request.")
@click.option("--instrument", metavar="NAME", default="EURUSD", show_default=True, help="Of the signals made here.")
@click.option(
    "--count", metavar="N", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="How many signals."
)
@click.option("--rate", metavar="R", type=click.FloatRange(0, min_open=True), help="At most R signals a second.")
@click.option(
    "--retries",
    metavar="N",
    type=click.IntRange(0, 100),
    default=3,
    show_default=True,
    help="How often one is sent again after 503, another 5xx or a lost connection.",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="S",
    type=click.FloatRange(0, 600, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to wait for an answer.",
)
@click.option(
    "--ca",
    metavar="FILE",
    shell_complete=complete_file,
    help="For https: PEM certificates to trust, instead of the system's.",
)
@json_option
@click.pass_obj
def send(surroundings: Surroundings, /, **given: Any) -> int:
    """
    Send a signed test webhook, or --count of them, and say what became of each.

    Without FILE or --data every signal is a new one. A body given here is sent --count times as it is: the first is
    accepted, the others are its duplicates.

    Exit code 0 when every signal was answered 202, 1 when one was refused, 3 when the gateway could not be reached.
    """
    return _send(surroundings, _Options(**given))


@dataclass(frozen=True, slots=True)
class _Options:
    """What the command line says, by the names of its options."""

    file: str | None
    data: str | None
    url: str | None
    source: str
    secret_file: str | None
    number: int
    config_file: Path | None
    scheme: str
    idempotency_key: str | None
    instrument: str
    count: int
    rate: float | None
    retries: int
    timeout_s: float
    ca: str | None
    as_json: bool


def _send(surroundings: Surroundings, options: _Options) -> int:
    body = read_body(surroundings, options.file, options.data)
    choice = SecretChoice(options.source, options.secret_file, options.number, options.config_file)
    secret = find_secret(surroundings.environ, choice).reveal()
    target = parse_target(options.url or own_url(surroundings), options.source)

    def stamp(signal: bytes) -> dict[str, str]:
        now, nonce = format_wall(surroundings.wall()), surroundings.nonce()
        return make_headers(secret, options.scheme, signal, timestamp=now, nonce=nonce, key=options.idempotency_key)

    stamp(b"")  # a key of a wrong form is refused before anything is sent
    run = surroundings.nonce()[:8]
    bodies = (
        body if body is not None else make_signal(options.source, options.instrument, f"{run}-{number}", surroundings)
        for number in range(1, options.count + 1)
    )
    with Caller(target, options.timeout_s, options.ca) as caller:
        progress = _Progress(options.count, surroundings.monotonic)
        sender = Sender(caller.post, stamp, options.retries, surroundings, progress.say)
        try:
            _send_all(sender, bodies, options.rate, progress, surroundings)
        finally:  # after Ctrl-C too
            _report(sender.tally, as_json=options.as_json)
    if sender.tally.refused:
        return Code.NOT_IN_ORDER
    return Code.UNREACHABLE if sender.tally.unreached else Code.OK


def make_signal(source: str, instrument: str, test_id: str, surroundings: Surroundings) -> bytes:
    """A valid body, different from every other by its `test_id`, in the source's format."""
    now = format_wall(surroundings.wall())
    signal: dict[str, Any] = {"action": "buy", "price": 1.0945, "strategy": "gatewayctl", "test_id": test_id}
    if source == "tradingview":
        return msgspec.json.encode({"ticker": instrument, "time": now, **signal})
    return msgspec.json.encode({"source": source, "instrument": instrument, "timestamp": now, "payload": signal})


@dataclass(slots=True)
class Tally:
    """What became of the signals so far. `latencies_s` are of answers; `refused` counts by code."""

    accepted: int = 0
    duplicates: int = 0
    unreached: int = 0
    retries: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    last: Answer | None = None
    took_s: float = 0.0

    @property
    def sent(self) -> int:
        """How many signals an outcome is known of."""
        return self.accepted + self.duplicates + self.unreached + self.refused.total()

    def count(self, answer: Answer, seconds: float) -> None:
        """The last answer to one signal."""
        self.last = answer
        self.latencies_s.append(seconds)
        if answer.status != 202:
            self.refused[answer.code] += 1
        elif answer.members.get("duplicate") is True:
            self.duplicates += 1
        else:
            self.accepted += 1


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile of at least one value."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


class Sender:
    """
    Sends one signal after another. `post` is one HTTP exchange, `stamp` makes the headers of one attempt, `say` tells
    people why something is sent again.
    """

    def __init__(
        self,
        post: Callable[[bytes, dict[str, str]], Answer | Unreached],
        stamp: Callable[[bytes], dict[str, str]],
        retries: int,
        surroundings: Surroundings,
        say: Callable[[str], None],
    ) -> None:
        self.tally = Tally()
        self._post = post
        self._stamp = stamp
        self._retries = retries
        self._surroundings = surroundings
        self._say = say

    def send(self, body: bytes) -> bool:
        """One signal to its outcome; False when the gateway could not be reached for it."""
        for attempt in range(self._retries + 1):
            began = self._surroundings.monotonic()
            answer = self._post(body, self._stamp(body))
            took_s = self._surroundings.monotonic() - began
            wait_s = self._wait(answer, attempt)
            if wait_s is None or attempt == self._retries:
                break
            self._say(f"gatewayctl: {answer.text}; sent again in {wait_s:g} s")
            self.tally.retries += 1
            self._surroundings.sleep(wait_s)
        if isinstance(answer, Unreached):
            self.tally.unreached += 1
            self._say(f"gatewayctl: {answer.text}")
            return False
        self.tally.count(answer, took_s)
        return True

    @staticmethod
    def _wait(answer: "Answer | Unreached", attempt: int) -> float | None:
        """Seconds until this is worth another attempt; None when it is not."""
        if isinstance(answer, Answer):
            if answer.status not in _SENT_AGAIN:
                return None
            if answer.retry_after_s is not None:
                return answer.retry_after_s if answer.retry_after_s <= LONGEST_WAIT_S else None
        return min(LONGEST_WAIT_S, _FIRST_PAUSE_S * 2.0**attempt)


def _send_all(
    sender: Sender, bodies: Iterator[bytes], rate: float | None, progress: "_Progress", surroundings: Surroundings
) -> None:
    """Every signal, in order; ends early when the gateway cannot be reached."""
    began = surroundings.monotonic()
    try:
        for index, body in enumerate(bodies):
            if rate is not None:
                early_s = began + index / rate - surroundings.monotonic()
                if early_s > 0:
                    surroundings.sleep(early_s)
            reached = sender.send(body)
            progress.show(sender.tally)
            if not reached:
                break
    finally:
        sender.tally.took_s = surroundings.monotonic() - began
        progress.clear()


class _Progress:
    """One line on a terminal's stderr, written over and over; nothing elsewhere, and nothing for a single signal."""

    def __init__(self, count: int, monotonic: Callable[[], float]) -> None:
        self._count = count
        self._monotonic = monotonic
        self._next = 0.0
        self._shown = count > 1 and sys.stderr.isatty()

    def show(self, tally: Tally) -> None:
        """At most ten times a second."""
        now = self._monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + _PROGRESS_EVERY_S
        parts = [f"{tally.sent}/{self._count}", f"accepted {tally.accepted}", f"duplicates {tally.duplicates}"]
        parts += [f"{code} {number}" for code, number in sorted(tally.refused.items())]
        click.echo("\r\x1b[K" + "  ".join(parts)[:200], err=True, nl=False)

    def say(self, text: str) -> None:
        """A line of its own."""
        self.clear()
        note(text)

    def clear(self) -> None:
        """Leave an empty line for what follows."""
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)


def _report(tally: Tally, *, as_json: bool) -> None:
    """The summary, or for a single signal its answer."""
    value: dict[str, Any] = {
        "sent": tally.sent,
        "accepted": tally.accepted,
        "duplicates": tally.duplicates,
        "refused": dict(sorted(tally.refused.items())),
        "unreached": tally.unreached,
        "retries": tally.retries,
        "took_s": round(tally.took_s, 3),
    }
    if tally.latencies_s:
        value["latency_ms"] = {
            name: round(percentile(tally.latencies_s, share) * 1000, 2) for name, share in (("p50", 0.5), ("p99", 0.99))
        }
    if tally.last is not None:
        value["last"] = {"status": tally.last.status, "answer": tally.last.members}
    single = tally.sent == 1 and tally.last is not None
    show_as(as_json, value, _answer_lines(tally) if single else _summary_lines(tally, value))
    for code in sorted(tally.refused):
        if code in TABLE:
            note(f"gatewayctl: `gatewayctl explain {code}` says what to do")


def _answer_lines(tally: Tally) -> Iterator[str]:
    answer = tally.last
    assert answer is not None  # noqa: S101 - asked before
    took = f"{tally.latencies_s[-1] * 1000:.1f} ms"
    if answer.status == 202:
        word = "duplicate" if tally.duplicates else "accepted"
        yield f"202 {word} {plain(answer.members.get('corr_id', ''))} in {took}"
        return
    yield f"{answer.text} in {took}"
    details = answer.members.get("details")
    if isinstance(details, dict):
        for name, value in details.items():
            yield f"  {plain(name)}: {plain(value if isinstance(value, str) else json.dumps(value))}"


def _summary_lines(tally: Tally, value: dict[str, Any]) -> Iterator[str]:
    speed = f" ({tally.sent / tally.took_s:.0f}/s)" if tally.took_s > 0 else ""
    yield (
        f"sent {tally.sent} in {tally.took_s:.1f} s{speed}: accepted {tally.accepted}, duplicates {tally.duplicates}, "
        f"refused {tally.refused.total()}, unreached {tally.unreached}; sent again {tally.retries}"
    )
    for code, number in sorted(tally.refused.items()):
        slug = f" {TABLE[code].slug}" if code in TABLE else ""
        yield f"refused {code}{slug}: {number}"
    if "latency_ms" in value:
        yield f"latency p50 {value['latency_ms']['p50']} ms, p99 {value['latency_ms']['p99']} ms"
