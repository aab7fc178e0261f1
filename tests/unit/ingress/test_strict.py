"""strict.read: what is JSON here, what is not, and how exactly that is told."""

import gc
import json
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.ingress import strict
from gatewayd.ingress.strict import Malformed, read

_VECTORS = Path(__file__).parents[2] / "vectors"
_CASES: list[dict[str, Any]] = json.loads((_VECTORS / "json_cases.json").read_text("utf-8"))
_MIB = 1 << 20

# msgspec is no judge of these: it is laxer (doubled keys, skipped levels, text it does not look into).
_LAX = ("n_duplicated", "n_depth", "i_structure_500")


def _body(case: dict[str, Any]) -> bytes:
    body = bytes.fromhex(case["hex"]) if "hex" in case else case["text"].encode("utf-8")
    return body * case.get("repeat", 1)


def _standard_library_accepts(body: bytes) -> bool:
    """The json module with its extensions switched off: another road to the same rules."""

    def members(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError(pairs)
        return dict(pairs)

    def refuse(word: str) -> object:
        raise ValueError(word)

    def depth(value: object) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=members, parse_constant=refuse, parse_int=str, parse_float=str)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
        return depth(value) <= strict.MAX_DEPTH
    except (ValueError, RecursionError):
        return False


def _refused(body: bytes) -> Malformed:
    answer = read(body)
    assert isinstance(answer, Malformed), answer
    return answer


def _at(body: bytes) -> tuple[int, int, str | None]:
    answer = _refused(body)
    return answer.line, answer.column, answer.likely_cause


class Grammar(SynchronousTestCase):
    """The table of cases, and two other parsers as witnesses."""

    def test_every_case_of_the_table(self) -> None:
        """What must be accepted is, what must be refused is, what is left open is answered as the table fixes it."""
        wrong = [case["name"] for case in _CASES if isinstance(read(_body(case)), Malformed) is case["accepted"]]
        self.assertEqual(wrong, [])

    def test_the_table_is_large(self) -> None:
        """At least 90 cases to accept, 150 to refuse, 30 left open by the RFC."""
        counts = [sum(case["name"].startswith(kind) for case in _CASES) for kind in ("y_", "n_", "i_")]
        self.assertGreaterEqual(counts[0], 90)
        self.assertGreaterEqual(counts[1], 150)
        self.assertGreaterEqual(counts[2], 30)

    def test_the_standard_library_agrees_with_the_table(self) -> None:
        """The json module, made strict another way, gives the same answer for every case."""
        wrong = [case["name"] for case in _CASES if _standard_library_accepts(_body(case)) is not case["accepted"]]
        self.assertEqual(wrong, [])

    def test_msgspec_agrees_where_it_is_a_judge(self) -> None:
        """msgspec refuses what is refused here and accepts what is accepted, but for what it is known to let pass."""
        decode = msgspec.json.Decoder(float_hook=str).decode
        wrong = []
        for case in _CASES:
            body = _body(case)
            try:
                decode(body)
                accepted = True
            except (ValueError, RecursionError):
                accepted = False
            if accepted is not case["accepted"] and not case["name"].startswith(_LAX):
                wrong.append(case["name"])
        self.assertEqual(wrong, [])

    def test_every_refusal_says_where(self) -> None:
        """Line and column count from 1 and lie within the body or just behind it, for every refused case."""
        for case in _CASES:
            answer = read(_body(case))
            if isinstance(answer, Malformed):
                self.assertGreaterEqual(min(answer.line, answer.column), 1, case["name"])
                self.assertLessEqual(answer.column, len(_body(case)) + 1, case["name"])

    def test_numbers_stay_as_they_were_sent(self) -> None:
        """A number is its token; 1.10 does not become 1.1, and 17 digits stay 17 digits."""
        body = b'[1.10, -0, 1E5, 1e-05, 0.10000000000000000555, 1e999, {"a": 12345678901234567890}]'
        self.assertEqual(
            read(body),
            [b"1.10", b"-0", b"1E5", b"1e-05", b"0.10000000000000000555", b"1e999", {"a": b"12345678901234567890"}],
        )

    def test_strings_and_words(self) -> None:
        """Escapes are resolved, true, false and null are themselves."""
        self.assertEqual(
            read(b'{"a": "\\u20ac\\n\\"\\ud83d\\ude39", "b": [true, false, null]}'),
            {"a": '\u20ac\n"\U0001f639', "b": [True, False, None]},
        )


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
_fragments = st.sampled_from(
    [*"{}[],:\"\\ \n\t0-1.eE+x'", "\ud800", '"a"', "\\u", "d800", "\\ud83d", "\\ude39", "NaN", "true", "null", "[[[[[["]
)


