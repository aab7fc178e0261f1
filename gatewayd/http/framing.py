"""
HTTP/1.1 framing: where a request begins and ends, and whether it may be read at all. Pure.

Decides every rule and cap on the way from bytes to a Request: llhttp judges the syntax, strictly; what it lets pass is
refused here. One message is parsed at a time: what follows it stays unparsed until the next read_head(), so that order
and bounds are the caller's to keep. Never answers, never reads a clock, never knows what is served.
"""

from typing import Any

import httptools

from gatewayd.http import rules
from gatewayd.http.message import Request
from gatewayd.http.rules import CHUNKED, Limits, Malformed
from gatewayd.octets import HASH, PERCENT, SLASH, UNDERSCORE


class Kept:
    """What all framings that share it keep of bodies that are not complete, in `bytes`."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Framing:
    """
    The requests of one connection, one after the other: push() bytes, then read_head(), then read_body() until it
    gives the body (also when there is none to read: b""), then read_head() again.

    After a Malformed nothing more can be read. While a message is current: `declared` is its Content-Length, 0, CHUNKED
    or OVERLONG; `keep_alive` whether another may follow; `http_1_0` its version; `expects_continue` whether the client
    waits for 100 (Continue) before it sends the body. `kept` is counted in together with other framings.
    """

    __slots__ = (
        "_at_once",
        "_body",
        "_body_bytes",
        "_bound",
        "_chunk_left",
        "_data",
        "_ended",
        "_extra",
        "_good_host",
        "_head_done",
        "_headers",
        "_in_trailers",
        "_keep",
        "_kept",
        "_left",
        "_limits",
        "_line",
        "_overhead",
        "_parser",
        "_position",
        "_raw",
        "_repeated",
        "_request_line",
        "_skipped",
        "_trailers",
        "_upgrading",
        "declared",
        "expects_continue",
        "http_1_0",
        "keep_alive",
    )

    def __init__(self, limits: Limits, kept: Kept | None = None) -> None:
        self._limits = limits
        self._kept = kept or Kept()
        self._at_once = min(limits.request_line, limits.header_line, limits.head - 4)
        self._data = b""
        self._position = 0
        self._parser: Any = httptools.HttpRequestParser(self)  # None once closed
        self._good_host: bytes | None = None
        # The head under way. `_raw` is what was fed of it so far, only when it came in pieces.
        self._raw = bytearray()
        self._request_line: tuple[bytes, bytes, bytes] | None = None
        self._skipped = 0
        self._headers: dict[bytes, bytes] = {}
        self._repeated: dict[bytes, list[bytes]] | None = None
        self._extra = 0
        self._head_done = False
        self._ended = False
        self._upgrading = False
        # The body under way.
        self._bound = 0
        self._keep = True
        self._body: bytearray | None = None
        self._left = 0
        self._chunk_left = 0
        self._line = bytearray()
        self._body_bytes = 0
        self._overhead = 0
        self._trailers = 0
        self._in_trailers = False
        self.declared = 0
        self.keep_alive = False
        self.http_1_0 = False
        self.expects_continue = False

    # -- what comes in ---------------------------------------------------------------------------------------------

    def push(self, data: bytes) -> None:
        """Add received bytes. Bounding what is held is the caller's: see `held`."""
        self._data = self._data[self._position :] + data if self._position < len(self._data) else data
        self._position = 0

    @property
    def held(self) -> int:
        """Bytes received and not yet read."""
        return len(self._data) - self._position

    @property
    def begun(self) -> bool:
        """True when a part of a head has been read and its end has not come yet."""
        return bool(self._raw)

    def rest(self) -> bytes:
        """Take out everything that was not read, for another protocol; what there is of a body is dropped."""
        rest = self._data[self._position :]
        self._data, self._position = b"", 0
        self._take_body()
        return rest

    def close(self) -> None:
        """Drop what is held and break the cycle with the parser; nothing can be read any more."""
        self._parser = None
        self._raw = bytearray()
        self.rest()

    # -- the head --------------------------------------------------------------------------------------------------

    def read_head(self) -> Request | Malformed | None:
        """The next request, its body not read and its times not set; None when its head is not complete."""
        data, start = self._data, self._position
        if self._raw or start == len(data):
            return self._read_head_in_pieces()
        # A head that is all there and shorter than a line may be is fed at once: only the count can be exceeded.
        end = data.find(b"\r\n\r\n", start, start + self._at_once) + 4
        if end == 3 or data[start] <= 32:
            return self._read_head_in_pieces()
        head = data if start == 0 and end == len(data) else data[start:end]
        self._start_message()
        if not self._feed(head):
            # Read again piece by piece, so that the verdict is the same however the bytes arrive.
            self._renew(b"")
            return self._read_head_in_pieces()
        self._position = end
        parts = head[: head.index(b"\r\n")].split(b" ")
        return rules.judge_line(parts) or self._judge_head(parts[0], parts[1], parts[2], UNDERSCORE in head)

    def _read_head_in_pieces(self) -> Request | Malformed | None:
        """Feed the request line up to its bound, judge it, then the header lines up to theirs."""
        limits, raw = self._limits, self._raw
        if not raw and not self._skip_blank_lines():
            return rules.HEAD_TOO_LARGE if self._skipped > limits.head else None
        if self._request_line is None:
            fed = self._feed_until(b"\r\n", limits.request_line + 2)
            if isinstance(fed, Malformed):
                return fed
            if not fed:
                return rules.TARGET_TOO_LONG if len(raw) == limits.request_line + 2 else None
            parts = bytes(raw[:-2]).split(b" ")
            refused = rules.judge_line(parts)
            if refused is not None:
                return refused
            self._request_line = (parts[0], parts[1], parts[2])
        fed = self._feed_until(b"\r\n\r\n", limits.head)
        if isinstance(fed, Malformed):
            return fed
        if not fed:
            return rules.HEAD_TOO_LARGE if len(raw) == limits.head else None
        _, *lines = raw.split(b"\r\n")
        request_line = self._request_line
        underscore = UNDERSCORE in raw
        self._raw = bytearray()
        self._request_line = None
        if max(map(len, lines)) > limits.header_line:
            return rules.HEADER_TOO_LARGE
        return self._judge_head(*request_line, underscore)

    def _skip_blank_lines(self) -> bool:
        """RFC 9112 2.2: an empty line before a request is ignored. Count it, and say whether a request begins."""
        data, start = self._data, self._position
        while self._position < len(data) and data[self._position] in b"\r\n":
            self._position += 1
        self._skipped += self._position - start
        if self._position == len(data) or self._skipped > self._limits.head:
            return False
        self._start_message()
        return True

    def _feed_until(self, end: bytes, bound: int) -> bool | Malformed:
        """Feed the held bytes up to `end`, with at most `bound` bytes in the whole head; True when it was there."""
        raw, before = self._raw, len(self._raw)
        raw += self._data[self._position : self._position + bound - before]
        found = raw.find(end, max(0, before - len(end) + 1))
        if found >= 0:
            del raw[found + len(end) :]
        piece = bytes(raw[before:])
        self._position += len(piece)
        if not self._feed(piece) or self._head_done != (found >= 0 and len(end) == 4):
            return rules.SYNTAX
        return found >= 0

    def _judge_head(self, method: bytes, target: bytes, version: bytes, underscore: bool) -> Request | Malformed:
        """The request of a head whose syntax is right, or what llhttp let pass and must not."""
        headers, repeated = self._headers, self._repeated
        # Whatever comes through on_header() from here on is a trailer and lands in a dictionary that nobody reads.
        self._headers, self._repeated = {}, None
        if len(headers) + self._extra > self._limits.headers:
            return rules.TOO_MANY_HEADERS
        self.http_1_0 = http_1_0 = version == b"HTTP/1.0"
        host = headers.get(b"host")
        if host is None:
            if not http_1_0:
                return rules.BAD_HOST
        elif host != self._good_host:
            if rules.HOST.fullmatch(host) is None:
                return rules.BAD_HOST
            self._good_host = host
        if repeated is not None and b"host" in repeated:
            return rules.BAD_HOST
        refused = self._judge_length(headers, repeated) or self._judge_expectation(headers)
        if refused is not None:
            return refused
        if underscore:
            # A proxy or an application may read X_Signature as X-Signature: such names do not exist here.
            for name in [name for name in headers if b"_" in name]:
                del headers[name]
                if repeated is not None:
                    repeated.pop(name, None)
        request = Request(method, target, headers, repeated=repeated)
        if http_1_0 and self.keep_alive:
            tokens = _tokens(request, b"connection")
            self.keep_alive = b"keep-alive" in tokens and b"close" not in tokens
        if self._upgrading or b"upgrade" in headers:
            self._judge_upgrade(request)
        if target[0] != SLASH or HASH in target or (PERCENT in target and b"%00" in request.path):
            return rules.judge_target(request, host) or request
        return request

    def _judge_length(self, headers: dict[bytes, bytes], repeated: dict[bytes, list[bytes]] | None) -> Malformed | None:
        """RFC 9112 6.3. llhttp has refused both at once, two lengths, and anything but digits in one."""
        coding = headers.get(b"transfer-encoding")
        if coding is None:
            length = headers.get(b"content-length")
            if length is None:
                self.declared = 0
            elif repeated is not None and b"content-length" in repeated:
                return rules.SYNTAX
            else:
                self.declared = int(length) if len(length) <= rules.CONTENT_LENGTH_DIGITS else rules.OVERLONG
            return None
        if self.http_1_0 or (repeated is not None and b"transfer-encoding" in repeated):
            return rules.TRANSFER_ENCODING
        if coding.lower() != b"chunked":
            return rules.UNKNOWN_CODING
        self.declared = CHUNKED
        return None

    def _judge_expectation(self, headers: dict[bytes, bytes]) -> Malformed | None:
        """RFC 9110 10.1.1: HTTP/1.0 cannot expect, and without a body there is nothing to wait for."""
        expected = headers.get(b"expect")
        if expected is None or self.http_1_0:
            self.expects_continue = False
            return None
        if expected.lower() != b"100-continue":
            return rules.EXPECTATION
        self.expects_continue = self.declared != 0
        return None

    def _judge_upgrade(self, request: Request) -> None:
        """
        Keep the header `Upgrade` only where it can be followed: GET, HTTP/1.1, no body, named in Connection. Elsewhere
        it is as if it were absent (RFC 9110 7.8 allows that), so that a leaf has to look at nothing but the header.

        llhttp ends an upgraded message at its head and would read its body as the next request: a new parser is given
        a head with the same framing instead. It counts Proxy-Connection as Connection, so Connection is read here.
        """
        if (
            request.method != b"GET"
            or self.http_1_0
            or self.declared != 0
            or not self._upgrading
            or b"upgrade" not in _tokens(request, b"connection")
        ):
            request.headers.pop(b"upgrade", None)
            if request.repeated is not None:
                request.repeated.pop(b"upgrade", None)
        if self._upgrading:
            keep_alive = self.keep_alive
            if self.declared == CHUNKED:
                self._renew(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            elif self.declared:
                self._renew(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % self.declared)
            else:
                self._renew(b"")
                self._ended = True
            self._headers, self.keep_alive = {}, keep_alive

    # -- the body --------------------------------------------------------------------------------------------------

    def begin_body(self, bound: int, *, keep: bool) -> None:
        """Say what becomes of the current body: at most `bound` bytes, kept or only counted. Call before read_body."""
        self._bound = bound
        self._keep = keep
        self._left = self.declared
        self._body = None
        self._chunk_left = self._body_bytes = self._overhead = self._trailers = 0
        self._in_trailers = False

    def read_body(self) -> bytes | Malformed | None:
        """
        The whole body (b"" when it is not kept), None when there is more to come, 413 when it is over the bound, 503
        when there is more to come and all framings together keep more than they may.
        """
        if self.declared == CHUNKED:
            return self._read_chunked()
        if self.declared > self._bound:
            return rules.TOO_LARGE
        piece = self._take(self._left)
        self._left -= len(piece)
        if piece and not self._feed(piece):
            return rules.SYNTAX
        if self._left == 0 and self._body is None:
            return (piece if self._keep else b"") if self._ended else rules.SYNTAX
        self._store(piece)
        return self._finish_body() if self._left == 0 else self._await_more()

    def _read_chunked(self) -> bytes | Malformed | None:
        """
        Feed chunk by chunk: the size line, the data with its CR LF, at last the trailer lines up to an empty one.

        llhttp judges each line before it is read here. A line ends at its first CR LF for both: llhttp refuses a bare
        CR or LF everywhere.
        """
        while True:
            if self._chunk_left:
                piece = self._take(self._chunk_left)
                if not piece:
                    return self._await_more()
                data_left = self._chunk_left - 2
                self._chunk_left -= len(piece)
                if not self._feed(piece):
                    return rules.SYNTAX
                self._store(piece[:data_left] if data_left > 0 else b"")
                continue
            line = self._take_line()
            if line is None:
                return self._await_more()
            if isinstance(line, Malformed):
                return line
            if not self._in_trailers:
                refused = self._begin_chunk(line)
                if refused is not None:
                    return refused
            elif not line:
                return self._finish_body() if self._ended else rules.SYNTAX

    def _begin_chunk(self, line: bytes) -> Malformed | None:
        """Read a size line (without its CR LF) that llhttp has accepted."""
        size = int(line.partition(b";")[0], 16)
        # What surrounds the data may cost a quarter of it: 1 MiB sent byte by byte would be 5 MiB of framing.
        self._overhead += len(line) + 4
        if self._overhead > self._limits.overhead + self._body_bytes // 4:
            return rules.OVERHEAD
        self._body_bytes += size
        if self._body_bytes > self._bound:
            return rules.TOO_LARGE
        if size:
            self._chunk_left = size + 2
        else:
            self._in_trailers = True
        return None

    def _take_line(self) -> bytes | Malformed | None:
        """The next line of a chunked body without its CR LF, fed as far as it is there; None when its end is not."""
        limits, line = self._limits, self._line
        bound = limits.trailers - self._trailers if self._in_trailers else limits.chunk_line
        before = len(line)
        line += self._data[self._position : self._position + bound + 2 - before]
        found = line.find(b"\r\n", max(0, before - 1))
        if found >= 0:
            del line[found + 2 :]
        piece = bytes(line[before:])
        self._position += len(piece)
        if piece and not self._feed(piece):
            return rules.SYNTAX
        if found < 0:
            if len(line) < bound + 2:
                return None
            return rules.TRAILERS if self._in_trailers else rules.CHUNK_LINE
        self._line = bytearray()
        if self._in_trailers:
            self._trailers += found
        return bytes(line[:found])

    def _take(self, most: int) -> bytes:
        """Up to `most` of the held bytes."""
        start = self._position
        piece = self._data[start : start + most]
        self._position = start + len(piece)
        return piece

    def _store(self, piece: bytes) -> None:
        # One growing buffer: a list of pieces would cost twenty times a body that arrives two bytes at a time.
        if self._body is None:
            self._body = bytearray()
        if self._keep:
            self._body += piece
            self._kept.bytes += len(piece)

    def _await_more(self) -> Malformed | None:
        return rules.BODIES if self._body and self._kept.bytes > self._limits.bodies else None

    def _take_body(self) -> bytes:
        body, self._body = self._body, None
        if not body:
            return b""
        self._kept.bytes -= len(body)
        return bytes(body)

    def _finish_body(self) -> bytes | Malformed:
        body = self._take_body()
        return body if self._ended else rules.SYNTAX

    # -- llhttp ----------------------------------------------------------------------------------------------------

    def _start_message(self) -> None:
        if self._headers or self._repeated:
            self._headers, self._repeated = {}, None
        self._extra = self._skipped = 0
        self._head_done = self._ended = self._upgrading = False

    def _renew(self, head: bytes) -> None:
        """Put a new parser in place, as it stands after `head`."""
        self._parser = httptools.HttpRequestParser(self)
        self._ended = False
        if head:
            self._parser.feed_data(head)

    def _feed(self, data: bytes) -> bool:
        """Give bytes to llhttp; False when it refuses them. Its texts are not shown: they change with its releases."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgrading = True
        except httptools.HttpParserError:
            return False
        return True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp. Kept at three steps: this is the hottest function of the channel."""
        name = name.lower()
        headers = self._headers
        if name in headers:
            self._repeat(name, value)
        else:
            headers[name] = value.strip()

    def _repeat(self, name: bytes, value: bytes) -> None:
        self._extra += 1
        if self._repeated is None:
            self._repeated = {}
        self._repeated.setdefault(name, [self._headers[name]]).append(value.strip())

    def on_headers_complete(self) -> None:
        """Called by llhttp, whose flags for keeping the connection are gone once the message has ended."""
        self._head_done = True
        self.keep_alive = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        """Called by llhttp: it agrees that the message ends here."""
        self._ended = True


def _tokens(request: Request, name: bytes) -> list[bytes]:
    """The members of a comma-separated header, in lower case."""
    return [token.strip() for value in request.values(name) for token in value.lower().split(b",")]
