"""Strict HTTP/1.1 request heads and what must become of them: for the parser's tests and for a real server's.

A refused case ends `head` with the byte that makes it impossible: a strict reader refuses exactly there,
whatever `tail` would have brought. An accepted case ends `head` with the head; `tail` is its body.

RFC 9110, RFC 9112, RFC 3986.
"""

from typing import NamedTuple

MAX_HEAD_BYTES = 16384
LINE = b"GET /health HTTP/1.1\r\n"
HOST = b"Host: a\r\n"
POST = b"POST /v1/predict HTTP/1.1\r\n" + HOST
END = b"\r\n"


class Case(NamedTuple):
    name: str
    head: bytes
    tail: bytes
    expected: tuple[int, str] | None  # (status, code) of the refusal; None: accepted

    @property
    def data(self) -> bytes:
        return self.head + self.tail


def _ok(name: str, head: bytes, body: bytes = b"") -> Case:
    return Case(name, head, body, None)


def _refused(name: str, head: bytes, tail: bytes, status: int, code: str) -> Case:
    return Case(name, head, tail, (status, code))


def _request_line(name: str, head: bytes, tail: bytes, status: int = 400,
                  code: str = "bad_request_line") -> Case:
    return _refused(name, head, tail + b"\r\n" + HOST + END, status, code)


def _header(name: str, head: bytes, tail: bytes, status: int = 400, code: str = "bad_header") -> Case:
    return _refused(name, LINE + HOST + head, tail + b"\r\n" + END, status, code)


def _host(name: str, value: bytes, tail: bytes = b"") -> Case:
    return _refused(name, LINE + b"Host:" + value, tail + b"\r\n" + END, 400, "bad_host")


def _length(name: str, value: bytes, tail: bytes = b"") -> Case:
    return _refused(name, POST + b"Content-Length:" + value, tail + b"\r\n" + END, 400, "bad_content_length")


def _coding(name: str, value: bytes, tail: bytes, status: int, code: str) -> Case:
    return _refused(name, POST + b"Transfer-Encoding:" + value, tail + b"\r\n" + END, status, code)


def _whole(name: str, head: bytes, status: int, code: str) -> Case:
    """Refused for what the complete head means, so at its last byte."""
    return _refused(name, head + END, b"", status, code)


def _padded(size_bytes: int) -> bytes:
    """A valid head of `size_bytes`."""
    before, after = LINE + HOST + b"X-Padding: ", b"\r\n" + END
    return before + b"x" * (size_bytes - len(before) - len(after)) + after


ACCEPTED = [
    _ok("plain", LINE + HOST + END),
    _ok("one empty line first", b"\r\n" + LINE + HOST + END),
    _ok("header names in any case", LINE + b"hOsT: a\r\n" + END),
    _ok("no space after the colon", LINE + b"Host:a\r\n" + END),
    _ok("white space around values", LINE + b"Host: \t a \t \r\nX-A:\t b \r\n" + END),
    _ok("empty value", LINE + HOST + b"X-A:\r\nX-B: \r\n" + END),
    _ok("every token character in a name", LINE + HOST + b"!#$%&'*+-.^_`|~09azAZ: b\r\n" + END),
    _ok("obs-text in a value", LINE + HOST + b"X-A: caf\xe9 \x80\xff\r\n" + END),
    _ok("names that begin like known ones", LINE + HOST + b"Hos: ,\r\nHosts: ,\r\nContent-Lengths: x\r\n"
        b"Transfer-Encodings: x\r\nContent: x\r\n" + END),
    _ok("host with port", LINE + b"Host: example.com:8080\r\n" + END),
    _ok("host with empty port", LINE + b"Host: example.com:\r\n" + END),
    _ok("largest port", LINE + b"Host: a:65535\r\n" + END),
    _ok("port with leading zeros", LINE + b"Host: a:0000080\r\n" + END),
    _ok("IPv4 host", LINE + b"Host: 127.0.0.1:80\r\n" + END),
    _ok("IPv6 host", LINE + b"Host: [::1]\r\n" + END),
    _ok("IPv6 host with port", LINE + b"Host: [2001:db8::ffff:10.0.0.1]:80\r\n" + END),
    _ok("percent and sub-delims in host", LINE + b"Host: a%20b~!$&'()*+;=_\r\n" + END),
    _ok("query", b"GET /health?a=b&c=%20 HTTP/1.1\r\n" + HOST + END),
    _ok("absolute form", b"GET http://b:8000/health HTTP/1.1\r\n" + HOST + END),
    _ok("absolute form with https in capitals", b"GET HTTPS://b/health?q HTTP/1.1\r\n" + HOST + END),
    _ok("absolute form with percent in the host", b"GET http://b%20c/health HTTP/1.1\r\n" + HOST + END),
    _ok("asterisk form", b"OPTIONS * HTTP/1.1\r\n" + HOST + END),
    _ok("unknown method", b"CONNECTED /health HTTP/1.1\r\n" + HOST + END),
    _ok("method is case-sensitive", b"connect /health HTTP/1.1\r\n" + HOST + END),
    _ok("HTTP/1.0 without Host", b"GET /health HTTP/1.0\r\n" + END),
    _ok("HTTP/1.2", b"GET /health HTTP/1.2\r\n" + HOST + END),
    _ok("content length", POST + b"Content-Length: 2\r\n" + END, b"{}"),
    _ok("content length with leading zeros and spaces", POST + b"content-length:\t 0002 \t\r\n" + END, b"{}"),
    _ok("chunked", POST + b"Transfer-Encoding: chunked\r\n" + END, b"2\r\n{}\r\n0\r\n\r\n"),
    _ok("chunked in capitals and spaces", POST + b"TRANSFER-ENCODING:\t Chunked \t\r\n" + END,
        b"2\r\n{}\r\n0\r\n\r\n"),
    _ok("expect", POST + b"Expect: 100-Continue\r\nContent-Length: 2\r\n" + END, b"{}"),
    _ok("repeated list field", LINE + HOST + b"Accept: a\r\nAccept: b\r\n" + END),
    _ok("largest head", _padded(MAX_HEAD_BYTES)),
]

