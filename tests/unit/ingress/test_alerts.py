"""What people really send: every alert of the collection has one exact answer."""

import json
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.ingress import strict
from gatewayd.ingress.normalise import Generic, Invalid, Malformed, Signal, read_generic, read_tradingview
from gatewayd.times import parse_rfc3339

_LINES = (Path(__file__).parents[2] / "vectors" / "alerts.jsonl").read_text("utf-8").splitlines()
ALERTS: dict[str, dict[str, Any]] = {alert["id"]: alert for alert in map(json.loads, _LINES)}

ACCEPTED: Final = {
    "alert-090": ("M&M", "sell", b"3223.5", "2026-02-18T06:15:00Z"),
    "alert-102": ("EURUSD", "buy", b"1.08", "2026-02-18T15:00:00Z"),
    "alert-127": ("BINANCE:BTCUSDT", None, b"67500", "2026-02-18T00:00:00Z"),
    "alert-128": ("005930", "buy", b"71200", "2026-02-18T01:00:00Z"),
    "alert-129": ("PEPEUSDT", "buy", b"1.043e-05", "2026-02-18T15:00:00Z"),
}
"""Instrument, side, price and time of the alerts in the contract's form. 127 says its side in a field of its own."""

MALFORMED: Final = {
    "alert-009": (1, 59, strict.UNQUOTED_WORD),
    "alert-012": (1, 12, strict.SEPARATED_VALUES),
    "alert-013": (1, 12, strict.SEPARATED_VALUES),
    "alert-014": (1, 13, strict.SEPARATED_VALUES),
    "alert-015": (1, 12, strict.SEPARATED_VALUES),
    "alert-016": (1, 1, strict.SEPARATED_VALUES),
    "alert-017": (1, 1, strict.SEPARATED_VALUES),
    "alert-018": (1, 1, strict.KEY_VALUE),
    "alert-019": (1, 1, strict.KEY_VALUE),
    "alert-020": (1, 1, strict.KEY_VALUE),
    "alert-021": (1, 1, strict.KEY_VALUE),
    "alert-022": (1, 1, strict.KEY_VALUE),
    "alert-025": (1, 1, strict.PLAIN_TEXT),
    "alert-026": (1, 1, strict.PLAIN_TEXT),
    "alert-029": (1, 1, strict.KEY_VALUE),
    "alert-030": (1, 1, strict.KEY_VALUE),
    "alert-031": (1, 1, strict.KEY_VALUE),
    "alert-032": (1, 1, strict.KEY_VALUE),
    "alert-033": (1, 1, strict.KEY_VALUE),
    "alert-034": (1, 1, strict.KEY_VALUE),
    "alert-035": (1, 1, strict.KEY_VALUE),
    "alert-036": (1, 1, strict.KEY_VALUE),
    "alert-037": (1, 1, strict.PLAIN_TEXT),
    "alert-038": (1, 1, strict.PLAIN_TEXT),
    "alert-039": (1, 1, strict.KEY_VALUE),
    "alert-040": (1, 1, strict.KEY_VALUE),
    "alert-041": (1, 1, strict.KEY_VALUE),
    "alert-044": (1, 6, strict.NO_BRACES),
    "alert-045": (1, 1, strict.SEPARATED_VALUES),
    "alert-049": (1, 3, strict.UNQUOTED_KEY),
    "alert-053": (6, 20, strict.EMPTY_PLACEHOLDER),
    "alert-060": (1, 1, strict.PLAIN_TEXT),
    "alert-061": (1, 1, strict.PLAIN_TEXT),
    "alert-062": (1, 1, strict.PLAIN_TEXT),
    "alert-063": (1, 1, strict.PLAIN_TEXT),
    "alert-064": (1, 1, strict.PLAIN_TEXT),
    "alert-065": (1, 1, strict.KEY_VALUE),
    "alert-066": (1, 1, strict.PLAIN_TEXT),
    "alert-067": (1, 1, strict.KEY_VALUE),
    "alert-068": (1, 6, strict.KEY_VALUE),
    "alert-070": (1, 1, strict.PLAIN_TEXT),
    "alert-071": (1, 1, strict.PLAIN_TEXT),
    "alert-072": (1, 1, strict.SEPARATED_VALUES),
    "alert-073": (1, 1, strict.SEPARATED_VALUES),
    "alert-074": (1, 1, strict.SEPARATED_VALUES),
    "alert-075": (1, 1, strict.SEPARATED_VALUES),
    "alert-076": (1, 1, strict.SEPARATED_VALUES),
    "alert-077": (1, 1, strict.SEPARATED_VALUES),
    "alert-078": (1, 1, strict.SEPARATED_VALUES),
    "alert-079": (1, 1, strict.KEY_VALUE),
    "alert-080": (1, 1, strict.KEY_VALUE),
    "alert-088": (5, 24, strict.EMPTY_PLACEHOLDER),
    "alert-093": (8, 28, strict.UNESCAPED_QUOTE),
    "alert-094": (8, 18, strict.CONTROL_CHARACTER),
    "alert-103": (2, 1, strict.TYPOGRAPHIC_QUOTES),
    "alert-105": (5, 30, strict.TRAILING_COMMA),
    "alert-106": (2, 13, strict.UNQUOTED_WORD),
    "alert-107": (1, 2, strict.SINGLE_QUOTES),
    "alert-134": (1, 1, strict.PLAIN_TEXT),
    "alert-141": (1, 1, strict.KEY_VALUE),
    "alert-142": (1, 1, strict.KEY_VALUE),
    "alert-149": (1, 1, strict.PLAIN_TEXT),
    "alert-150": (1, 1, strict.PLAIN_TEXT),
    "alert-151": (1, 1, strict.KEY_VALUE),
    "alert-152": (1, 5, strict.SEPARATED_VALUES),
    "alert-153": (1, 11, strict.SEPARATED_VALUES),
    "alert-155": (1, 46, strict.NOT_A_NUMBER),
    "alert-156": (1, 30, strict.FOREIGN_LITERAL),
}
"""Line, column and likely cause of what is no JSON. Text, csv and kv would be refused by their media type before."""

