"""HTTP/1.1 requests as bytes: syntax and meaning of heads and chunked bodies, and refusals. No sockets.

The rule to keep: `TRANSITIONS` is the only definition of the syntax of a head. Python and the native
connection loop run the same table, so one can never accept what the other refuses, and bytes that can
never become a request are refused when the offending byte arrives. `parse_head` then asks only what a
table of states cannot know: how many, which of two, how large. Where the RFC lets a server repair a
message or guess, we refuse: a proxy in front that guesses otherwise is how requests are smuggled.

https://www.rfc-editor.org/rfc/rfc9112  (9110: fields and semantics, 3986: URIs)
"""

import ipaddress
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MAX_HEAD_BYTES = 16384  # request line and fields; also the trailers of a chunked body
MAX_CHUNK_EXTENSION_BYTES = 4096  # in one body, all chunks together: nobody uses them
MAX_CHUNK_SIZE_DIGITS = 16
MAX_CONTENT_LENGTH_DIGITS = 19

START, LINE_START, DONE = range(3)  # the first states of `head_grammar`, in its order
REJECT = 128  # above every live state, and round: a larger grammar does not renumber the refusals

REFUSALS = {  # code: (status, message); the rejecting state of the n-th row is REJECT + n
    "bad_request_line": (400, "The request line must be: method, space, target, space, version, CRLF."),
    "bad_target": (400, "The request target must be a path that begins with '/' or an http(s) URI,"
                        " without a fragment; '*' is for OPTIONS."),
    "http_version_not_supported": (505, "This server speaks HTTP/1.1 and HTTP/1.0."),
    "method_not_supported": (501, "This server is not a proxy: CONNECT is not supported."),
    "bad_header": (400, "A header line must be: name, colon, value, CRLF. No control characters, no space"
                        " before the colon, one line for a field of one value; framing is not for trailers."),
    "obsolete_line_folding": (400, "A header line must not begin with white space."),
    "missing_host": (400, "An HTTP/1.1 request needs a Host header."),
    "duplicate_host": (400, "There must be one Host header."),
    "bad_host": (400, "The Host header must be: host name or address, optionally a colon and a port."),
    "bad_content_length": (400, "There must be one Content-Length, of decimal digits only."),
    "conflicting_length": (400, "Content-Length and Transfer-Encoding exclude each other."),
    "bad_transfer_encoding": (400, "Transfer-Encoding must be 'chunked', once, in an HTTP/1.1 request."),
    "unsupported_transfer_encoding": (501, "The only supported transfer coding is 'chunked'."),
    "expectation_failed": (417, "The only supported expectation is '100-continue'."),
    "headers_too_large": (431, f"Request line and headers must fit in {MAX_HEAD_BYTES} bytes;"
                               " so must trailers."),
    "bad_chunk": (400, "The chunked body is malformed."),
    "body_too_large": (413, "The request body is larger than this server accepts."),
}
_REJECTING = {code: REJECT + row for row, code in enumerate(REFUSALS)}

# A field that has one value: a second line with its name is refused, for a proxy may have used the other
# one. Fields of any other name are lists, whose lines are joined with commas (RFC 9110, 5.3).
SINGLETONS = dict.fromkeys((
    "authorization", "content-location", "content-range", "content-type", "date", "from", "if-modified-since",
    "if-range", "if-unmodified-since", "max-forwards", "proxy-authorization", "range", "referer",
    "user-agent"), "bad_header") | {
    "host": "duplicate_host", "content-length": "bad_content_length",
    "transfer-encoding": "bad_transfer_encoding"}

# The alphabets of RFC 9110, 5.6 and RFC 3986, 2.
DIGIT = string.digits.encode()
HEX = string.hexdigits.encode()
LETTER = string.ascii_letters.encode()
TCHAR = DIGIT + LETTER + b"!#$%&'*+-.^_`|~"
WHITESPACE = b" \t"
VISIBLE = bytes(range(0x21, 0x7F))
OBS_TEXT = bytes(range(0x80, 0x100))
TEXT = WHITESPACE + VISIBLE + OBS_TEXT
REG_NAME = DIGIT + LETTER + b"-._~!$&'()*+;="  # no comma: a list of hosts is not a host

# state: (code for any other byte, {bytes: next state or code}); where arcs share a byte, the later wins.
Grammar = dict[str, tuple[str, dict[bytes, str]]]