REFUSED = [
    # Request line (RFC 9112, 2.2 and 3)
    _request_line("two empty lines first", b"\r\n\r", b"\nGET / HTTP/1.1"),
    _request_line("bare LF first", b"\n", b"GET / HTTP/1.1"),
    _request_line("bare CR first", b"\rG", b"ET / HTTP/1.1"),
    _request_line("space first", b" ", b"GET / HTTP/1.1"),
    _request_line("TLS hello", b"\x16", b"\x03\x01\x02\x00"),
    _request_line("method with a separator", b"GE(", b"T / HTTP/1.1"),
    _request_line("method with a high byte", b"G\xc3", b"\x89T / HTTP/1.1"),
    _request_line("method ended by a tab", b"GET\t", b"/ HTTP/1.1"),
    _request_line("method only", b"GET\r", b""),
    _request_line("two spaces before the target", b"GET  ", b"/ HTTP/1.1"),
    _request_line("target with a tab", b"GET /a\t", b"b HTTP/1.1"),
    _request_line("target with NUL", b"GET /\0", b" HTTP/1.1"),
    _request_line("target with DEL", b"GET /\x7f", b" HTTP/1.1"),
    _request_line("HTTP/0.9", b"GET /\r", b""),
    _request_line("bare LF after the target", b"GET /\n", b""),
    _request_line("two spaces before the version", b"GET /  ", b"HTTP/1.1"),
    _request_line("space inside the target", b"GET /a b", b" HTTP/1.1"),
    _request_line("version in small letters", b"GET / h", b"ttp/1.1"),
    _request_line("version doubled", b"GET / HH", b"TTP/1.1"),
    _request_line("other protocol", b"GET / HTC", b"PCP/1.0"),
    _request_line("version without a minor", b"GET / HTTP/1\r", b""),
    _request_line("version with a comma", b"GET / HTTP/1,", b"1"),
    _request_line("minor with two digits", b"GET / HTTP/1.10", b""),
    _request_line("space after the version", b"GET / HTTP/1.1 ", b""),
    _request_line("bare LF after the version", b"GET / HTTP/1.1\n", b""),
    _request_line("bare CR after the version", b"GET / HTTP/1.1\rH", b"ost: a"),
    _request_line("HTTP/2", b"GET / HTTP/2", b".0", 505, "http_version_not_supported"),
    _request_line("HTTP/2 preface", b"PRI * HTTP/2", b".0", 505, "http_version_not_supported"),
    _request_line("version 0.9", b"GET / HTTP/0", b".9", 505, "http_version_not_supported"),
    _request_line("CONNECT", b"CONNECT ", b"a:443 HTTP/1.1", 501, "method_not_supported"),
    _request_line("CONNECT after an empty line", b"\r\nCONNECT ", b"a:443 HTTP/1.1", 501,
                  "method_not_supported"),
    # Targets (RFC 9112, 3.2)
    _request_line("fragment", b"GET /a#", b"b HTTP/1.1", 400, "bad_target"),
    _request_line("raw UTF-8 in the target", b"GET /caf\xc3", b"\xa9 HTTP/1.1", 400, "bad_target"),
    _request_line("relative target", b"GET i", b"ndex HTTP/1.1", 400, "bad_target"),
    _request_line("query only", b"GET ?", b"a HTTP/1.1", 400, "bad_target"),
    _request_line("authority form", b"GET a", b":80 HTTP/1.1", 400, "bad_target"),
    _request_line("asterisk and more", b"OPTIONS */", b" HTTP/1.1", 400, "bad_target"),
    _request_line("other scheme", b"GET f", b"tp://a/ HTTP/1.1", 400, "bad_target"),
    _request_line("scheme that begins like http", b"GET httpx", b"://a/ HTTP/1.1", 400, "bad_target"),
    _request_line("scheme without slashes", b"GET http:a", b"/ HTTP/1.1", 400, "bad_target"),
    _request_line("scheme only", b"GET http ", b"HTTP/1.1", 400, "bad_target"),
    _request_line("absolute form without authority", b"GET http:///", b"a HTTP/1.1", 400, "bad_target"),
    _request_line("absolute form with user", b"GET http://u@", b"a/ HTTP/1.1", 400, "bad_target"),
    _request_line("absolute form with a bad port", b"GET http://a:8x", b"/ HTTP/1.1", 400, "bad_target"),
    _whole("absolute form with a large port", b"GET http://a:65536/ HTTP/1.1\r\n" + HOST, 400, "bad_target"),
    _whole("absolute form with a bad address", b"GET http://[1]/ HTTP/1.1\r\n" + HOST, 400, "bad_target"),
    _whole("asterisk for GET", b"GET * HTTP/1.1\r\n" + HOST, 400, "bad_target"),
    # Header lines (RFC 9112, 5)
    _header("space before the colon", b"X-A ", b": b"),
    _header("tab before the colon", b"X-A\t", b": b"),
    _header("empty name", b":", b" b"),
    _header("line without a colon", b"X-A\r", b""),
    _header("name with a separator", b"X(", b"A: b"),
    _header("name with NUL", b"X\0", b"A: b"),
    _header("name with a high byte", b"X\xff", b"A: b"),
    _header("line that begins with NUL", b"\0", b"X-A: b"),
    _header("NUL in a value", b"X-A: a\0", b"b"),
    _header("bell in a value", b"X-A: a\x07", b"b"),
    _header("DEL in a value", b"X-A: a\x7f", b"b"),
    _header("bare LF in a value", b"X-A: a\n", b"X-B: b"),
    _header("bare CR in a value", b"X-A: a\rb", b""),
    _header("CR CR LF", b"X-A: a\r\r", b"\n"),
    _header("bare LF as the last line", b"\n", b""),
    _header("bare CR as the last line", b"\rX", b""),
    _header("folded line", b"X-A: a\r\n ", b"b", 400, "obsolete_line_folding"),
    _header("line folded by a tab", b"X-A: a\r\n\t", b"b", 400, "obsolete_line_folding"),
    _refused("space after the request line", LINE + b" ", b"Host: a\r\n\r\n", 400, "obsolete_line_folding"),
    _whole("repeated Content-Type", POST + b"Content-Type: a/b\r\nContent-Type: a/b\r\n", 400, "bad_header"),
    _whole("repeated Authorization", LINE + HOST + b"Authorization: x\r\nauthorization: y\r\n", 400,
           "bad_header"),
    # Host (RFC 9112, 3.2; RFC 3986, 3.2)
    _whole("no Host", LINE, 400, "missing_host"),
    _whole("no Host on HTTP/1.2", b"GET / HTTP/1.2\r\n", 400, "missing_host"),
    _whole("no Host beside the absolute form", b"GET http://a/ HTTP/1.1\r\n", 400, "missing_host"),
    _whole("two Hosts", LINE + HOST + b"Host: b\r\n", 400, "duplicate_host"),
    _whole("the same Host twice", LINE + HOST + HOST, 400, "duplicate_host"),
    _whole("two Hosts on HTTP/1.0", b"GET / HTTP/1.0\r\n" + HOST + HOST, 400, "duplicate_host"),
    _host("empty Host", b"\r"),
    _host("blank Host", b" \t\r"),
    _host("space inside Host", b" a b", b"c"),
    _host("list of Hosts", b" a,", b"b"),
    _host("path in Host", b" a/", b"b"),
    _host("user in Host", b" u@", b"a"),
    _host("query in Host", b" a?", b"b"),
    _host("fragment in Host", b" a#", b"b"),
    _host("backslash in Host", b" a\\", b"b"),
    _host("NUL in Host", b" a\0", b"b"),
    _host("high byte in Host", b" caf\xe9", b""),
    _host("bare LF after Host", b" a\n", b""),
    _host("bad percent-encoding in Host", b" a%4g", b""),
    _host("port without Host", b" :", b"80"),
    _host("letters in port", b" a:8o", b""),
    _host("sign in port", b" a:+", b"80"),
    _host("two ports", b" a:1:", b"2"),
    _host("closing bracket without opening", b" a]", b""),
    _host("letter after the address", b" [::1]a", b""),
    _host("zone in the address", b" [fe80::1%", b"25eth0]"),
    _host("address not closed", b" [::1\r", b""),
    _whole("port above 65535", LINE + b"Host: a:65536\r\n", 400, "bad_host"),
    _whole("port with 5000 digits", LINE + b"Host: a:" + b"9" * 5000 + b"\r\n", 400, "bad_host"),
    _whole("brackets around IPv4", LINE + b"Host: [127.0.0.1]\r\n", 400, "bad_host"),
    _whole("empty brackets", LINE + b"Host: []\r\n", 400, "bad_host"),
    _whole("address with too many groups", LINE + b"Host: [1:2:3:4:5:6:7:8:9]\r\n", 400, "bad_host"),
    # Content-Length (RFC 9110, 8.6; RFC 9112, 6.2)
    _length("empty length", b"\r"),
    _length("length with plus", b" +", b"2"),
    _length("negative length", b" -", b"2"),
    _length("list of lengths", b" 2,", b" 2"),
    _length("length in hexadecimal", b" 0x", b"2"),
    _length("length with a fraction", b" 2.", b"0"),
    _length("length with underscore", b" 1_", b"0"),
    _length("length in Arabic digits", b" \xd9", b"\xa2"),
    _length("two lengths in one line", b" 2 2", b""),
    _length("length with vertical tab", b" \x0b", b"2"),
    _length("bare LF after length", b" 2\n", b""),
    _whole("two lengths", POST + b"Content-Length: 2\r\nContent-Length: 3\r\n", 400, "bad_content_length"),
    _whole("the same length twice", POST + b"Content-Length: 2\r\ncontent-length: 2\r\n", 400,
           "bad_content_length"),
    _whole("length of 20 digits", POST + b"Content-Length: " + b"9" * 20 + b"\r\n", 413, "body_too_large"),
    _whole("length of 5000 digits", POST + b"Content-Length: " + b"9" * 5000 + b"\r\n", 413,
           "body_too_large"),
    # Transfer-Encoding (RFC 9112, 6.1 and 7)
    _coding("empty coding", b"\r", b"", 400, "bad_transfer_encoding"),
    _coding("gzip", b" g", b"zip", 501, "unsupported_transfer_encoding"),
    _coding("gzip, chunked", b" g", b"zip, chunked", 501, "unsupported_transfer_encoding"),
    _coding("identity", b" i", b"dentity", 501, "unsupported_transfer_encoding"),
    _coding("compress begins like chunked", b" co", b"mpress", 501, "unsupported_transfer_encoding"),
    _coding("chunked cut short", b" chunke\r", b"", 501, "unsupported_transfer_encoding"),
    _coding("chunked and more letters", b" chunkedx", b"", 501, "unsupported_transfer_encoding"),
    _coding("chunked in two words", b" chu ", b"nked", 501, "unsupported_transfer_encoding"),
    _coding("chunked doubled in one line", b" chunked,", b" chunked", 400, "bad_transfer_encoding"),
    _coding("chunked not last", b" chunked ,", b" gzip", 400, "bad_transfer_encoding"),
    _coding("chunked with a parameter", b" chunked;", b"a=b", 400, "bad_transfer_encoding"),
    _coding("chunked twice by space", b" chunked c", b"hunked", 400, "bad_transfer_encoding"),
    _coding("chunked after a comma", b" ,", b"chunked", 400, "bad_transfer_encoding"),
    _coding("chunked in quotes", b' "', b'chunked"', 400, "bad_transfer_encoding"),
    _coding("chunked after vertical tab", b" \x0b", b"chunked", 400, "bad_transfer_encoding"),
    _coding("chunked then NUL", b" chunked\0", b"", 400, "bad_transfer_encoding"),
    _coding("bare LF after chunked", b" chunked\n", b"", 400, "bad_transfer_encoding"),
    _header("space before the colon of Transfer-Encoding", b"Transfer-Encoding ", b": chunked"),
    _whole("chunked in two lines", POST + b"Transfer-Encoding: chunked\r\n" * 2, 400,
           "bad_transfer_encoding"),
    _whole("chunked on HTTP/1.0", b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n", 400,
           "bad_transfer_encoding"),
    _whole("length then coding", POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 400,
           "conflicting_length"),
    _whole("coding then length", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", 400,
           "conflicting_length"),
    # Limits and expectations
    _whole("other expectation", POST + b"Expect: 200-ok\r\nContent-Length: 2\r\n", 417, "expectation_failed"),
    _whole("expectation of nothing", POST + b"Expect:\r\n", 417, "expectation_failed"),
    _refused("head of one byte too many", _padded(MAX_HEAD_BYTES + 1), b"", 431, "headers_too_large"),
    _refused("target without end", b"GET /" + b"a" * (MAX_HEAD_BYTES - 4), b"a", 431, "headers_too_large"),
]

CASES = ACCEPTED + REFUSED
