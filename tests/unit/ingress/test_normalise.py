"""The readers: what a body says, and what is told to whoever wrote a template that says it wrongly."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.ingress import normalise, strict
from gatewayd.ingress.fields import MAX_GOT_CHARACTERS, SCHEMA_VERSIONS, describe
from gatewayd.ingress.normalise import (
    CURRENT,
    READERS,
    Fault,
    Generic,
    Invalid,
    Malformed,
    Signal,
    read_generic,
    read_tradingview,
)
from gatewayd.times import Wall

_RULES = SCHEMA_VERSIONS[CURRENT]
_NOON = Wall(1705314600.0)  # 2024-01-15T10:30:00Z
_PLAIN = b'{"ticker":"EURUSD","action":"buy","price":1.0945,"time":"2024-01-15T10:30:00Z"}'
_GENERIC = b'{"source":"test","instrument":"BTCUSD","timestamp":"2024-01-15T10:30:00Z","payload":{"price":45000}}'


def _tradingview(**fields: Any) -> bytes:
    """A good body with fields replaced; ... leaves one out."""
    members = {"ticker": "EURUSD", "action": "buy", "price": 1.0945, "time": "2024-01-15T10:30:00Z", **fields}
    return json.dumps({key: value for key, value in members.items() if value is not ...}).encode()


def _generic(payload: Any = ..., **fields: Any) -> bytes:
    members = {
        "source": "test",
        "instrument": "BTCUSD",
        "timestamp": "2024-01-15T10:30:00Z",
        "payload": {"price": 45000} if payload is ... else payload,
        **fields,
    }
    return json.dumps({key: value for key, value in members.items() if value is not ...}).encode()


def _signal(body: bytes, version: str = CURRENT) -> Signal:
    answer = read_tradingview(body, version)
    assert isinstance(answer, Signal), answer
    return answer


def _faults(body: bytes, version: str = CURRENT) -> tuple[Fault, ...]:
    answer = read_tradingview(body, version)
    assert isinstance(answer, Invalid), answer
    return answer.faults


def _only(body: bytes) -> Fault:
    faults = _faults(body)
    assert len(faults) == 1, faults
    return faults[0]


def _generic_faults(body: bytes) -> tuple[Fault, ...]:
    answer = read_generic(body)
    assert isinstance(answer, Generic), answer
    assert isinstance(answer.signal, Invalid), answer
    return answer.signal.faults


class TradingView(SynchronousTestCase):
    """read_tradingview."""

    def test_the_common_body(self) -> None:
        """Every field arrives; the number is its token."""
        self.assertEqual(_signal(_PLAIN), Signal("EURUSD", b"1.0945", "buy", None, _NOON, None))
        body = b'{"ticker":"es1!","action":"sell","price":1e-05,"time":"2024-01-15T11:30:00.5+01:00",'
        body += b'"strategy":"EMA Cross (9, 21)","strength":0.850}'
        self.assertEqual(
            _signal(body), Signal("ES1!", b"1e-05", "sell", b"0.850", Wall(_NOON + 0.5), "EMA Cross (9, 21)")
        )

    def test_sides(self) -> None:
        """buy and sell are sides; close, null and nothing are none."""
        for action, side in (("buy", "buy"), ("sell", "sell"), ("close", None), (None, None), (..., None)):
            self.assertEqual(_signal(_tradingview(action=action)).side, side)

    def test_null_is_absent_where_a_field_is_optional(self) -> None:
        """Optional fields may be null; an empty strategy is none."""
        signal = _signal(_tradingview(action=None, strategy=None, strength=None))
        self.assertEqual((signal.side, signal.strategy, signal.strength), (None, None, None))
        self.assertIsNone(_signal(_tradingview(strategy="")).strategy)

    def test_null_is_a_fault_where_a_field_is_required(self) -> None:
        """null in ticker, price and time is told as null, a missing field as nothing."""
        faults = _faults(_tradingview(ticker=None, price=None, time=None))
        self.assertEqual([(f.path, f.got) for f in faults], [("ticker", "null"), ("time", "null"), ("price", "null")])
        self.assertEqual([f.got for f in _faults(b'{"x":1}')], ["nothing"] * 3)

    def test_unknown_fields_are_allowed(self) -> None:
        """Whatever else a body holds does not change what it says."""
        extra = {"__proto__": {"ticker": "X"}, "constructor": 1, "$where": "1", "x": "${jndi:ldap://x}", "y": "\0"}
        self.assertEqual(_signal(_tradingview(**extra, comment="{{7*7}}")), _signal(_PLAIN))

    def test_real_instruments(self) -> None:
        """What platforms really send as tickers passes, in upper case."""
        tickers = ["ES1!", "BTCUSDT.P", "BRK.B", "EURUSD", "M&M", "BANK_NIFTY", "BCH/EUR", "BINANCE:BTCUSDT", "005930"]
        for ticker in [*tickers, "1000PEPE-USDT-SWAP", "BTC/USDT:USDT", "X", "A" * 32]:
            self.assertEqual(_signal(_tradingview(ticker=ticker)).instrument, ticker)
            self.assertEqual(_signal(_tradingview(ticker=ticker.lower())).instrument, ticker)

    def test_instruments_that_are_none(self) -> None:
        """Blanks, control characters, injections, other alphabets and lengths are faults of the ticker."""
        bad = [
            "",
            " ",
            " EURUSD",
            "EURUSD ",
            "ES 03-26",
            "A" * 33,
            "signals.>",
            "*",
            "$JS.API",
            "-A",
            ".A",
            "A\0",
            "A\n",
        ]
        bad += ["\u0410BC", "\u017f", "\u0131", "\uff21", "NMFC-0.72*ROIC", "a\x1b[31m", "A\u200b", "{{ticker}}"]
        for ticker in [*bad, 5930, True, ["EURUSD"], {"t": 1}]:
            self.assertEqual(_only(_tradingview(ticker=ticker)).path, "ticker", ticker)

    def test_letters_that_become_ascii_in_upper_case(self) -> None:
        """A dotless i and a long s are not I and S, written as themselves or as escapes."""
        for letter in ("\u0131", "\u017f"):
            for body in (_PLAIN.replace(b"EURUSD", letter.encode()), _tradingview(ticker=letter)):
                self.assertEqual(_only(body).path, "ticker")

    def test_prices_that_are_none(self) -> None:
        """A price is a JSON number above 0 that fits a double: quoted ones, words, 0 and vast ones are not."""
        for price in ["1.0945", "", " 1", "1e3", True, None, -1, 0, {}, [], "NaN", "{{close}}"]:
            self.assertEqual(_only(_tradingview(price=price)).path, "price", price)
        for token in [b"1e999", b"-0", b"-1e999", b"0.0", b"1e-999", b"1" * 101, b"0." + b"0" * 98 + b"1"]:
            self.assertEqual(_only(_PLAIN.replace(b"1.0945", token)).path, "price", token)

    def test_prices_stay_as_they_were_sent(self) -> None:
        """No price is rounded or written anew, on neither road."""
        for token in [
            b"1.10",
            b"1E2",
            b"0.1000000000000000055511151231257827",
            b"1e-05",
            b"5e-324",
            b"1.7e308",
            b"9" * 100,
        ]:
            self.assertEqual(_signal(_PLAIN.replace(b"1.0945", token)).price, token)
            self.assertEqual(_signal(_PLAIN.replace(b"1.0945", token + b',"x":1')).price, token)

    def test_times(self) -> None:
        """RFC 3339 with a zone, in either case of its letters."""
        for text in ["2024-01-15T10:30:00Z", "2024-01-15t10:30:00z", "2024-01-15T12:00:00.000+01:30"]:
            self.assertEqual(_signal(_tradingview(time=text)).time, _NOON)

    def test_times_that_are_none(self) -> None:
        """Without a zone, dates, weeks, wild offsets and fractions, leap seconds, years at the ends: faults of time."""
        bad = ["2024-01-15T10:30:00", "2024-01-15", "2025-W01-1", "2025-W01-1T10:30:00Z", "2024-01-15T10:30:00+23:59"]
        bad += ["2024-01-15T10:30:00,5Z", "2024-01-15T10:30:00.1234567890Z", "0001-01-01T00:00:00+01:00", "", " "]
        bad += ["9999-12-31T23:59:59-01:00", "2024-01-15 10:30:00Z", "2024-02-30T10:30:00Z", "2024-06-30T23:59:60Z"]
        bad += ["2024-01-15T24:00:00Z", "20240115T103000.123Z", "{{timenow}}", "\u0662024-01-15T10:30:00Z"]
        for time in [*bad, 1705314600, 1705314600.5, True, []]:
            self.assertEqual(_only(_tradingview(time=time)).path, "time", time)

    def test_strengths(self) -> None:
        """0 to 1, the ends included."""
        for token in (b"0", b"1", b"0.5", b"1.0", b"1e-400"):
            self.assertEqual(_signal(_PLAIN[:-1] + b',"strength":%b}' % token).strength, token)
        for token in (b"-0.1", b"1.01", b"1e999", b'"0.5"', b'"strong"', b"true", b"{}", b"0." + b"1" * 99):
            self.assertEqual(_only(_PLAIN[:-1] + b',"strength":%b}' % token).path, "strength")

    def test_strategies(self) -> None:
        """A string of bounded length, in any alphabet, without NUL."""
        for strategy in ("EMA Cross (9, 21)", "\u041b\u041e\u041d\u0413 \U0001f680", "a" * 256, "two\nlines", "a\\b"):
            self.assertEqual(_signal(_tradingview(strategy=strategy)).strategy, strategy)
        for strategy in ("a" * 257, "a\0b", 5, {"name": "x"}, ["x"], False):
            self.assertEqual(_only(_tradingview(strategy=strategy)).path, "strategy")

    def test_every_fault_at_once(self) -> None:
        """One entry per wrong field, in the order ticker, time, price, action, strength, strategy."""
        body = _tradingview(ticker="", time=1, price="1", action="BUY", strength=2, strategy=3)
        self.assertEqual(
            [(fault.path, fault.got) for fault in _faults(body)],
            [
                ("ticker", 'string ""'),
                ("time", "number 1"),
                ("price", 'string "1"'),
                ("action", 'string "BUY"'),
                ("strength", "number 2"),
                ("strategy", "number 3"),
            ],
        )

    def test_not_an_object(self) -> None:
        """Any other document is one fault, of the body itself."""
        for body, got in ((b"[]", "array"), (b'"x"', 'string "x"'), (b"1", "number 1"), (b"null", "null")):
            self.assertEqual(
                read_tradingview(body),
                Invalid((Fault("", "must be a JSON object: {...}", got),), is_object=False, is_empty=False),
            )

    def test_the_empty_object(self) -> None:
        """{} is an object with every required field missing, and is known as empty."""
        for answer in (read_tradingview(b" {} "), read_generic(b"{}")):
            assert isinstance(answer, Invalid)
            self.assertTrue(answer.is_object and answer.is_empty and len(answer.faults) > 2)
        answer = read_tradingview(b'{"x":1}')
        assert isinstance(answer, Invalid)
        self.assertFalse(answer.is_empty)

    def test_what_is_not_json(self) -> None:
        """Broken text is Malformed, whatever it says, also where only the compiled decoder would let it pass."""
        for body in (
            _PLAIN[:-1] + b',"ticker":"GBPUSD"}',
            _PLAIN[:-1] + b',"price":2}',
            _PLAIN[:-1] + b',"x":{"a":1,"a":2}}',
            _PLAIN[:-1] + b',"x":"\xff"}',
            _PLAIN[:-1] + b',"x":' + b"[" * 40 + b"]" * 40 + b"}",
            b"\xef\xbb\xbf" + _PLAIN,
            _PLAIN + _PLAIN,
            b"",
        ):
            self.assertIsInstance(read_tradingview(body), Malformed, body)

    def test_depth_never_raises(self) -> None:
        """Levels without end are refused wherever they stand, also in a field that is read."""
        for body in (_PLAIN[:-1] + b',"x":' + b"[" * 100_000, _PLAIN.replace(b"1.0945", b"[" * 100_000)):
            answer = read_tradingview(body)
            assert isinstance(answer, Malformed)
            self.assertEqual(answer.likely_cause, strict.TOO_DEEP)


class Hints(SynchronousTestCase):
    """What the person who wrote the template is told."""

    def _message(self, path: str, body: bytes) -> str:
        return next(fault.message for fault in _faults(body) if fault.path == path)

    def test_a_field_under_another_name(self) -> None:
        """The name that was sent is put beside the one that is wanted, also one level down."""
        cases = {
            ("ticker", b'{"symbol":"X"}'): "required; did you mean to send `symbol` as `ticker`?",
            ("ticker", b'{"TICKER":"X"}'): "required; did you mean to send `TICKER` as `ticker`?",
            ("price", b'{"trigger_price":1}'): "required; did you mean to send `trigger_price` as `price`?",
            ("time", b'{"timestamp":"X"}'): "required; did you mean to send `timestamp` as `time`?",
            (
                "ticker",
                b'{"data":{"pair":"X"}}',
            ): "required; did you mean to send the `pair` inside `data` as `ticker`?",
            ("ticker", b'{"other":"X"}'): "required",
        }
        for (path, body), message in cases.items():
            self.assertEqual(self._message(path, body), message)

    def test_a_hint_repeats_no_name_of_the_sender(self) -> None:
        """Names outside of our own list appear in a hint only when they are short and plain."""
        for name in ("a\r\nb", "x" * 33, "\u20ac", 'a"b'):
            self.assertEqual(self._message("ticker", json.dumps({name: {"pair": 1}}).encode()), "required")

    def test_wrong_values(self) -> None:
        """Quoted numbers, empty strings, placeholders, formulas, capitals, other words and missing zones are named."""
        cases = {
            ("price", "1.0945"): "must be a number above 0, not a quoted one",
            ("price", ""): "must be a number above 0; the string is empty, as of a placeholder that gave nothing",
            ("price", "{{close}}"): "must be a number above 0, not a placeholder or formula that nobody filled in",
            ("price", "abc"): "must be a number above 0",
            (
                "ticker",
                "=signal.rawTicker",
            ): "must name an instrument, not a placeholder or formula that nobody filled in",
            ("ticker", ""): "must name an instrument; it is empty, as of a placeholder that gave nothing",
            ("ticker", 5930): "must name an instrument, as a string",
            ("action", "BUY"): "must be buy, sell or close, in lower case",
            ("action", "exit"): "must be buy, sell or close; send this one as `close`",
            ("action", "ENTER_SHORT"): "must be buy, sell or close; send this one as `sell`",
            ("action", "hold"): "must be buy, sell or close",
            ("time", 1705314600): "must be an RFC 3339 time with a zone, such as 2024-01-15T10:30:00Z, not a number",
            ("time", "2024-01-15T10:30"): (
                "must be an RFC 3339 time with a zone, such as 2024-01-15T10:30:00Z; it has no zone"
            ),
        }
        for (path, value), message in cases.items():
            self.assertEqual(self._message(path, _tradingview(**{path: value})), message)
        self.assertIn("it has a blank", self._message("ticker", _tradingview(ticker="ES 03-26")))
        self.assertIn("an indicator's alert", self._message("action", _tradingview(action="")))
        self.assertIn("100 characters", self._message("price", _PLAIN.replace(b"1.0945", b"1" * 101)))
        self.assertIn("double", self._message("price", _PLAIN.replace(b"1.0945", b"1e999")))

    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=200) | st.integers() | st.lists(st.none()) | st.none() | st.booleans())
    def test_got_is_short_and_printable(self, value: object) -> None:
        """What was got is at most 64 printable ASCII characters, fit for a header and a log, whatever was sent."""
        body = json.dumps({"action": value}).encode()
        for fault in _faults(body):
            self.assertLessEqual(len(fault.got), MAX_GOT_CHARACTERS)
            self.assertTrue(fault.got.isascii() and fault.got.isprintable())

    def test_describe_cuts_what_is_long(self) -> None:
        """A cut value ends in dots and is exactly as long as is allowed."""
        self.assertEqual(describe("a" * 500), 'string "' + "a" * 53 + "...")
        self.assertEqual(describe(b"1" * 500), "number " + "1" * 54 + "...")


class OldVersion(SynchronousTestCase):
    """Schema version 1.0.0."""

    def test_its_instruments(self) -> None:
        """3 to 6 letters, or two such groups with a slash."""
        for ticker in ("EURUSD", "eurusd", "BTC/USD", "ABC", "EUR/USDTUS"):
            self.assertEqual(_signal(_tradingview(ticker=ticker), "1.0.0").instrument, ticker.upper())

    def test_instruments_of_the_next_version_only(self) -> None:
        """What fits 1.1.0 alone is a fault that says so; what fits neither does not."""
        for ticker in ("ES1!", "AB", "BTCUSDT", "EUR/US", "BRK.B", "BTC/USD/EUR"):
            (fault,) = _faults(_tradingview(ticker=ticker), "1.0.0")
            self.assertIn("this one fits schema version 1.1.0 only", fault.message)
        (fault,) = _faults(_tradingview(ticker="A*B"), "1.0.0")
        self.assertNotIn("fits schema version", fault.message)

    def test_both_formats_know_it(self) -> None:
        """The table's readers take the version for either format."""
        body = _generic(instrument="ES1!")
        answer = READERS["generic"](body, None, "1.0.0")
        assert isinstance(answer, Generic)
        self.assertIsInstance(answer.signal, Invalid)
        self.assertIsInstance(READERS["tradingview"](_tradingview(ticker="ES1!"), "tradingview", "1.0.0"), Invalid)
        self.assertIsInstance(READERS["tradingview"](_PLAIN, "tradingview", "1.0.0"), Signal)