class Properties(SynchronousTestCase):
    """What holds for any body."""

    @settings(max_examples=300, deadline=None)
    @given(_json_values)
    def test_what_json_writes_is_read(self, value: object) -> None:
        """Whatever the json module writes is accepted, and a number read back is the same number."""
        document = read(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))

        def same(got: object, sent: object) -> bool:
            if isinstance(sent, dict):
                return isinstance(got, dict) and list(got) == list(sent) and all(same(got[k], sent[k]) for k in sent)
            if isinstance(sent, list):
                return isinstance(got, list) and len(got) == len(sent) and all(map(same, got, sent))
            if isinstance(sent, bool) or not isinstance(sent, int | float):
                return got == sent
            return isinstance(got, bytes) and type(sent)(got) == sent

        self.assertTrue(same(document, value))

    @settings(max_examples=500, deadline=None)
    @given(st.lists(_fragments, max_size=14).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass")))
    def test_it_agrees_with_the_standard_library(self, body: bytes) -> None:
        """Any heap of JSON's pieces is accepted here exactly when the json module, made strict, accepts it."""
        self.assertEqual(not isinstance(read(body), Malformed), _standard_library_accepts(body))

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=60))
    def test_no_bytes_raise(self, body: bytes) -> None:
        """Any bytes give a document or a refusal with a place."""
        answer = read(body)
        if isinstance(answer, Malformed):
            self.assertGreaterEqual(min(answer.line, answer.column), 1)

    @settings(max_examples=200, deadline=None)
    @given(_json_values, st.data())
    def test_a_cut_document_is_refused_within_it(self, value: object, data: st.DataObject) -> None:
        """A document in brackets that loses its end is refused, at a place within what is left or just behind it."""
        text = json.dumps([value])
        cut = text[: data.draw(st.integers(0, len(text) - 1))]
        answer = _refused(cut.encode())
        self.assertLessEqual(answer.column, len(cut) + 1)


