"""HTTP/1.1 heads and chunked bodies: each input whole, byte by byte, in pieces, and with trailing data."""

import itertools

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import http1
from server.http1 import DONE, LINE_START, REJECT, REFUSALS, START, TRANSITIONS
from server.http1 import ChunkedDecoder, HeadParser, Refusal, RequestHead, parse_head
from tests.server.http_cases import ACCEPTED, CASES, LINE, MAX_HEAD_BYTES, REFUSED, Case

NEXT_REQUEST = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = (b"POST /v1/predict?a=1 HTTP/1.1\r\nHost: localhost:8000\r\nContent-Type: application/json\r\n"
        b"Content-Length: 55\r\n\r\n")


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def bytes_of(data: bytes) -> list[bytes]:
    return [data[i:i + 1] for i in range(len(data))]


def read_head(parts: list[bytes]) -> tuple[RequestHead | tuple[int, str] | None, int]:
    """(head, or status and code, or None where more is needed; how many bytes of the parts were read)."""
    parser, before = HeadParser(), 0
    for part in parts:
        try:
            taken = parser.feed(part)
        except Refusal as refused:
            return (refused.status, refused.code), before + len(part)
        if taken is not None:
            return parser.head, before + taken
        before += len(part)
    return None, before


def accepted(data: bytes) -> RequestHead:
    head, taken = read_head([data])
    assert isinstance(head, RequestHead), head
    assert taken == len(data)
    return head