class GenericBodies(SynchronousTestCase):
    """read_generic."""

    def test_the_common_body(self) -> None:
        """Source, instrument, time and what the payload says."""
        self.assertEqual(read_generic(_GENERIC), Generic("test", Signal("BTCUSD", b"45000", None, None, _NOON, None)))
        body = _generic({"price": 1.5, "side": "sell", "strength": 0.5, "strategy": "s", "x": [1]}, more=1)
        self.assertEqual(read_generic(body), Generic("test", Signal("BTCUSD", b"1.5", "sell", b"0.5", _NOON, "s")))

    def test_side_and_action(self) -> None:
        """Either may say the side; both must say the same."""
        good: list[tuple[dict[str, Any], str | None]] = [
            ({"side": "buy"}, "buy"),
            ({"action": "sell"}, "sell"),
            ({"action": "close"}, None),
            ({"side": None, "action": "close"}, None),
            ({"side": "buy", "action": "buy"}, "buy"),
            ({"side": "buy", "action": None}, "buy"),
        ]
        for fields, side in good:
            answer = read_generic(_generic({"price": 1, **fields}))
            assert isinstance(answer, Generic)
            assert isinstance(answer.signal, Signal), answer
            self.assertEqual(answer.signal.side, side)
        for fields in ({"side": "buy", "action": "sell"}, {"side": "buy", "action": "close"}):
            self.assertEqual(
                _generic_faults(_generic({"price": 1, **fields})),
                (Fault("payload.side", "must say the same as `action`", 'string "buy"'),),
            )
        for fields, path in (({"side": "close"}, "side"), ({"side": ""}, "side"), ({"action": "BUY"}, "action")):
            (fault,) = _generic_faults(_generic({"price": 1, **fields}))
            self.assertEqual(fault.path, f"payload.{path}")

    def test_only_the_payload_is_looked_at(self) -> None:
        """A price beside the payload is none."""
        (fault,) = _generic_faults(_generic({}, price=1, side="buy"))
        self.assertEqual((fault.path, fault.got), ("payload.price", "nothing"))

    def test_the_payload_must_be_an_object(self) -> None:
        """A payload of another kind, or none, is one fault."""
        for payload in (None, [], "x", 1):
            (fault,) = _generic_faults(_generic(payload))
            self.assertEqual(fault.path, "payload")
        self.assertEqual([f.path for f in _generic_faults(b'{"source":"a"}')], ["instrument", "timestamp", "payload"])

    def test_the_source_stands_beside_the_faults(self) -> None:
        """A body that names its source is answered with it, so that the source is judged before the rest."""
        answer = read_generic(b'{"source":"evil","payload":[]}')
        assert isinstance(answer, Generic)
        self.assertEqual(answer.source, "evil")
        self.assertIsInstance(answer.signal, Invalid)

    def test_without_a_source(self) -> None:
        """Without one, or with one that is no string, the body is invalid, with every fault of it."""
        for source in (..., None, 1, ["test"]):
            answer = read_generic(_generic({"price": 0}, source=source))
            assert isinstance(answer, Invalid)
            self.assertEqual([fault.path for fault in answer.faults], ["source", "payload.price"])
            self.assertEqual((answer.is_object, answer.is_empty), (True, False))

    def test_the_path_may_name_the_source(self) -> None:
        """On a source's own path the body may leave it out; what it says is handed on, for the caller to compare."""
        for source in (..., None):
            answer = read_generic(_generic(source=source), "custom")
            self.assertEqual(answer, Generic("custom", Signal("BTCUSD", b"45000", None, None, _NOON, None)))
        for source in ("custom", "other", ""):
            answer = read_generic(_generic(source=source), "custom")
            assert isinstance(answer, Generic)
            self.assertEqual(answer.source, source)
        self.assertIsInstance(read_generic(_generic(source=1), "custom"), Invalid)

    def test_what_is_not_json_or_no_object(self) -> None:
        """Broken text is Malformed, other documents are one fault."""
        self.assertIsInstance(read_generic(_GENERIC[:-1]), Malformed)
        self.assertIsInstance(read_generic(_GENERIC[:-1] + b',"source":"a"}'), Malformed)
        self.assertIsInstance(read_generic(_GENERIC[:-1] + b',"payload":{"price":1}}'), Malformed)
        answer = read_generic(b"[1]")
        assert isinstance(answer, Invalid)
        self.assertFalse(answer.is_object)