class Refusal(Exception):
    """A request that is not served: `status`, stable `code`, `message` with none of the client's bytes.

    Where the next request would begin is not known: the connection must be closed after the answer.
    """

    def __init__(self, code: str):
        super().__init__(code)
        self.code = code
        self.status, self.message = REFUSALS[code]


def refusal(state: int) -> Refusal:
    """What the rejecting `state` (>= REJECT) of a table stands for."""
    return Refusal(list(REFUSALS)[state - REJECT])


def head_grammar() -> Grammar:
    """RFC 9112, 2–5: one request head, from its first byte to the LF that ends it."""
    request_line, bad_length = "bad_request_line", "bad_content_length"
    bad_coding, other_coding = "bad_transfer_encoding", "unsupported_transfer_encoding"
    grammar: Grammar = {
        "start": (request_line, {TCHAR: "method", b"\r": "empty line CR"}),
        "line start": ("bad_header", {TCHAR: "name", WHITESPACE: "obsolete_line_folding", b"\r": "last CR"}),
        "done": ("done", {}),
        # One empty line before the request is allowed (2.2): old clients send a CRLF after a body.
        "empty line CR": (request_line, {b"\n": "method start"}),
        "method start": (request_line, {TCHAR: "method"}),
        "method": (request_line, {TCHAR: "method", b" ": "target start"}),
        "target start": (request_line, {VISIBLE + OBS_TEXT: "bad_target", b"/": "target", b"*": "asterisk"}),
        "asterisk": (request_line, {VISIBLE + OBS_TEXT: "bad_target", b" ": "version"}),
        "target": (request_line, {VISIBLE: "target", OBS_TEXT + b"#": "bad_target", b" ": "version"}),
        "scheme": ("bad_target", {}),
        "version": (request_line, {}),
        "major": (request_line, {DIGIT: "http_version_not_supported", b"1": "dot"}),
        "dot": (request_line, {b".": "minor"}),
        "minor": (request_line, {DIGIT: "version end"}),
        "version end": (request_line, {b"\r": "request line CR"}),
        "request line CR": (request_line, {b"\n": "line start"}),
        "length": (bad_length, {WHITESPACE: "length", DIGIT: "length digit"}),
        "length digit": (bad_length, {DIGIT: "length digit", WHITESPACE: "length end", b"\r": "value CR"}),
        "length end": (bad_length, {WHITESPACE: "length end", b"\r": "value CR"}),
        "coding": (bad_coding, {WHITESPACE: "coding", TCHAR: other_coding}),
        "other coding": (bad_coding, {TCHAR + WHITESPACE + b",;\r": other_coding}),
        "coding end": (bad_coding, {WHITESPACE: "coding end", b"\r": "value CR"}),
        "host end": ("bad_host", {WHITESPACE: "host end", b"\r": "value CR"}),
    }
    grammar |= _field_grammar()
    grammar |= _authority_grammar("authority", "bad_target", {b"/?": "target", b" ": "version"})
    grammar |= _authority_grammar("host", "bad_host", {WHITESPACE: "host end", b"\r": "value CR"})
    grammar["host"][1][WHITESPACE] = "host"
    for start in ("start", "method start"):
        _spell(grammar, start, b"CONNECT", otherwise="method", end={b" ": "method_not_supported"})
    _spell(grammar, "target start", b"http:/", otherwise="scheme", end={b"/": "authority"}, any_case=True)
    _spell(grammar, "scheme http", b"s:/", otherwise="scheme", end={b"/": "authority"}, any_case=True)
    _spell(grammar, "version", b"HTTP", otherwise="version", end={b"/": "major"})
    _spell(grammar, "coding", b"chunked", otherwise="other coding", any_case=True,
           end={WHITESPACE: "coding end", b",;": bad_coding, b"\r": "value CR"})
    for name, value in ((b"host", "host"), (b"content-length", "length"), (b"transfer-encoding", "coding")):
        _spell(grammar, "line start", name, otherwise="name", end={b":": value}, any_case=True)
    return grammar