class Places(SynchronousTestCase):
    """Exact lines, columns and causes."""

    def test_slips_in_members(self) -> None:
        """Each slip is named, at the character that cannot stand there."""
        cases = {
            b'{"a": 1,}': (1, 8, strict.TRAILING_COMMA),
            b'{\n "a": 1 ,\n}': (2, 9, strict.TRAILING_COMMA),
            b"[1, 2,\n]": (1, 6, strict.TRAILING_COMMA),
            b'{"price": ,\n"x": 1}': (1, 11, strict.EMPTY_PLACEHOLDER),
            b'{"price": }': (1, 11, strict.EMPTY_PLACEHOLDER),
            b'{"a": 1,, "b": 2}': (1, 9, strict.EMPTY_PLACEHOLDER),
            b"[1,,2]": (1, 4, strict.EMPTY_PLACEHOLDER),
            b'{"price": {{close}}}': (1, 12, strict.OPEN_PLACEHOLDER),
            b'{"a": buy}': (1, 7, strict.UNQUOTED_WORD),
            b'{"a": 1INCH}': (1, 8, strict.UNQUOTED_WORD),
            b'{"a": 10%}': (1, 9, strict.UNQUOTED_WORD),
            b'{a: "b"}': (1, 2, strict.UNQUOTED_KEY),
            b"{'a': 1}": (1, 2, strict.SINGLE_QUOTES),
            b"{\"a\": 'b'}": (1, 7, strict.SINGLE_QUOTES),
            '{"a": 1, \u201cb\u201d: 2}'.encode(): (1, 10, strict.TYPOGRAPHIC_QUOTES),
            '{"a": \u201cb\u201d}'.encode(): (1, 7, strict.TYPOGRAPHIC_QUOTES),
            '{"a": "b\u201d, "c": 1}'.encode(): (1, 13, strict.UNESCAPED_QUOTE),
            b'{"a": "Profit "TP1"", "b": 1}': (1, 16, strict.UNESCAPED_QUOTE),
            b'{"a": "x""}': (1, 10, strict.UNESCAPED_QUOTE),
            b'{"a": 1 "b": 2}': (1, 9, strict.MISSING_COMMA),
            b'{"a": "x"\n"b": 2}': (2, 1, strict.MISSING_COMMA),
            b'{"a": [1} }': (1, 9, strict.WRONG_BRACKET),
            b'{"a": {"b": 1]}': (1, 14, strict.WRONG_BRACKET),
            b'{"a": 1, /* x */ "b": 2}': (1, 10, strict.COMMENT),
            b'{"a": 1 // x\n}': (1, 9, strict.COMMENT),
            b'{"a": 1.0945.2}': (1, 13, strict.BAD_NUMBER),
            b'{"a": 01}': (1, 8, strict.BAD_NUMBER),
            b'{"a": +1}': (1, 7, strict.BAD_NUMBER),
            b'{"a": .5}': (1, 7, strict.BAD_NUMBER),
            b'{"a": 1.}': (1, 8, strict.BAD_NUMBER),
            b'{"a": 1,0945}': (1, 9, strict.DECIMAL_COMMA),
            b'{"a": NaN}': (1, 7, strict.NOT_A_NUMBER),
            b'{"NaN": "NaN", "b": -Infinity}': (1, 21, strict.NOT_A_NUMBER),
            b'{"a": inf}': (1, 7, strict.NOT_A_NUMBER),
            b'{"a": None}': (1, 7, strict.FOREIGN_LITERAL),
            b'{"a": True}': (1, 7, strict.FOREIGN_LITERAL),
            b'{"a": undefined}': (1, 7, strict.FOREIGN_LITERAL),
            b'{"a" 1}': (1, 6, None),
            b'{"a"b": 1}': (1, 5, strict.UNESCAPED_QUOTE),
            b'{"a"}': (1, 5, None),
        }
        for body, wanted in cases.items():
            self.assertEqual(_at(body), wanted, body)

    def test_slips_in_strings(self) -> None:
        """Control characters, escapes and surrogates are named where they stand, unclosed strings where they begin."""
        cases = {
            b'{"a": "x\ny"}': (1, 9, strict.CONTROL_CHARACTER),
            b'{\n\n"a": "x\ty"}': (3, 8, strict.CONTROL_CHARACTER),
            b'{"a": "x\x00y"}': (1, 9, strict.CONTROL_CHARACTER),
            b'{"a": "C:\\temp\\x"}': (1, 15, strict.BAD_ESCAPE),
            b'{"a": "\\u12"}': (1, 8, strict.BAD_ESCAPE),
            b'{"a": "b': (1, 7, strict.TRUNCATED),
            b'{"a": 1': (1, 8, strict.TRUNCATED),
            b'{"a": 1, ': (1, 10, strict.TRUNCATED),
            b'{"a":': (1, 6, strict.TRUNCATED),
            b'{"a"': (1, 5, strict.TRUNCATED),
            b'{"a": "\\ud800"}': (1, 8, strict.LONE_SURROGATE),
            b'{"a": "\\\\ud800", "b": "\\ud83d\\ude39\\udc00"}': (1, 36, strict.LONE_SURROGATE),
            b'{"a": "\\ud800\\u0041"}': (1, 8, strict.LONE_SURROGATE),
        }
        for body, wanted in cases.items():
            self.assertEqual(_at(body), wanted, body)

    def test_an_escaped_backslash_before_ud800_is_no_surrogate(self) -> None:
        """Six characters that only look like an escape are kept."""
        self.assertEqual(read(b'["\\\\ud800"]'), ["\\ud800"])

    def test_doubled_keys(self) -> None:
        """The second mention is named, at any depth, also when it is written with an escape."""
        cases = {
            b'{"a": 1, "a": 2}': (1, 10),
            b'[{"x": {"a": 1, "b": {"a": 1}}}, {"b": 1,\n  "b": 2}]': (2, 3),
            b'{"a": "b", "c": {}, "\\u0061": 1}': (1, 21),
            b'{"a": 1, "{\\"a\\":": 1, "b": [], "b" : 1}': (1, 33),
        }
        for body, (line, column) in cases.items():
            self.assertEqual(_at(body), (line, column, strict.DUPLICATE_KEY), body)

    def test_bodies_of_another_kind(self) -> None:
        """Text that was never meant to be JSON is called by its kind."""
        cases = {
            b"": (1, 1, strict.EMPTY_BODY),
            b" \n ": (2, 2, strict.EMPTY_BODY),
            b"EURUSD Crossing Down 1.08500": (1, 1, strict.PLAIN_TEXT),
            b"<b>BUY</b>": (1, 1, strict.PLAIN_TEXT),
            b"AAPL,buy,182.35,15": (1, 1, strict.SEPARATED_VALUES),
            b"60000000001,buy,AUDUSD": (1, 12, strict.SEPARATED_VALUES),
            b"key|buy|EURUSD": (1, 1, strict.SEPARATED_VALUES),
            b"signal=buy,symbol=EURUSD": (1, 1, strict.KEY_VALUE),
            b"value1=a&value2=b": (1, 1, strict.KEY_VALUE),
            b'"key": "x",\n"msg": "y"': (1, 6, strict.NO_BRACES),
            b'{"a": 1}\n{"a": 2}': (2, 1, strict.TWO_DOCUMENTS),
            b'{"a": 1}}': (1, 9, strict.SURPLUS_TEXT),
            b"'{}'": (1, 1, strict.SINGLE_QUOTES),
            b"],": (1, 1, strict.PLAIN_TEXT),
            b"NaN": (1, 1, strict.NOT_A_NUMBER),
            b"None": (1, 1, strict.FOREIGN_LITERAL),
            b"None of it": (1, 1, strict.PLAIN_TEXT),
            b"// x\n{}": (1, 1, strict.COMMENT),
        }
        for body, wanted in cases.items():
            self.assertEqual(_at(body), wanted, body)

    def test_encodings(self) -> None:
        """UTF-8 alone, without a mark; of other bytes the first wrong one is named, counted in characters."""
        cases = {
            b"\xef\xbb\xbf{}": (1, 1, strict.BYTE_ORDER_MARK),
            '{"a": 1}'.encode("utf-16"): (1, 1, strict.UTF_16),
            '{"a": 1}'.encode("utf-16-le"): (1, 1, strict.UTF_16),
            '{"a": 1}'.encode("utf-16-be"): (1, 1, strict.UTF_16),
            '{"a": 1}'.encode("utf-32"): (1, 1, strict.UTF_16),
            '{"a": "\u20ac",\n "b\u20ac": "'.encode() + b'\xe9"}': (2, 9, strict.NOT_UTF_8),
            b'{"a": "\xc0\xaf"}': (1, 8, strict.NOT_UTF_8),
            b'{"a": "\xed\xa0\x80"}': (1, 8, strict.NOT_UTF_8),
        }
        for body, wanted in cases.items():
            self.assertEqual(_at(body), wanted, body)

    def test_columns_count_characters(self) -> None:
        """A column is where an editor shows it, not a number of bytes."""
        self.assertEqual(_at('{"\u20ac\U0001f680": x}'.encode())[:2], (1, 8))

    def test_depth(self) -> None:
        """Level 33 is named by its bracket; brackets in strings are none; an error before it comes first."""
        self.assertEqual(_at(b"[" * 33 + b"]" * 33), (1, 33, strict.TOO_DEEP))
        self.assertEqual(_at(b'{"a":' * 40), (1, 161, strict.TOO_DEEP))
        self.assertEqual(_at(b'["[[[[[[\\"[",\n' + b"[" * 32), (2, 32, strict.TOO_DEEP))
        self.assertEqual(_at(b" " * 70_000 + b"[" * 100), (1, 70_033, strict.TOO_DEEP))
        self.assertEqual(_at(b"[" + b"[]," * 30_000 + b"[" * 100), (1, 90_033, strict.TOO_DEEP))
        self.assertEqual(_at(b"[x" + b"[" * 100), (1, 2, strict.UNQUOTED_WORD))
        self.assertEqual(_at(b'{"a" "' + b"[" * 100), (1, 6, None))

    def test_a_refusal_shows_nothing_of_the_body(self) -> None:
        """Message and cause are fixed texts: whatever secret a broken body holds, they do not repeat it."""
        texts = {value for name, value in vars(strict).items() if name.isupper() and isinstance(value, str)}
        for body in (
            b'{"token": hunter2}',
            b"hunter2",
            b'{"hunter2": 1, "hunter2": 2}',
            b'{"a": "hunter2',
            b"{hunter2",
        ):
            answer = _refused(body)
            self.assertNotIn("hunter2", repr(answer))
            self.assertIn(answer.likely_cause, texts)