_texts = st.sampled_from(
    ['"EURUSD"', '"es1!"', '"A B"', '""', '"\u20ac"', '"\u017f"', '"A\\u0041"', '"A\0"', '"x\ny"', "null", "1", "{}"]
)
_times = st.sampled_from(
    [
        '"2024-01-15T10:30:00Z"',
        '"2024-01-15T10:30:00.25+02:00"',
        '"2024-02-30T10:30:00Z"',
        '"2024-06-30T23:59:60Z"',
        '"2099-12-31T23:59:59Z"',
        '"2024-01-15T24:00:00Z"',
        '"2024-01-15"',
        "1705314600",
    ]
)
_numbers = st.sampled_from(
    [
        "1.0945",
        "1e999",
        "0",
        "-0",
        "1E-400",
        "01",
        "1.",
        "0.5",
        "1",
        '"1"',
        "null",
        "[1]",
        '{"a":1,"a":2}',
        "NaN",
        "9" * 101,
    ]
)
_words = st.sampled_from(['"buy"', '"sell"', '"close"', '"BUY"', '""', "null", "1", '"b\\u0075y"'])
_values = {
    "ticker": _texts,
    "instrument": _texts,
    "source": _texts,
    "strategy": _texts,
    "time": _times,
    "timestamp": _times,
    "price": _numbers,
    "strength": _numbers,
    "action": _words,
    "side": _words,
    "x": _texts,
}
_blanks = st.sampled_from(["", "", "", " ", "\n\t", "\u00a0", "\x0c"])


