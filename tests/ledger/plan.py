"""
What the load client is going to send: webhooks made from a seed, and what each of them must come to.

Decides bodies, keys, schemes and the order of the steps. Never sends anything and never judges an answer: the client
and the checker do. One seed, one count and one time make the same plan again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from functools import cached_property
from hashlib import sha256
from random import Random
from typing import Final

MAX_BODY_BYTES: Final = 1_048_576
_EAST: Final = timezone(timedelta(hours=5, minutes=30))


class Kind(Enum):
    """What a step does."""

    VALID = "valid"  # a new event
    STUBBORN = "stubborn"  # a new event of a sender that repeats the identical request instead of a fresh one
    DUPLICATE = "duplicate"  # an accepted event again: the same body and key, fresh nonce and time
    REPLAY = "replay"  # the very request that was accepted, byte for byte
    CONFLICT = "conflict"  # the key of an accepted event with another body
    TWINS = "twins"  # one new event, the identical request on several connections at once
    SIBLINGS = "siblings"  # one new event on several connections at once, each with a nonce of its own
    RACE = "race"  # one signed key with several bodies at once
    BROKEN = "broken"  # what must be refused


@dataclass(frozen=True)
class Refusal:
    """How a broken webhook is answered, and under which subject its body is kept (None: not at all)."""

    status: int
    code: str
    letter: str | None = None
    kept_raw: bool = False


BROKEN: Final = {
    "bad_signature": Refusal(401, "GW-001"),
    "stale_time": Refusal(401, "GW-002"),
    "stale_body": Refusal(401, "GW-002"),
    "malformed": Refusal(400, "GW-013", "dlq.signals.raw"),
    "no_object": Refusal(422, "GW-003", "dlq.signals.raw"),
    "empty_object": Refusal(422, "GW-003", "dlq.signals.normalized"),
    "schema": Refusal(422, "GW-003", "dlq.signals.normalized", kept_raw=True),
    "unknown_source": Refusal(400, "GW-007"),
    "media_type": Refusal(415, "GW-014"),
    "too_large": Refusal(413, "GW-008"),
}
"""Every fault of a broken webhook."""


@dataclass(frozen=True)
class Facts:
    """What the normalised event of a webhook must say: number tokens as sent, `time` in UTC with milliseconds."""

    instrument: str
    price: str
    side: str | None
    strength: str | None
    strategy: str | None
    time: str


@dataclass(frozen=True)
class Webhook:
    """One request without nonce and time. `key` is "" for none; `facts` None for what must never be an event."""

    path: str
    source: str
    body: bytes
    scheme: str
    key: str = ""
    facts: Facts | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the body, in hex."""
        return sha256(self.body).hexdigest()

    @property
    def event(self) -> tuple[str, str, str]:
        """Which event this is, for a client that looks into the stream: source, body digest, key."""
        return self.source, self.digest, self.key


@dataclass(frozen=True)
class Step:
    """
    One step of the plan: `webhooks` go out at once, each on a connection of its own, after step `base` is over.

    `fault` is a key of BROKEN for a broken one, else "".
    """

    id: int
    kind: Kind
    webhooks: tuple[Webhook, ...]
    base: int | None = None
    fault: str = ""