def by_name(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


# Heads

def test_case_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


@by_name(ACCEPTED)
def test_valid_head_leaves_what_follows_untouched(case):
    data = case.head + case.tail + NEXT_REQUEST
    whole, taken = read_head([data])
    assert isinstance(whole, RequestHead)
    assert taken == len(case.head) == whole.head_bytes
    assert read_head(bytes_of(data)) == (whole, len(case.head))
    assert parse_head(memoryview(case.head)) == whole


@by_name(ACCEPTED)
def test_cut_head_waits_for_more(case):
    assert read_head(bytes_of(case.head[:-1])) == (None, len(case.head) - 1)


@by_name(REFUSED)
def test_refused_whole_as_byte_by_byte(case):
    for data in (case.data, case.data + NEXT_REQUEST):
        assert read_head([data])[0] == case.expected


@by_name(REFUSED)
def test_refused_exactly_when_the_offending_byte_arrives(case):
    assert read_head(bytes_of(case.data + NEXT_REQUEST)) == (case.expected, len(case.head))


@by_name(REFUSED)
def test_refused_parser_stays_refused(case):
    parser = HeadParser()
    for _ in range(2):
        with pytest.raises(Refusal) as refused:
            parser.feed(case.head)
            parser.feed(NEXT_REQUEST)
        assert refused.value.code == case.expected[1]
    assert parser.head is None


def test_every_refusal_of_a_head_has_a_case():
    codes = {case.expected[1] for case in REFUSED}
    assert codes == set(REFUSALS) - {"bad_chunk"}


def test_head_says_what_the_request_says():
    assert accepted(HEAD) == RequestHead(
        method="POST", target="/v1/predict?a=1", path="/v1/predict", query="a=1", version=(1, 1),
        headers={"host": "localhost:8000", "content-type": "application/json", "content-length": "55"},
        host="localhost:8000", content_length=55, chunked=False, keep_alive=True, expect_continue=False,
        head_bytes=len(HEAD))


@pytest.mark.parametrize("target, path, query, host", [
    (b"/", "/", "", "a"),
    (b"/a%2Fb/../c", "/a%2Fb/../c", "", "a"),
    (b"/a?b?c=/d", "/a", "b?c=/d", "a"),
    (b"//b/c", "//b/c", "", "a"),
    (b"/http://b/c", "/http://b/c", "", "a"),
    (b"http://b", "/", "", "b"),
    (b"http://b:1?q", "/", "q", "b:1"),
    (b"HttpS://[::1]:1/c?q?r", "/c", "q?r", "[::1]:1"),
])
def test_target_gives_path_query_and_host(target, path, query, host):
    head = accepted(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (head.target, head.path, head.query, head.host) == (target.decode(), path, query, host)


@pytest.mark.parametrize("version, connection, keep_alive", [
    (b"1.1", None, True), (b"1.1", b"close", False), (b"1.1", b"Keep-Alive", True),
    (b"1.1", b"upgrade,\tClose", False), (b"1.1", b"closed", True),
    (b"1.1", b"x\r\nConnection: close", False),
    (b"1.0", None, False), (b"1.0", b"keep-alive", True), (b"1.0", b"keep-alive, close", False),
    (b"1.9", None, True),
])
def test_connection_stays_open_by_version_and_options(version, connection, keep_alive):
    field = b"" if connection is None else b"Connection: " + connection + b"\r\n"
    head = accepted(b"GET / HTTP/" + version + b"\r\nHost: a\r\n" + field + b"\r\n")
    assert head.keep_alive is keep_alive


@pytest.mark.parametrize("version, framing, expected", [
    (b"1.1", b"Content-Length: 2\r\n", True), (b"1.1", b"Transfer-Encoding: chunked\r\n", True),
    (b"1.1", b"Content-Length: 0\r\n", False), (b"1.1", b"", False),
    (b"1.0", b"Content-Length: 2\r\n", False),
])
def test_continue_is_expected_only_before_a_body_on_http_1_1(version, framing, expected):
    fields = b"Host: a\r\nExpect: 100-continue\r\n" + framing
    head = accepted(b"POST / HTTP/" + version + b"\r\n" + fields + b"\r\n")
    assert head.expect_continue is expected


@pytest.mark.parametrize("framing, content_length, chunked", [
    (b"", None, False), (b"Content-Length: 0\r\n", 0, False), (b"Content-Length: 0012\r\n", 12, False),
    (b"Content-Length: " + b"9" * 19 + b"\r\n", 10 ** 19 - 1, False),
    (b"Content-Length: " + b"0" * 5000 + b"7\r\n", 7, False), (b"Transfer-Encoding: CHUNKED\r\n", None, True),
])
def test_body_is_framed_by_length_or_chunks(framing, content_length, chunked):
    head = accepted(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n")
    assert (head.content_length, head.chunked) == (content_length, chunked)


def test_lines_of_a_list_are_joined():
    head = accepted(LINE + b"Host: a\r\nAccept: a\r\nX-A: \xa0b\x85 \r\nACCEPT:b\t\r\n\r\n")
    assert head.headers == {"host": "a", "accept": "a, b", "x-a": "\xa0b\x85"}


def test_parser_with_a_head_takes_no_more_bytes():
    parser = HeadParser()
    assert parser.feed(HEAD + b"body") == len(HEAD)
    assert parser.feed(b"body") == 0


def test_head_limit_is_the_same_for_one_piece_and_for_many():
    assert http1.MAX_HEAD_BYTES == MAX_HEAD_BYTES
    data = LINE + b"Host: a\r\nX: " + b"x" * MAX_HEAD_BYTES
    assert read_head([data])[0] == read_head([data[:100], data[100:]])[0] == (431, "headers_too_large")
    assert read_head([data[:MAX_HEAD_BYTES]])[0] is None


@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(min_value=0), max_size=8))
def test_head_split_anywhere_means_the_same(case, cuts):
    data = case.data + NEXT_REQUEST
    split, whole = read_head(pieces(data, cuts)), read_head([data])
    assert split[0] == whole[0]
    if case.expected is None:
        assert split == whole


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_wait(data):
    head, _ = read_head([data])
    assert not isinstance(head, RequestHead)
    assert read_head(bytes_of(data))[0] == head


FRAGMENTS = st.sampled_from([
    b"GET ", b"POST ", b"OPTIONS ", b"/", b"*", b"http://", b"[::1]", b":", b"80", b" ", b"HTTP/1.1",
    b"HTTP/1.0", b"\r\n", b"\r", b"\n", b"Host: ", b"Host: a\r\n", b"Content-Length: ",
    b"Transfer-Encoding: ", b"chunked", b",", b"1", b"%41", b"Expect: ", b"100-continue",
    b"\t", b"\0", b"\xff", b"a"])


@settings(max_examples=500)
@given(st.lists(FRAGMENTS, max_size=20), st.lists(FRAGMENTS, max_size=6), st.integers(min_value=0))
def test_mutated_heads_raise_nothing_but_refusals(fragments, inserted, cut):
    base = HEAD[:cut % len(HEAD)] + b"".join(inserted) + HEAD[cut % len(HEAD):]
    tail = b"".join(fragments)
    for data in (tail, base, LINE + b"Host: a\r\n" + tail + b"\r\n\r\n"):
        assert read_head(bytes_of(data))[0] == read_head([data])[0]


def test_refusals_never_echo_the_request():
    for code in REFUSALS:
        refused = Refusal(code)
        assert (refused.status, refused.message) == REFUSALS[code]
    with pytest.raises(Refusal) as caught:
        HeadParser().feed(b"GET /s3cret\0")
    assert "s3cret" not in f"{caught.value} {caught.value.message}"


# The table

def test_table_has_the_layout_that_native_code_relies_on():
    grammar = list(http1.head_grammar())
    assert [grammar[state] for state in (START, LINE_START, DONE)] == ["start", "line start", "done"]
    assert TRANSITIONS.dtype == np.uint8 and TRANSITIONS.flags.c_contiguous
    assert TRANSITIONS.shape == (REJECT + len(REFUSALS), 256)
    assert max(len(grammar), len(http1.chunked_grammar())) <= REJECT
    assert TRANSITIONS.max() < len(TRANSITIONS) <= 256


def test_final_and_rejecting_states_keep_every_byte():
    for state in (DONE, *range(REJECT, len(TRANSITIONS))):
        assert (TRANSITIONS[state] == state).all()


def test_only_a_line_feed_ends_a_line_or_a_head():
    states = np.delete(np.arange(len(http1.head_grammar())), DONE)
    for target in (LINE_START, DONE):
        sources, symbols = np.nonzero(TRANSITIONS[states] == target)
        assert len(sources) and (symbols == ord("\n")).all()


def test_every_live_state_of_the_head_is_reached_by_the_cases():
    reached = {START}
    for case in CASES:
        state = START
        for byte in case.data:
            state = int(TRANSITIONS[state, byte])
            reached.add(state)
    pseudo = {"scheme", "other coding"}  # only lend their arcs to the words spelled from them
    names = [name for number, name in enumerate(http1.head_grammar()) if number not in reached]
    assert {name for name in names if not name.startswith(("name ", "other coding "))} == pseudo


@numba.njit
def run_table(table, data, states):
    state = 0
    for i in range(len(data)):
        state = table[state, data[i]]
        states[i] = state


def test_compiled_loop_passes_the_same_states_as_python():
    for case in CASES:
        compiled = np.empty(len(case.data), np.uint8)
        run_table(TRANSITIONS, np.frombuffer(case.data, np.uint8), compiled)
        state, expected = START, []
        for byte in case.data:
            state = int(TRANSITIONS[state, byte])
            expected.append(state)
        assert compiled.tolist() == expected


# Chunked bodies

def decode(parts: list[bytes], max_body_bytes: int = 1000) -> tuple[bytes | tuple[int, str] | None, int]:
    """(body, or status and code, or None where more is needed; how many bytes of the parts were read)."""
    decoder, before = ChunkedDecoder(max_body_bytes), 0
    for part in parts:
        try:
            taken = decoder.feed(part)
        except Refusal as refused:
            return (refused.status, refused.code), before + len(part)
        before += taken
        if decoder.done:
            return bytes(decoder.body), before
        assert taken == len(part)
    return None, before


CHUNKED = [
    ("empty", b"0\r\n\r\n", b""),
    ("one chunk", b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    ("two chunks", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
    ("sizes in both cases", b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
    ("sixteen digits", b"0000000000000001\r\nx\r\n0000000000000000\r\n\r\n", b"x"),
    ("data that looks like framing", b"7\r\n0\r\n\r\nGE\r\n0\r\n\r\n", b"0\r\n\r\nGE"),
    ("extensions", b'1;a\r\nx\r\n1 ;\ta = b;c="d\\"\xff" ; e\r\ny\r\n0;z=1\r\n\r\n', b"xy"),
    ("largest extension", b"1;" + b"a" * 4095 + b"\r\nx\r\n0\r\n\r\n", b"x"),
    ("trailers", b"0\r\nX-A: b\r\nExpires:\r\nHosts: c\r\n\r\n", b""),
]
# (name, bytes up to and including the offending one, what follows, (status, code))
BAD_CHUNKED = [
    ("empty size", b"\r", b"\nx", (400, "bad_chunk")),
    ("sign", b"+", b"5\r\nhello", (400, "bad_chunk")),
    ("hexadecimal prefix", b"0x", b"5\r\nhello", (400, "bad_chunk")),
    ("underscore", b"1_", b"0\r\n", (400, "bad_chunk")),
    ("space before the size", b" ", b"5\r\nhello", (400, "bad_chunk")),
    ("space after the size", b"5 \r", b"\nhello", (400, "bad_chunk")),
    ("seventeen digits", b"00000000000000000", b"1\r\nx", (400, "bad_chunk")),
    ("bare LF after the size", b"5\n", b"hello\n", (400, "bad_chunk")),
    ("bare CR after the size", b"5\rh", b"ello", (400, "bad_chunk")),
    ("data longer than its size", b"4\r\nhello", b"\r\n", (400, "bad_chunk")),
    ("data shorter than its size", b"6\r\nhello\r\n", b"0\r\n\r\n", (400, "bad_chunk")),
    ("bare LF after the data", b"5\r\nhello\n", b"0\r\n\r\n", (400, "bad_chunk")),
    ("bare CR after the data", b"5\r\nhello\r0", b"\r\n\r\n", (400, "bad_chunk")),
    ("extension without a name", b"5;\r", b"\nhello", (400, "bad_chunk")),
    ("extension without a value", b"5;a=\r", b"\nhello", (400, "bad_chunk")),
    ("extension name then space then CR", b"5;a \r", b"\nhello", (400, "bad_chunk")),
    ("extension in two words", b"5;a b", b"\r\n", (400, "bad_chunk")),
    ("extension ended by a bare LF", b"5;a\n", b"hello", (400, "bad_chunk")),
    ("CR in a quoted extension", b'5;a="\r', b'"\r\n', (400, "bad_chunk")),
    ("CR after a backslash", b'5;a="\\\r', b'"\r\n', (400, "bad_chunk")),
    ("text after a quoted extension", b'5;a="b"c', b"\r\n", (400, "bad_chunk")),
    ("extension too long", b"5;" + b"a" * 4096, b"\r\n", (400, "bad_chunk")),
    ("extensions too long together", b"1;aaa\r\nx\r\n" * 1024 + b"1;", b"a", (400, "bad_chunk")),
    ("size above the limit", b"fff", b"\r\n", (413, "body_too_large")),
    ("trailer of Content-Length", b"0\r\ncontent-length:", b" 5\r\n\r\n", (400, "bad_header")),
    ("trailer of Transfer-Encoding", b"0\r\nTransfer-Encoding:", b" chunked\r\n\r\n", (400, "bad_header")),
    ("trailer of Host", b"0\r\nHOST:", b" a\r\n\r\n", (400, "bad_header")),
    ("trailer with a space before the colon", b"0\r\nX-A ", b": b\r\n\r\n", (400, "bad_header")),
    ("trailer with NUL", b"0\r\nX-A: \0", b"\r\n\r\n", (400, "bad_header")),
    ("folded trailer", b"0\r\nX-A: b\r\n ", b"c\r\n\r\n", (400, "obsolete_line_folding")),
    ("bare LF at the end", b"0\r\n\n", b"", (400, "bad_header")),
    ("next request instead of the end", b"0\r\nGET ", b"/ HTTP/1.1\r\n\r\n", (400, "bad_header")),
    ("trailers too long", b"0\r\nX: " + b"x" * (MAX_HEAD_BYTES - 2), b"\r\n\r\n", (431, "headers_too_large")),
]


@pytest.mark.parametrize("data, body", [case[1:] for case in CHUNKED], ids=[case[0] for case in CHUNKED])
def test_chunked_body_leaves_what_follows_untouched(data, body):
    assert decode([data + NEXT_REQUEST]) == decode(bytes_of(data + NEXT_REQUEST)) == (body, len(data))
    assert decode([data[:-1]]) == (None, len(data) - 1)


@pytest.mark.parametrize("data, tail, refused", [case[1:] for case in BAD_CHUNKED],
                         ids=[case[0] for case in BAD_CHUNKED])
def test_bad_chunked_body_is_refused_at_the_offending_byte(data, tail, refused):
    limit = 2000 if data.startswith(b"1;aaa") else 1000
    assert decode([data + tail], limit)[0] == refused
    assert decode(bytes_of(data + tail), limit) == (refused, len(data))
    assert decode([data[:-1]], limit) == (None, len(data) - 1)


def test_refused_chunked_body_stays_refused():
    decoder = ChunkedDecoder(max_body_bytes=4)
    for data in (b"5", b"\r\nhello\r\n0\r\n\r\n"):
        with pytest.raises(Refusal) as refused:
            decoder.feed(data)
        assert refused.value.code == "body_too_large"
    assert not decoder.done and not decoder.body


def test_chunked_body_of_exactly_the_limit_is_taken():
    data = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert decode([data], max_body_bytes=5) == (b"abcde", len(data))
    assert decode(bytes_of(data), max_body_bytes=4) == ((413, "body_too_large"), len(b"3\r\nabc\r\n2"))


def test_decoded_chunked_body_takes_no_more_bytes():
    decoder = ChunkedDecoder(max_body_bytes=0)
    assert decoder.feed(b"0\r\n\r\n") == 5
    assert decoder.feed(NEXT_REQUEST) == 0


def encode_chunked(chunks: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@given(chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=10),
       cuts=st.lists(st.integers(min_value=0), max_size=8))
def test_random_chunks_of_random_bodies_come_back(chunks, cuts):
    data = encode_chunked(chunks)
    whole = decode([data + NEXT_REQUEST])
    assert whole == (b"".join(chunks), len(data))
    assert decode(pieces(data + NEXT_REQUEST, cuts)) == whole


CHUNK_FRAGMENTS = st.sampled_from([
    b"0", b"1", b"f", b"\r\n", b"\r", b"\n", b";", b"a", b"=", b'"', b"\\", b" ", b"1\r\nx\r\n", b"0\r\n",
    b"Host", b":", b"\0", b"\xff"])


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=100), st.lists(CHUNK_FRAGMENTS, max_size=20).map(b"".join)))
def test_random_chunked_bytes_raise_nothing_but_refusals(data):
    whole, by_byte = decode([data]), decode(bytes_of(data))
    assert whole[0] == by_byte[0]