def chunked_grammar() -> Grammar:
    """RFC 9112, 7.1: a chunked body without the data of its chunks, which `ChunkedDecoder` takes by size.

    The states from "extension" on read bytes that are only discarded.
    """
    after_value = {WHITESPACE: "extension end", b";": "extension", b"\r": "size CR"}
    grammar: Grammar = {
        "size": ("bad_chunk", {HEX: "size digit"}),
        "size digit": ("bad_chunk", {HEX: "size digit", **after_value}),
        "size CR": ("bad_chunk", {b"\n": "data"}),
        "data": ("bad_chunk", {}),
        "data end": ("bad_chunk", {b"\r": "data CR"}),
        "data CR": ("bad_chunk", {b"\n": "size"}),
        "done": ("done", {}),
        "extension": ("bad_chunk", {WHITESPACE: "extension", TCHAR: "extension name"}),
        "extension name": ("bad_chunk", {TCHAR: "extension name", WHITESPACE: "extension name end",
                                         b"=": "extension value", b";": "extension", b"\r": "size CR"}),
        "extension name end": ("bad_chunk", {WHITESPACE: "extension name end", b"=": "extension value",
                                             b";": "extension"}),
        "extension value": ("bad_chunk", {WHITESPACE: "extension value", TCHAR: "extension token",
                                          b'"': "quoted"}),
        "extension token": ("bad_chunk", {TCHAR: "extension token", **after_value}),
        "quoted": ("bad_chunk", {TEXT: "quoted", b"\\": "quoted pair", b'"': "quoted end"}),
        "quoted pair": ("bad_chunk", {TEXT: "quoted"}),
        "quoted end": ("bad_chunk", after_value),
        "extension end": ("bad_chunk", {WHITESPACE: "extension end", b";": "extension"}),
        "line start": ("bad_header", {TCHAR: "name", WHITESPACE: "obsolete_line_folding", b"\r": "last CR"}),
    }
    grammar |= _field_grammar()
    for name in (b"host", b"content-length", b"transfer-encoding"):  # too late for framing
        _spell(grammar, "line start", name, otherwise="name", end={b":": "bad_header"}, any_case=True)
    return grammar


def _field_grammar() -> Grammar:
    """RFC 9112, 5: what follows the first letter of a field line, and the CRLF after the last line."""
    return {
        "name": ("bad_header", {TCHAR: "name", b":": "value"}),
        "value": ("bad_header", {TEXT: "value", b"\r": "value CR"}),
        "value CR": ("bad_header", {b"\n": "line start"}),
        "last CR": ("bad_header", {b"\n": "done"}),
    }


def _authority_grammar(name: str, code: str, end: dict[bytes, str]) -> Grammar:
    """RFC 3986, 3.2 without user information: `uri-host [":" port]` from state `name` to an `end` byte."""
    reg_name = {REG_NAME: f"{name} reg-name", b"%": f"{name} %"}
    return {
        name: (code, {**reg_name, b"[": f"{name} ["}),
        f"{name} reg-name": (code, {**reg_name, b":": f"{name} port", **end}),
        f"{name} %": (code, {HEX: f"{name} %X"}),
        f"{name} %X": (code, {HEX: f"{name} reg-name"}),
        f"{name} [": (code, {HEX + b":.": f"{name} [", b"]": f"{name} ]"}),
        f"{name} ]": (code, {b":": f"{name} port", **end}),
        f"{name} port": (code, {DIGIT: f"{name} port", **end}),
    }


def _spell(grammar: Grammar, start: str, word: bytes, *, otherwise: str, end: dict[bytes, str],
           any_case: bool = False) -> None:
    """Add the states that follow `word` from state `start`: its last letter is followed by a byte of `end`.

    A byte that leaves the word does what state `otherwise` does with it.
    """
    code, arcs = grammar[otherwise][0], dict(grammar[otherwise][1])
    before = start
    for length in range(1, len(word) + 1):
        letter = word[length - 1:length]
        state = f"{otherwise} {word[:length].decode()}"
        grammar[before][1][letter.lower() + letter.upper() if any_case else letter] = state
        grammar.setdefault(state, (code, dict(arcs)))
        before = state
    grammar[before][1].update(end)


def compile_grammar(grammar: Grammar) -> np.ndarray:
    """The table of a grammar: next state = table[state, byte]; (REJECT + len(REFUSALS), 256) uint8.

    States are numbered in the order of the grammar. The final and the rejecting states keep every byte.
    """
    numbers = {state: number for number, state in enumerate(grammar)} | _REJECTING
    table = np.repeat(np.arange(REJECT + len(REFUSALS), dtype=np.uint8)[:, None], 256, axis=1)
    for state, (otherwise, arcs) in grammar.items():
        row = table[numbers[state]]
        row[:] = numbers[otherwise]
        for symbols, target in arcs.items():
            row[np.frombuffer(symbols, np.uint8)] = numbers[target]
    return table