def _members(names: tuple[str, ...], least: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Objects that hold `least` in any order, some of `names`, and now and then a key twice."""
    good = {"ticker": '"EURUSD"', "instrument": '"EURUSD"', "price": "1.5", "payload": '{"price":1}'}
    good |= dict.fromkeys(("time", "timestamp"), '"2024-01-15T10:30:00Z"')

    def member(name: str) -> st.SearchStrategy[str]:
        usual = st.just(good[name]) if name in good else _values[name]
        value = st.one_of(usual, usual, _values.get(name, usual))
        return st.tuples(_blanks, value, _blanks).map(lambda t: f'"{name}"{t[0]}:{t[1]}{t[2]}')

    return (
        st.lists(st.sampled_from(names), max_size=3)
        .flatmap(lambda more: st.permutations([*least, *more]))
        .flatmap(lambda chosen: st.tuples(*map(member, chosen)))
        .map(lambda parts: "{" + ",".join(parts) + "}")
    )


_tradingview_texts = _members(("action", "strategy", "strength", "x", "price"), ("ticker", "price", "time"))
_payloads = _members(("side", "action", "strategy", "strength", "x"), ("price",))
_generic_texts = st.tuples(_members(("source", "source", "x"), ("instrument", "timestamp", "payload")), _payloads).map(
    lambda t: t[0].replace('{"price":1}', t[1])
)


class TwoRoads(SynchronousTestCase):
    """The compiled decoders may only ever say what the exact readers say."""

    def test_common_bodies_take_the_fast_road(self) -> None:
        """What platforms send in the contract's own form is taken by the compiled decoders."""
        self.assertIsNotNone(normalise._fast_tradingview(_PLAIN, _RULES))
        self.assertIsNotNone(normalise._fast_tradingview(_tradingview(strategy="S", strength=0.5), _RULES))
        self.assertIsNotNone(normalise._fast_generic(_GENERIC, None, _RULES))
        self.assertIsNotNone(normalise._fast_generic(_generic({"price": 1, "side": "buy"}, source=...), "a", _RULES))

    def test_both_roads_agree_on_them(self) -> None:
        """The fast road's answers are the exact one's."""
        self.assertEqual(normalise._exact_tradingview(_PLAIN, _RULES), read_tradingview(_PLAIN))
        self.assertEqual(normalise._exact_generic(_GENERIC, None, _RULES), read_generic(_GENERIC))

    @settings(max_examples=250, deadline=None)
    @given(_tradingview_texts)
    def test_tradingview_bodies(self, text: str) -> None:
        """What the fast road accepts, the exact one reads as the equal signal."""
        body = text.encode()
        fast = normalise._fast_tradingview(body, _RULES)
        exact = normalise._exact_tradingview(body, _RULES)
        if fast is not None:
            self.assertEqual(fast, exact)
        self.assertEqual(read_tradingview(body), exact)

    @settings(max_examples=250, deadline=None)
    @given(_generic_texts, st.sampled_from([None, "custom"]))
    def test_generic_bodies(self, text: str, path_source: str | None) -> None:
        """What the fast road accepts, the exact one reads as the equal signal of the same source."""
        body = text.encode()
        fast = normalise._fast_generic(body, path_source, _RULES)
        exact = normalise._exact_generic(body, path_source, _RULES)
        if fast is not None:
            self.assertEqual(fast, exact)
        self.assertEqual(read_generic(body, path_source), exact)

    @settings(max_examples=400, deadline=None)
    @given(st.sampled_from([_PLAIN, _GENERIC]), st.integers(0, 200), st.binary(max_size=3), st.integers(0, 3))
    def test_broken_bytes(self, body: bytes, at: int, put: bytes, drop: int) -> None:
        """Bytes put in and taken out anywhere never make the roads differ."""
        body = body[:at] + put + body[at + drop :]
        self.assertEqual(read_tradingview(body), normalise._exact_tradingview(body, _RULES))
        self.assertEqual(read_generic(body, "p"), normalise._exact_generic(body, "p", _RULES))