INVALID: Final = {
    "alert-001": "price",
    "alert-002": "time price",
    "alert-003": "time price action",
    "alert-004": "time price",
    "alert-005": "ticker time price",
    "alert-006": "ticker time price",
    "alert-007": "time price",
    "alert-008": "ticker time price",
    "alert-010": "",
    "alert-011": "",
    "alert-023": "ticker time price action",
    "alert-024": "ticker time price action",
    "alert-027": "ticker time price",
    "alert-028": "ticker time price",
    "alert-042": "ticker time price",
    "alert-043": "ticker time",
    "alert-046": "ticker time price",
    "alert-047": "ticker time price",
    "alert-048": "price",
    "alert-050": "ticker time price",
    "alert-051": "ticker time price",
    "alert-052": "time",
    "alert-054": "ticker time price",
    "alert-055": "ticker time price",
    "alert-056": "ticker time",
    "alert-057": "ticker time price",
    "alert-058": "ticker time price",
    "alert-059": "time action",
    "alert-069": "ticker time price",
    "alert-081": "price",
    "alert-082": "ticker time price",
    "alert-083": "ticker time price",
    "alert-084": "time",
    "alert-085": "ticker time price",
    "alert-086": "ticker time price",
    "alert-087": "ticker time price",
    "alert-089": "ticker time price",
    "alert-091": "time price",
    "alert-092": "time",
    "alert-095": "ticker time price",
    "alert-096": "ticker time price",
    "alert-097": "ticker time price",
    "alert-098": "ticker time price",
    "alert-099": "ticker time price",
    "alert-100": "time price",
    "alert-101": "strategy",
    "alert-104": "time price",
    "alert-108": "ticker",
    "alert-109": "ticker",
    "alert-110": "ticker time price",
    "alert-111": "time price",
    "alert-112": "ticker time price",
    "alert-113": "ticker time",
    "alert-114": "ticker time",
    "alert-115": "ticker time action",
    "alert-116": "ticker time",
    "alert-117": "ticker time price",
    "alert-118": "time price",
    "alert-119": "time price",
    "alert-120": "ticker time price action",
    "alert-121": "ticker time price",
    "alert-122": "time price",
    "alert-123": "time price",
    "alert-124": "ticker time price",
    "alert-125": "ticker time price",
    "alert-126": "time strategy",
    "alert-130": "action",
    "alert-131": "price action",
    "alert-132": "source instrument timestamp payload",
    "alert-133": "source instrument timestamp payload",
    "alert-135": "source instrument timestamp payload",
    "alert-136": "source instrument timestamp payload",
    "alert-137": "source instrument timestamp payload",
    "alert-138": "source instrument timestamp payload",
    "alert-139": "source instrument timestamp payload",
    "alert-140": "source instrument timestamp payload",
    "alert-143": "source instrument timestamp payload",
    "alert-144": "source instrument payload",
    "alert-145": "source instrument timestamp payload",
    "alert-146": "source instrument timestamp payload",
    "alert-147": "source instrument timestamp payload",
    "alert-148": "source instrument timestamp payload",
    "alert-154": "source instrument payload",
}
"""The fields that are wrong in what is JSON; none for a document that is no object."""