TRANSITIONS = compile_grammar(head_grammar())  # (n_states, 256) uint8
_HEAD_ROWS = [bytes(row) for row in TRANSITIONS]  # Python reads an element of bytes three times as fast
_CHUNKED_ROWS = [bytes(row) for row in compile_grammar(chunked_grammar())]
_SIZE, _SIZE_DIGIT, _DATA, _DATA_END, _CHUNKED_DONE, _DISCARDED, _TRAILERS = map(
    list(chunked_grammar()).index,
    ("size", "size digit", "data", "data end", "done", "extension", "line start"))


@dataclass(frozen=True)
class RequestHead:
    """What one request head says. Text is latin-1, as HTTP has it; nothing is percent-decoded."""

    method: str
    target: str  # as sent
    path: str  # begins with "/", or is "*"
    query: str  # after the "?", else ""
    version: tuple[int, int]  # that it is served as: 1.2 is served as 1.1 (RFC 9110, 2.5)
    headers: Mapping[str, str]  # names in lower case; the lines of a list joined with ", "
    host: str  # uri-host [":" port], of the target where it has one; "" in an HTTP/1.0 request without
    content_length: int | None  # None: no such field, so no body unless chunked
    chunked: bool
    keep_alive: bool  # whether the client wants the connection to stay open
    expect_continue: bool  # whether the client waits for "100 Continue" before its body
    head_bytes: int


class HeadParser:
    """Reads one request head from bytes that arrive in any pieces."""

    def __init__(self):
        self.head: RequestHead | None = None
        self._state = START
        self._received = bytearray()

    def feed(self, data: bytes) -> int | None:
        """Read on; returns how many bytes of `data` belong to the head when it ends there, else None.

        Raises Refusal when the offending byte is in `data`, 431 for the byte after MAX_HEAD_BYTES, and
        again for whatever is fed after that. Once there is a `head` no more bytes are taken.
        """
        if self.head is not None:
            return 0
        room = MAX_HEAD_BYTES - len(self._received)
        taken = self._run(data[:room])
        self._received += data[:taken]
        if self._state == DONE:
            self.head = parse_head(self._received)
            return taken
        if len(data) > room:
            raise Refusal("headers_too_large")
        return None

    def _run(self, data: bytes) -> int:
        """Run the table; returns how many bytes were read: all, or those up to the end of the head."""
        rows, state = _HEAD_ROWS, self._state
        taken = 0
        while taken < len(data) and state != DONE:
            end = data.find(b"\n", taken) + 1 or len(data)  # only LF ends a head: no question within a line
            for byte in data[taken:end]:
                state = rows[state][byte]
            taken, self._state = end, state
            if state >= REJECT:
                raise refusal(state)
        return taken


_ABSOLUTE_FORM = re.compile(r"https?://([^/?]*)([^?]*)\??(.*)", re.IGNORECASE)


def parse_head(data: bytes | bytearray | memoryview) -> RequestHead:
    """The meaning of a complete head: its last byte has brought `TRANSITIONS` from START to DONE.

    Raises Refusal for what the table cannot see: counts, contradictions, sizes.
    """
    request_line, *field_lines = str(data, "latin-1").strip("\r\n").split("\r\n")
    method, target, protocol = request_line.split(" ")
    version = (1, 0) if protocol == "HTTP/1.0" else (1, 1)
    headers = _headers(field_lines)
    authority, path, query = _target(method, target)
    host = _host(headers, version)
    content_length, chunked = _framing(headers, version)
    return RequestHead(
        method, target, path, query, version, headers, authority or host, content_length, chunked,
        keep_alive=_keep_alive(headers, version),
        # An HTTP/1.0 client cannot wait, and without a body nobody does (RFC 9110, 10.1.1).
        expect_continue=_expects_continue(headers) and version == (1, 1) and bool(chunked or content_length),
        head_bytes=len(data))


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name not in headers:
            headers[name] = value
        elif name in SINGLETONS:
            raise Refusal(SINGLETONS[name])
        else:
            headers[name] += ", " + value
    return headers


def _target(method: str, target: str) -> tuple[str, str, str]:
    """(authority, path, query) of a target (RFC 9112, 3.2); only the absolute form has an authority."""
    if target == "*" and method != "OPTIONS":
        raise Refusal("bad_target")
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute is None:
        path, _, query = target.partition("?")
        return "", path, query
    authority, path, query = absolute.groups()
    _check_authority(authority, "bad_target")
    return authority, path or "/", query


