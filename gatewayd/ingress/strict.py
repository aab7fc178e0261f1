"""
Strict JSON, and what is wrong with JSON that is not. Pure.

Decides whether a body is JSON as RFC 8259 has it and this product narrows it: UTF-8 without a byte order mark, no key
twice in one object, no NaN or Infinity, no unpaired surrogate, at most 32 levels, nothing after the document. Names the
line and column of what breaks it, and the slip that is likely behind it. Never decides what a document means, never
turns a number into a float, never shows a part of the body.
"""

import gc
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Final, TypeAlias

MAX_DEPTH: Final = 32

Json: TypeAlias = "dict[str, Json] | list[Json] | str | bytes | bool | None"
"""A document. A number is bytes, the token exactly as sent: b"1.0945", b"1e-05"."""

EMPTY_BODY: Final = "the body is empty"
UTF_16: Final = "the text is UTF-16 or UTF-32; send UTF-8"
BYTE_ORDER_MARK: Final = "a byte order mark before the text; save or send it as UTF-8 without one"
NOT_UTF_8: Final = "the text is in another encoding, such as Windows-1252; send UTF-8"
TOO_DEEP: Final = f"arrays and objects nested more than {MAX_DEPTH} levels deep"
PLAIN_TEXT: Final = "plain text instead of JSON"
SEPARATED_VALUES: Final = "comma-separated values instead of JSON"
KEY_VALUE: Final = "key=value pairs instead of JSON"
NO_BRACES: Final = "the braces around the members are missing"
TWO_DOCUMENTS: Final = "two documents in one body; send each in a request of its own"
SURPLUS_TEXT: Final = "text or a bracket too many after the end of the document"
TRUNCATED: Final = "the text was cut off, or a closing bracket or quotation mark is missing"
TRAILING_COMMA: Final = "a comma after the last member or element"
MISSING_COMMA: Final = "a comma is missing between two members or elements"
WRONG_BRACKET: Final = "a closing bracket that does not match the opening one"
EMPTY_PLACEHOLDER: Final = "nothing stands where a value must; a placeholder came out empty, perhaps"
OPEN_PLACEHOLDER: Final = "a {{placeholder}} that nobody filled in"
UNQUOTED_WORD: Final = "a word without double quotation marks"
UNQUOTED_KEY: Final = "a key without double quotation marks"
SINGLE_QUOTES: Final = "single quotation marks instead of double ones"
TYPOGRAPHIC_QUOTES: Final = "typographic quotation marks instead of plain ones, pasted from a document perhaps"
UNESCAPED_QUOTE: Final = 'a quotation mark inside a string; write it as \\"'
NOT_A_NUMBER: Final = "NaN and Infinity are not JSON; send null or leave the member out"
FOREIGN_LITERAL: Final = "None, True, False and undefined are not JSON; write null, true, false"
BAD_NUMBER: Final = "a number in a form that JSON does not have, such as +1, .5, 1., 01 or 0x10"
DECIMAL_COMMA: Final = "a decimal comma; write a decimal point"
COMMENT: Final = "a comment; JSON has none"
CONTROL_CHARACTER: Final = "a raw line break, tab or control character in a string; write it as \\n, \\t or \\u00nn"
BAD_ESCAPE: Final = "a backslash inside a string that begins no escape of JSON; write it as \\\\"
LONE_SURROGATE: Final = "half of a surrogate pair"
DUPLICATE_KEY: Final = "a key that stands twice in one object"


@dataclass(frozen=True, slots=True)
class Malformed:
    """
    Why a body is not strict JSON (GW-013). `message` and `likely_cause` are fixed texts, None when no cause is likely.

    `line` and `column` count from 1, lines by LF, columns in characters: the first character that cannot stand where it
    does, or the first byte that is not UTF-8. A string that is never closed is named by its opening quotation mark, a
    surplus comma by itself, a doubled key by its second mention, a foreign escape by its backslash.
    """

    message: str
    line: int
    column: int
    likely_cause: str | None