_REASONS: Final = {
    "alert-006": ("ticker", "formula"),
    "alert-010": ("", "object"),
    "alert-011": ("", "object"),
    "alert-051": ("price", "inside `data`"),
    "alert-054": ("ticker", "required"),
    "alert-058": ("ticker", "required"),
    "alert-085": ("ticker", "required"),
    "alert-098": ("ticker", "required"),
    "alert-109": ("ticker", "`symbol`"),
    "alert-110": ("ticker", "required"),
    "alert-116": ("ticker", "`instrument`"),
    "alert-139": ("instrument", "`stocks`"),
}
"""For what the collection itself calls no signal: a field among the faults, and a word of what is said about it."""


def _read(alert: dict[str, Any]) -> Signal | Generic | Malformed | Invalid:
    body = alert["body"].encode("utf-8")
    return read_tradingview(body) if alert["kind"] == "tradingview" else read_generic(body)


class Alerts(SynchronousTestCase):
    """The three tables above are the answers."""

    def test_every_alert_stands_in_one_table(self) -> None:
        """No alert is left out, none is answered twice."""
        self.assertEqual(sorted([*ACCEPTED, *MALFORMED, *INVALID]), sorted(ALERTS))

    def test_accepted(self) -> None:
        """What is in the contract's form becomes the signal that a careful reader sees, the price as it was sent."""
        for name, (instrument, side, price, time) in ACCEPTED.items():
            signal = _read(ALERTS[name])
            assert isinstance(signal, Signal), (name, signal)
            self.assertEqual(
                (signal.instrument, signal.side, signal.price, signal.time),
                (instrument, side, price, parse_rfc3339(time)),
            )
            expected = ALERTS[name]["expect"]
            self.assertEqual(signal.instrument, expected["instrument"])
            self.assertEqual(float(signal.price), float(expected["price"]))

    def test_malformed(self) -> None:
        """What is no JSON is refused with its place and its likely cause."""
        for name, wanted in MALFORMED.items():
            answer = _read(ALERTS[name])
            assert isinstance(answer, Malformed), (name, answer)
            self.assertEqual((answer.line, answer.column, answer.likely_cause), wanted, name)

    def test_everything_that_calls_itself_json_is_read_as_json(self) -> None:
        """The collection's JSON is accepted as such, its broken JSON and its plain text are not."""
        for name, alert in ALERTS.items():
            self.assertIs(name in MALFORMED, alert["format"] != "json", name)

    def test_invalid(self) -> None:
        """What is JSON but no signal is refused with exactly the faults listed."""
        for name, paths in INVALID.items():
            answer = _read(ALERTS[name])
            assert isinstance(answer, Invalid), (name, answer)
            self.assertEqual(" ".join(fault.path for fault in answer.faults), paths, name)
            self.assertEqual(answer.is_object, paths != "", name)
            self.assertFalse(answer.is_empty)

    def test_reasons_are_named_by_the_faults(self) -> None:
        """Where the collection says why something is no signal, a fault says so too, or the likely cause does."""
        without_signal = {name for name, alert in ALERTS.items() if alert.get("reason")}
        self.assertEqual(without_signal - set(MALFORMED), set(_REASONS))
        for name, (path, words) in _REASONS.items():
            answer = _read(ALERTS[name])
            assert isinstance(answer, Invalid)
            self.assertIn(words, next(fault.message for fault in answer.faults if fault.path == path), name)

    def test_no_secret_is_shown(self) -> None:
        """No token, password or key of a body appears in its answer."""
        for name, alert in ALERTS.items():
            shown = repr(_read(alert))
            for secret in alert.get("secrets", ()):
                self.assertNotIn(secret, shown, name)

    def test_side_under_another_name_is_not_taken_up(self) -> None:
        """A field that the format does not know is data: only `action` makes a side."""
        for name in ("alert-127",):
            self.assertNotIn('"action"', ALERTS[name]["body"])
            self.assertIsNotNone(ALERTS[name]["expect"]["side"])
            signal = _read(ALERTS[name])
            assert isinstance(signal, Signal)
            self.assertIsNone(signal.side)