class _Bodies:
    """Makes bodies that differ in everything a reader may trip over, each with a price that no other has."""

    def __init__(self, random: Random, began: float) -> None:
        self._random = random
        self._began = began
        self._serial = 0

    def webhook(self, scheme: str, key: str = "", *, like: Webhook | None = None, age_s: float = 0.0) -> Webhook:
        """A valid one, of a random source, or of that of `like`."""
        source = self._random.choice(("tradingview", "tradingview", "test", "custom")) if like is None else like.source
        path = "/webhook/" + (source if source == "tradingview" or self._random.random() < 0.3 else "generic")
        time, instant = self._time(age_s)
        price, instrument = self._price(), self._random.choice(_INSTRUMENTS)
        action = self._random.choice((None, "buy", "sell", "close"))
        strength = self._random.choice((None, None, "0.5", "1", "0", "0.875e0"))
        strategy = self._random.choice((None, None, "breakout", "Ausbruch nach oben \u2191"))
        inner = {"price": price}
        if source == "tradingview" or self._random.random() < 0.5:
            inner |= {"action": _quoted(action)} if action else {}
        elif action in ("buy", "sell"):
            inner["side"] = _quoted(action)
        side = action if "action" in inner or "side" in inner else None
        inner |= {"strength": strength} if strength else {}
        inner |= {"strategy": _quoted(strategy)} if strategy else {}
        if self._random.random() < 0.25:
            inner["note"] = self._random.choice(_EXTRAS)
        if source == "tradingview":
            body = self._object({"ticker": _quoted(instrument), **inner, "time": _quoted(time)})
        else:
            outer = {"source": _quoted(source), "instrument": _quoted(instrument), "timestamp": _quoted(time)}
            body = self._object({**outer, "payload": self._object(inner)})
        facts = Facts(instrument.upper(), price, None if side == "close" else side, strength, strategy, instant)
        return Webhook(path, source, body.encode(), scheme, key, facts)

    def broken(self, fault: str) -> Webhook:
        """One that must be refused for this fault, and for nothing that is looked at before it."""
        random = self._random
        scheme = "sha256" if fault == "stale_body" else random.choice(("v1", "sha256"))
        good = self.webhook(scheme, age_s=7200.0 if fault == "stale_body" else 0.0)
        path, source, body = good.path, good.source, good.body
        self._serial += 1
        match fault:
            case "malformed":
                body = random.choice((body[:-1], body + b"}", b"\xef\xbb\xbf" + body, body.replace(b":", b"=", 1)))
            case "no_object":
                path, source, body = "/webhook/tradingview", "tradingview", b"[%d]" % self._serial
            case "empty_object":
                path, source, body = "/webhook/tradingview", "tradingview", b"{" + b" " * self._serial + b"}"
            case "schema":
                path, source = "/webhook/tradingview", "tradingview"
                wrong = random.choice(('"ticker": 7', '"price": -1, "ticker": "EURUSD"', '"time": "yesterday"'))
                body = f'{{"serial": {self._serial}, {wrong}}}'.encode()
            case "unknown_source":
                path, source = "/webhook/generic", "stranger"
                body = b'{"source":"stranger","instrument":"X","timestamp":"2026-01-01T00:00:00Z","payload":{"n":%d}}'
                body %= self._serial
            case "too_large":
                body = body[:-1] + b" " * (MAX_BODY_BYTES + 1 - len(body)) + b"}"
        return Webhook(path, source, body, scheme)

    def _price(self) -> str:
        self._serial += 1
        fraction = self._random.randrange(10**6)
        form = self._random.choice(("{0}.{1:06d}", "{0}", "{0}.{1:06d}12345678901234567890", "{0}e-3", "{0}.5E+2"))
        return form.format(self._serial, fraction)

    def _time(self, age_s: float) -> tuple[str, str]:
        """The body's time in some form, and as the event must say it."""
        then = self._began - age_s - self._random.randrange(600)
        instant = datetime.fromtimestamp(int(then), UTC)
        form = self._random.randrange(4)
        if form == 0:
            instant += timedelta(milliseconds=self._random.randrange(1000))
        said = f"{instant:%Y-%m-%dT%H:%M:%S}.{instant.microsecond // 1000:03d}Z"
        if form == 0:
            return said, said
        if form == 1:
            return instant.astimezone(_EAST).isoformat(), said
        return f"{instant:%Y-%m-%dT%H:%M:%SZ}", said

    def _object(self, members: dict[str, str]) -> str:
        items = list(members.items())
        if self._random.random() < 0.3:
            self._random.shuffle(items)
        colon, comma, end = self._random.choice(((":", ",", ""), (": ", ", ", ""), (": ", ",\n  ", "\n")))
        return "{" + comma.join(f'"{name}"{colon}{value}' for name, value in items) + end + "}"


_INSTRUMENTS: Final = ("EURUSD", "eurusd", "BINANCE:BTCUSDT", "BTC/USD", "ES1!", "BRK.B", "XAUUSD")
_EXTRAS: Final = ('"\\u2603 \\"quoted\\" \u00e9"', '{"a": [1, 2.50, {"b": null}]}', "true", '"price"')