class Costs(SynchronousTestCase):
    """Bodies that are meant to hurt are judged like any other; what they cost `python -m tests.bench.bodies` shows."""

    def test_a_hundred_thousand_levels(self) -> None:
        """Depth is refused before anything recurses."""
        for body in (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000, b"[[],[" * 50_000):
            self.assertEqual(_refused(body).likely_cause, strict.TOO_DEEP)

    def test_large_bodies(self) -> None:
        """A MiB of empty arrays, 10,000 keys and a MiB of string are JSON."""
        keys = b"{" + b",".join(b'"k%d":%d' % (i, i) for i in range(10_000)) + b"}"
        for body in (b"[" + b"[]," * (_MIB // 3) + b"[]]", keys, b'"' + b"a" * _MIB + b'"'):
            self.assertNotIsInstance(read(body), Malformed)

    def test_the_error_of_a_large_body(self) -> None:
        """A MiB that is broken at its end is explained like a short body."""
        member = b'{"ticker":"EURUSD","price":1.0945,"note":"\\u20ac and more of it"},'
        start = b"[" + member * (_MIB // len(member))
        for end in (b"x]", b'{"a":1,}]', b"NaN]", b"", b'"', b'"\\ud800"]'):
            _refused(start + end)
        for end, cause in ((b'{"a":1,"a":2}]', strict.DUPLICATE_KEY), (b"[" * 40, strict.TOO_DEEP)):
            self.assertEqual(_refused(start + end).likely_cause, cause)

    def test_the_collector_is_left_as_it_was(self) -> None:
        """The collector rests only while a large body is read, whether that ends well or not."""
        for body in (b"[" + b"1," * _MIB + b"1]", b"[" + b"1," * _MIB):
            read(body)
            self.assertTrue(gc.isenabled())
        gc.disable()
        try:
            read(b"[" + b"1," * _MIB + b"1]")
            self.assertFalse(gc.isenabled())
        finally:
            gc.enable()

    def test_no_recursion_close_to_the_limit_of_the_stack(self) -> None:
        """32 levels are read with little of the stack left."""

        def dig(levels: int) -> object:
            return dig(levels - 1) if levels else read(b"[" * 32 + b"]" * 32)

        self.assertIsInstance(dig(700), list)