def read(body: bytes) -> "Json | Malformed":
    """
    The document in a body, or the first thing that is wrong with it.

    Looked for in this order: the encoding; then grammar, depth, constants and doubled keys, whichever a parser meets
    first (a doubled key where its object ends); then surrogates. A MiB takes 2 to 90 ms of CPU, depending on how many
    values it has; naming what is wrong with it nothing to 50 more, and 200 behind a MiB of brackets (measured).
    """
    if b"\0" in body[:2] or body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Malformed("the text is not UTF-8", 1, 1, UTF_16)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        before = body[: error.start].decode("utf-8")
        return _malformed(before, len(before), "the text is not UTF-8", NOT_UTF_8)
    if text.startswith("\ufeff"):
        return Malformed("a byte order mark is not allowed", 1, 1, BYTE_ORDER_MARK)
    end = _first_too_deep(text) if _may_be_too_deep(body) else len(text)
    try:
        document = _decode(text if end == len(text) else text[:end])
    except json.JSONDecodeError as error:
        if error.pos == end < len(text):
            return _malformed(text, end, f"more than {MAX_DEPTH} levels are not allowed", TOO_DEEP)
        return _explain(text, error)
    except _NotANumber:
        return _malformed(text, _first_constant(text), "a value is expected here", NOT_A_NUMBER)
    except _DoubledKey:
        return _malformed(text, _first_doubled_key(text), "this key was given before", DUPLICATE_KEY)
    if b"\\u" in body and (lone := _first_lone_surrogate(text)) is not None:
        return _malformed(text, lone, "an unpaired surrogate is not allowed", LONE_SURROGATE)
    return document


# Grammar: the standard library's decoder, in C, made strict by its hooks. msgspec keeps the last of two equal keys,
# turns numbers into floats and does not look into the strings it skips.


class _DoubledKey(Exception):
    """Raised through the decoder: an object that just closed has a key twice."""


class _NotANumber(Exception):
    """Raised through the decoder: NaN, Infinity or -Infinity stands where a value must."""


def _members(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _DoubledKey
    return members


def _refuse_constant(_: str) -> Json:
    raise _NotANumber


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_members, parse_float=str.encode, parse_int=str.encode, parse_constant=_refuse_constant
)
_LARGE: Final = 65_536


def _decode(text: str) -> Json:
    """
    Decode text that nests little enough.

    The collector rests while a large text is read: its passes over 350,000 young lists were two thirds of the time
    (54 -> 18 ms for a MiB of `[],`), and a document holds no cycle.
    """
    if len(text) < _LARGE or not gc.isenabled():
        document: Json = _DECODER.decode(text)
        return document
    gc.disable()
    try:
        document = _DECODER.decode(text)
    finally:
        gc.enable()
    return document


# Depth, before anything recurses.

_WS: Final = r"[ \t\n\r]*"
_INSIDE: Final = r'[^"\\]*+(?:\\.[^"\\]*+)*+'
_STRING: Final = f'"{_INSIDE}"'
_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_OTHER: Final = bytes(set(range(256)) - set(b"[]{}"))
_NESTING: Final = re.compile(rf'[^"\[\]{{}}]*+(?:{_STRING}|([\[\]{{}}])|".*\Z)', re.DOTALL)
_STEPS: Final = {"[": 1, "{": 1, "]": -1, "}": -1, "": 0}
_PEEK: Final = 4096