def _quoted(text: str) -> str:
    return f'"{text}"'


class _Plan:
    """Collects steps, each at a place in the order; what follows an event comes a random distance after it."""

    def __init__(self, random: Random, count: int) -> None:
        self.requests = 0
        self._random = random
        self._spread = max(40.0, count / 4)
        self._placed: list[tuple[float, int, Kind, tuple[Webhook, ...], int | None, str]] = []

    def add(self, kind: Kind, *webhooks: Webhook, base: int | None = None, fault: str = "") -> int:
        """Place one step; returns its number among the placed ones, which `base` of a later one may name."""
        place = float(self.requests) if base is None else self._placed[base][0] + self._random.uniform(1, self._spread)
        number = len(self._placed)
        self._placed.append((place, number, kind, webhooks, base, fault))
        self.requests += len(webhooks)
        return number

    def steps(self) -> Iterator[Step]:
        """The steps in their order; ids are places in it."""
        ordered = sorted(self._placed, key=lambda placed: placed[:2])
        ids = {placed[1]: place for place, placed in enumerate(ordered)}
        for _, number, kind, webhooks, base, fault in ordered:
            yield Step(ids[number], kind, webhooks, None if base is None else ids[base], fault)


def make_plan(count: int, seed: int, began: float) -> list[Step]:
    """About `count` requests (a few more), first attempts counted; `began` is the wall time that bodies are made at."""
    random = Random(seed)
    bodies = _Bodies(random, began)
    plan = _Plan(random, count)
    while plan.requests < count:
        chance = random.random()
        if chance < 0.13:
            fault = random.choices(list(BROKEN), [4, 3, 2, 3, 1, 1, 3, 2, 2, 0.2])[0]
            broken = bodies.broken(fault)
            first = plan.add(Kind.BROKEN, broken, fault=fault)
            if BROKEN[fault].letter and random.random() < 0.3:
                plan.add(Kind.BROKEN, broken, base=first, fault=fault)
            continue
        scheme = random.choice(("v1", "v1", "sha256"))
        key = f"key-{seed}-{plan.requests}" if random.random() < 0.4 else ""
        if chance < 0.16:
            event = bodies.webhook(scheme, key)
            plan.add(random.choice((Kind.TWINS, Kind.SIBLINGS)), *[event] * random.randint(2, 6))
        elif chance < 0.19:
            key = f"race-{seed}-{plan.requests}"
            first_body = bodies.webhook("v1", key)
            others = [bodies.webhook("v1", key, like=first_body) for _ in range(random.randint(1, 3))]
            plan.add(Kind.RACE, first_body, *others)
        elif chance < 0.25:
            plan.add(Kind.STUBBORN, bodies.webhook(scheme, key))
        else:
            _add_event(plan, bodies, random, bodies.webhook(scheme, key))
    return list(plan.steps())


def only(steps: Sequence[Step], kinds: frozenset[Kind]) -> list[Step]:
    """The steps of these kinds that follow no other, in their order and numbered anew."""
    kept = [step for step in steps if step.kind in kinds and step.base is None]
    return [replace(step, id=place) for place, step in enumerate(kept)]


def _add_event(plan: _Plan, bodies: _Bodies, random: Random, event: Webhook) -> None:
    """One new event and what follows it."""
    first = plan.add(Kind.VALID, event)
    chance = random.random()
    if chance < 0.16:
        for _ in range(random.randint(1, 2)):
            again = event
            if not event.key:  # a body is one event under whichever scheme it is signed
                scheme = random.choice(("v1", "sha256"))
                again = Webhook(event.path, event.source, event.body, scheme, "", event.facts)
            plan.add(Kind.DUPLICATE, again, base=first)
    if 0.10 < chance < 0.26:
        plan.add(Kind.REPLAY, event, base=first)
    # A sha256 key is held in memory only: what else follows the event would be judged by whoever holds the key now.
    if event.key and (0.26 < chance < 0.45 or (chance < 0.05 and event.scheme == "v1")):
        plan.add(Kind.CONFLICT, bodies.webhook(event.scheme, event.key, like=event), base=first)