def _host(headers: Mapping[str, str], version: tuple[int, int]) -> str:
    if "host" in headers:
        _check_authority(headers["host"], "bad_host")
    elif version >= (1, 1):
        raise Refusal("missing_host")
    return headers.get("host", "")


def _check_authority(authority: str, code: str) -> None:
    """Refuse what the grammar lets pass: a port above 65535, brackets around what is no IPv6 address."""
    address, bracket, rest = authority.rpartition("]")
    port = rest.partition(":")[2].lstrip("0")
    if len(port) > 5 or int(port or 0) > 65535:
        raise Refusal(code)
    try:
        if bracket:
            ipaddress.IPv6Address(address.removeprefix("["))
    except ValueError:
        raise Refusal(code) from None


def _framing(headers: Mapping[str, str], version: tuple[int, int]) -> tuple[int | None, bool]:
    """(content_length, chunked): how the body is delimited (RFC 9112, 6.1–6.3)."""
    digits, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if digits is not None and coding is not None:
        raise Refusal("conflicting_length")
    if coding is not None and version < (1, 1):
        raise Refusal("bad_transfer_encoding")
    if digits is not None and len(digits.lstrip("0")) > MAX_CONTENT_LENGTH_DIGITS:
        raise Refusal("body_too_large")
    return None if digits is None else int(digits.lstrip("0") or "0"), coding is not None


def _keep_alive(headers: Mapping[str, str], version: tuple[int, int]) -> bool:
    """RFC 9112, 9.3: "close" wins; HTTP/1.1 stays open unless told, HTTP/1.0 only when told."""
    options = {option.strip(" \t") for option in headers.get("connection", "").lower().split(",")}
    return "close" not in options and (version >= (1, 1) or "keep-alive" in options)


def _expects_continue(headers: Mapping[str, str]) -> bool:
    expectation = headers.get("expect")
    if expectation is not None and expectation.lower() != "100-continue":
        raise Refusal("expectation_failed")
    return expectation is not None


class ChunkedDecoder:
    """Decodes one chunked body (RFC 9112, 7.1) from bytes in any pieces; trailers are discarded."""

    def __init__(self, max_body_bytes: int):
        self.body = bytearray()
        self.done = False
        self._max_body_bytes = max_body_bytes
        self._state = _SIZE
        self._left = 0  # bytes of this chunk's data still to come
        self._digits = 0
        self._room, self._overrun = MAX_CHUNK_EXTENSION_BYTES, "bad_chunk"  # for discarded bytes

    def feed(self, data: bytes) -> int:
        """Read on; returns how many bytes of `data` were taken: all, unless the body ended before.

        Raises Refusal when the offending byte is in `data`; 413 for the digit that makes the body too large.
        """
        pos = 0
        while pos < len(data) and not self.done:
            if self._state == _DATA:
                pos += self._take_data(data[pos:pos + self._left])
            else:
                self._take_framing(data[pos])
                pos += 1
        return pos

    def _take_data(self, piece: bytes) -> int:
        self.body += piece
        self._left -= len(piece)
        if not self._left:
            self._state = _DATA_END
        return len(piece)

    def _take_framing(self, byte: int) -> None:
        state = _CHUNKED_ROWS[self._state][byte]
        if state == _SIZE_DIGIT:
            state = self._after_size_digit(byte)
        elif state == _DATA:
            state = self._after_size()
        elif _DISCARDED <= state < REJECT:
            state = self._after_discarded(state)
        self._state = state
        if state >= REJECT:
            raise refusal(state)
        self.done = state == _CHUNKED_DONE

    def _after_size_digit(self, byte: int) -> int:
        self._digits += 1
        self._left = self._left * 16 + int(chr(byte), 16)
        if self._digits > MAX_CHUNK_SIZE_DIGITS:
            return _REJECTING["bad_chunk"]
        if len(self.body) + self._left > self._max_body_bytes:
            return _REJECTING["body_too_large"]
        return _SIZE_DIGIT

    def _after_size(self) -> int:
        self._digits = 0
        if self._left:
            return _DATA
        self._room, self._overrun = MAX_HEAD_BYTES, "headers_too_large"
        return _TRAILERS

    def _after_discarded(self, state: int) -> int:
        self._room -= 1
        return state if self._room >= 0 else _REJECTING[self._overrun]
