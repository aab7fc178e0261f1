"""The JSON Schemas that ship with the package, against events of every kind."""

import json
from decimal import Decimal
from importlib.resources import files
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.ingress.fields import MAX_STRATEGY_CHARACTERS, SCHEMA_VERSIONS
from gatewayd.ingress.normalise import Signal, read_tradingview
from gatewayd.times import format_wall

_KINDS = ("raw", "normalized")
_PAYLOAD = {"ticker": "EURUSD", "action": "buy", "price": 1.0945, "time": "2024-01-15T10:30:00Z"}
_RAW = {
    "corr_id": "req_0123456789abcdef0123",
    "source": "tradingview",
    "received_at": "2024-01-15T10:30:01.250Z",
    "payload": _PAYLOAD,
}
_NORMALISED = {
    "corr_id": "req_0123456789abcdef0123",
    "source": "tradingview",
    "instrument": "EURUSD",
    "price": 1.0945,
    "side": "buy",
    "strength": None,
    "timestamp": "2024-01-15T10:30:00.000Z",
    "normalized_at": "2024-01-15T10:30:01.250Z",
}
_MORE = {"idempotency_key": "order-17", "strategy": "EMA Cross (9, 21)", "schema_version": "1.1.0"}


def _schema(kind: str, version: str) -> dict[str, Any]:
    text = files("gatewayd.schemas").joinpath(f"signals.{kind}-{version}.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _fits(kind: str, version: str, event: dict[str, Any]) -> bool:
    return bool(Draft202012Validator(_schema(kind, version)).is_valid(event))


class Schemas(SynchronousTestCase):
    """Two kinds of event in two versions."""

    def test_they_are_schemas(self) -> None:
        """Each is valid under draft 2020-12, says so, and has a name of its own."""
        names = set()
        for kind in _KINDS:
            for version in SCHEMA_VERSIONS:
                schema = _schema(kind, version)
                Draft202012Validator.check_schema(schema)
                self.assertEqual(schema["$schema"], "https://json-schema.org/draft/2020-12/schema")
                names.add(schema["$id"])
        self.assertEqual(len(names), 4)

    def test_the_readers_use_the_same_instruments(self) -> None:
        """The pattern in the schema is the pattern that bodies are held to."""
        for version, rules in SCHEMA_VERSIONS.items():
            pattern = _schema("normalized", version)["properties"]["instrument"]["pattern"]
            self.assertEqual(pattern, f"^{rules.instrument.pattern}$")
        strategy = _schema("normalized", "1.1.0")["properties"]["strategy"]
        self.assertEqual(strategy["maxLength"], MAX_STRATEGY_CHARACTERS)

    def test_sample_events(self) -> None:
        """Events as they are published fit their version."""
        self.assertTrue(_fits("raw", "1.0.0", _RAW))
        self.assertTrue(_fits("raw", "1.1.0", _RAW))
        self.assertTrue(_fits("normalized", "1.0.0", _NORMALISED))
        self.assertTrue(_fits("normalized", "1.1.0", _NORMALISED))
        self.assertTrue(_fits("normalized", "1.1.0", _NORMALISED | _MORE))
        self.assertTrue(_fits("normalized", "1.1.0", _NORMALISED | {"side": None, "strength": 1, "instrument": "ES1!"}))

    def test_the_old_version_is_closed(self) -> None:
        """1.0.0 has the first eight members and nothing else, and the narrow instruments."""
        for name, value in _MORE.items():
            self.assertFalse(_fits("normalized", "1.0.0", _NORMALISED | {name: value}))
        self.assertFalse(_fits("normalized", "1.0.0", _NORMALISED | {"instrument": "ES1!"}))
        self.assertEqual(set(_schema("normalized", "1.0.0")["properties"]), set(_NORMALISED))

    def test_every_member_is_required(self) -> None:
        """An event without one of its members is refused, also without one that may be null."""
        for version in SCHEMA_VERSIONS:
            for kind, event in zip(_KINDS, (_RAW, _NORMALISED), strict=True):
                for name in event:
                    rest = {key: value for key, value in event.items() if key != name}
                    self.assertFalse(_fits(kind, version, rest), (kind, version, name))

    def test_wrong_values(self) -> None:
        """Values that no event holds are refused."""
        wrong: dict[str, list[object]] = {
            "corr_id": ["", "req_1", "req_0123456789ABCDEF0123"],
            "source": ["", None],
            "instrument": ["", "eurusd", "A B", "A" * 33, None],
            "price": [0, -1, "1.0945", None],
            "side": ["close", "BUY", ""],
            "strength": [-0.1, 1.1, "0.5"],
            "timestamp": ["2024-01-15T10:30:00Z", "2024-01-15", 1705314600],
            "normalized_at": ["2024-01-15T10:30:00.000+00:00", None],
        }
        for name, values in wrong.items():
            for value in values:
                for version in SCHEMA_VERSIONS:
                    self.assertFalse(_fits("normalized", version, _NORMALISED | {name: value}), (name, value))
        for name, value in (("idempotency_key", ""), ("strategy", "a\0"), ("strategy", ""), ("schema_version", "1")):
            self.assertFalse(_fits("normalized", "1.1.0", _NORMALISED | {name: value}), name)
        for payload in ([], "x", None, {}):
            self.assertFalse(_fits("raw", "1.1.0", _RAW | {"payload": payload}))

    @settings(max_examples=60, deadline=None)
    @given(
        ticker=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_:/.!&-]{0,8}", fullmatch=True),
        price=st.decimals(min_value=Decimal("1e-8"), max_value=Decimal("1e12"), places=8),
        strength=st.none() | st.decimals(min_value=0, max_value=1, places=4),
        strategy=st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300),
    )
    def test_what_is_read_fits(
        self, ticker: str, price: Decimal, strength: Decimal | None, strategy: str | None
    ) -> None:
        """A body that is accepted makes an event that fits, in whichever version it was read."""
        members = {"ticker": ticker, "time": "2024-01-15T10:30:00Z", "strategy": strategy}
        shown = "null" if strength is None else f"{strength:f}"
        body = f'{json.dumps(members)[:-1]},"price":{price:f},"strength":{shown}}}'
        for version in SCHEMA_VERSIONS:
            signal = read_tradingview(body.encode(), version)
            if not isinstance(signal, Signal):
                continue
            event = _NORMALISED | {
                "instrument": signal.instrument,
                "price": json.loads(signal.price),
                "side": signal.side,
                "strength": None if signal.strength is None else json.loads(signal.strength),
                "timestamp": format_wall(signal.time),
            }
            if version == "1.1.0" and signal.strategy is not None:
                event["strategy"] = signal.strategy
            self.assertTrue(_fits("normalized", version, event), event)