def _may_be_too_deep(body: bytes) -> bool:
    """
    False when a parser surely stays within MAX_DEPTH levels of a body that is JSON, and within twice as many before
    the first error of one that is not. True for JSON that is deeper, and for what looks so behind an error.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    if len(body) > _LARGE and _may_be_too_deep(body[:_PEEK]):
        return True
    # Up to its first error a body is stripped of its strings exactly; no parser goes further.
    outside = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    nesting = b"".join(outside).translate(_SQUARE, _OTHER)
    for _ in range(MAX_DEPTH):
        inner = nesting.replace(b"[]", b"")
        if len(inner) == len(nesting):
            break
        nesting = inner
    return b"[]" in nesting or nesting.count(b"[") > MAX_DEPTH


def _first_too_deep(text: str) -> int:
    """Where the first bracket below MAX_DEPTH opens; the end when something behind an error only looked like one."""
    for part in (text[:_PEEK], text):  # nearly always in the first; the loops are C, 200 ms for a MiB of brackets
        depths = list(accumulate(map(_STEPS.__getitem__, _NESTING.findall(part))))
        if MAX_DEPTH + 1 in depths:
            return next(islice(_NESTING.finditer(part), depths.index(MAX_DEPTH + 1), None)).end() - 1
    return len(text)


# What is wrong, and where. Only a refused body comes here.

_TYPOGRAPHIC: Final = frozenset("\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb\u2033\u2032\u00b4`")
_COMMENTS: Final = ("//", "/*", "#")
_CONSTANTS: Final = re.compile(rf"{_STRING}|(NaN|-?Infinity)", re.DOTALL)
# A string, with its value when it is a key with a short one (group 1 its inside, group 2 when it is a key); {; }.
_KEYS: Final = re.compile(
    rf'[^"{{}}]*+(?:"({_INSIDE})"{_WS}(?::{_WS}(?:{_STRING}|\{{{_WS}\}})?()|)|\{{\}}|(\{{)|(\}}))', re.DOTALL
)
# An escape of a surrogate behind an even number of backslashes; group 1 when its other half does not follow.
_SURROGATES: Final = re.compile(
    r"(?<!\\)(?:\\\\)*(?:\\u[dD][89ABab]..\\u[dD][C-Fc-f]..|(\\u[dD][89A-Fa-f]..))", re.DOTALL
)
_FOREIGN: Final = re.compile(r"(?:(-?(?:NaN|nan|Infinity|infinity|inf))|None|True|False|undefined)(?!\w)")
_PAIR: Final = re.compile(r"\s*[\w.]+\s*=")
_ANY_PAIR: Final = re.compile(r"\w=\S")
_NUMBER_FORM: Final = re.compile(r"[+.]?\d|-")


def _malformed(text: str, at: int, message: str, cause: str | None) -> Malformed:
    return Malformed(message, text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at), cause)


def _first_constant(text: str) -> int:
    return next(found.start() for found in _CONSTANTS.finditer(text) if found[1])


def _first_doubled_key(text: str) -> int:
    """Where a key of one object is mentioned for the second time. The decoder saw that there is one."""
    return next(_doubled_keys(text))


def _doubled_keys(text: str) -> Iterator[int]:
    outer: list[set[str]] = []
    keys: set[str] = set()
    for found in _KEYS.finditer(text):
        kind = found.lastindex
        if kind == 2:
            key = json.loads(f'"{found[1]}"') if "\\" in found[1] else found[1]
            if key in keys:
                yield found.start(1) - 1
            keys.add(key)
        elif kind == 3:
            outer.append(keys)
            keys = set()
        elif kind == 4:
            keys = outer.pop()


def _first_lone_surrogate(text: str) -> int | None:
    """Where an escape stands for half of a pair, in text that is otherwise JSON; None when none does."""
    return next((found.start(1) for found in _SURROGATES.finditer(text) if found[1]), None)


def _explain(text: str, error: json.JSONDecodeError) -> Malformed:
    """Put an error of the decoder into our words. Its own texts say where in the grammar it stood."""
    at, what = error.pos, error.msg
    if what.startswith("Expecting value"):
        return _no_value(text, at)
    if what.startswith("Expecting property name"):
        return _no_key(text, at)
    if what.startswith("Illegal trailing comma"):
        return _malformed(text, at, "a key or a value is expected after this comma", TRAILING_COMMA)
    if what.startswith("Expecting ':'"):
        return _malformed(text, at, "a colon is expected after the key", _after_key(text, at))
    if what.startswith("Expecting ','"):
        return _malformed(text, at, "a comma or the closing bracket is expected here", _after_value(text, at))
    if what.startswith("Extra data"):
        return _malformed(text, at, "the end of the text is expected here", _after_document(text, at))
    if what.startswith("Unterminated string"):
        return _malformed(text, at, "this string is never closed", TRUNCATED)
    if what.startswith("Invalid control character"):
        return _malformed(text, at, "a control character must be escaped in a string", CONTROL_CHARACTER)
    return _malformed(text, text.rfind("\\", 0, at + 1), "this escape is not one of JSON", BAD_ESCAPE)


def _before(text: str, at: int) -> int:
    """Where the last character before `at` stands that is no blank; -1 when there is none."""
    at -= 1
    while at >= 0 and text[at] in " \t\n\r":
        at -= 1
    return at


def _quotes_or_comment(text: str, at: int) -> str | None:
    """The cause that a character betrays wherever it stands outside of a string."""
    if text[at] == "'":
        return SINGLE_QUOTES
    if text[at] in _TYPOGRAPHIC:
        return TYPOGRAPHIC_QUOTES
    return COMMENT if text.startswith(_COMMENTS, at) else None


def _no_value(text: str, at: int) -> Malformed:
    message = "a value is expected here"
    last = _before(text, at)
    if at == len(text):
        return _malformed(text, at, message, EMPTY_BODY if last < 0 else TRUNCATED)
    if text[at] == "]" and last >= 0 and text[last] == ",":
        return _malformed(text, last, "a value is expected after this comma", TRAILING_COMMA)
    foreign = _FOREIGN.match(text, at)
    if foreign is not None and (last >= 0 or not text[foreign.end() :].strip()):
        cause: str | None = NOT_A_NUMBER if foreign[1] else FOREIGN_LITERAL
    elif (betrayed := _quotes_or_comment(text, at)) is not None:
        cause = betrayed
    elif last < 0:
        cause = _no_json(text)
    elif text[at] in ",]}":
        cause = EMPTY_PLACEHOLDER
    elif _NUMBER_FORM.match(text, at):
        cause = BAD_NUMBER
    else:
        cause = UNQUOTED_WORD if text[at].isalpha() or text[at] in "_$@#=%<" else None
    return _malformed(text, at, message, cause)


def _no_key(text: str, at: int) -> Malformed:
    message = "a key in double quotation marks is expected here"
    last = _before(text, at)
    if at == len(text):
        return _malformed(text, at, message, TRUNCATED)
    if text[at] == "}" and text[last] == ",":
        return _malformed(text, last, "a key is expected after this comma", TRAILING_COMMA)
    cause = _quotes_or_comment(text, at)
    if cause is None:
        if text[at] == "{" and last == at - 1:
            cause = OPEN_PLACEHOLDER
        elif text[at].isdigit() and last == at - 1 and text[at - 2 : at - 1].isdigit():
            cause = DECIMAL_COMMA
        elif text[at] == ",":
            cause = EMPTY_PLACEHOLDER
        elif text[at] in "]})":
            cause = WRONG_BRACKET
        else:
            cause = UNQUOTED_KEY
    return _malformed(text, at, message, cause)


def _after_key(text: str, at: int) -> str | None:
    if at == len(text):
        return TRUNCATED
    cause = _quotes_or_comment(text, at)
    if cause is None and text[at - 1] == '"' and (text[at].isalnum() or text[at] == '"'):
        return UNESCAPED_QUOTE
    return cause


def _after_value(text: str, at: int) -> str | None:
    """The cause behind a value that is followed by neither a comma nor its closing bracket."""
    if at == len(text):
        return TRUNCATED
    last, next_character = _before(text, at), text[at]
    betrayed = _quotes_or_comment(text, at)
    if next_character in "]}":
        return WRONG_BRACKET
    if text[last] == '"':
        if next_character in "{[" or (next_character == '"' and last < at - 1):
            return MISSING_COMMA
        return betrayed or (UNESCAPED_QUOTE if next_character not in ":=" else None)
    if betrayed is not None:
        return betrayed
    if last < at - 1 or text[last] in "]}":
        return MISSING_COMMA if next_character in '"{[' or next_character.isalnum() else None
    if text[last].isdigit() and next_character in ".0123456789eE+-_xX":
        return BAD_NUMBER
    return UNQUOTED_WORD if next_character.isalnum() or next_character in "!%$:/&._-" else None


def _after_document(text: str, at: int) -> str | None:
    """The cause behind a whole document that is followed by more."""
    first = text.lstrip(" \t\n\r")[0]
    if first == '"' and text[at] == ":":
        return NO_BRACES
    betrayed = _quotes_or_comment(text, at)
    if first in "{[":
        return betrayed or (TWO_DOCUMENTS if text[at] in "{[" else SURPLUS_TEXT)
    return betrayed or _no_json(text)


def _no_json(text: str) -> str:
    """Which kind of text a body is that was never meant to be JSON, by its first line."""
    head = text[:1000].strip()
    line = head.partition("\n")[0]
    if _PAIR.match(line) is not None:
        return KEY_VALUE
    if max(line.count(separator) for separator in ",;|") >= 2:
        return SEPARATED_VALUES
    return KEY_VALUE if _ANY_PAIR.search(head) is not None else PLAIN_TEXT
