"""One client connection in Python: receive a request, have it answered, send the answer.

The rule to keep: bytes that the client sent are either answered, refused, or still in `received`; a request
whose end is not certain is never followed by another one on the same connection.

RFC 9110, RFC 9112; the syntax itself is in `http1`.
"""

import functools
import socket
import time
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from server import markers
from server.errors import TIMED_OUT, ApiError, error_body
from server.http1 import ChunkedDecoder, HeadParser, Refusal, RequestHead

RECEIVE_BYTES = 65536
DISCARD_BYTES = 65536  # a body that nobody wants is read up to here to keep the connection, else it is closed
WAIT_S = 0.5  # the receive timeout of every socket here (SO_RCVTIMEO): how often deadlines are looked at
SEND_S = 10.0  # a client must take its answer within this time (SO_SNDTIMEO)
LINGER_S = 1.0  # how long a refused client has to take its answer before the connection is gone


@dataclass(frozen=True)
class Limits:
    """Deadlines in seconds, sizes in bytes."""
    max_body_bytes: int = 16 * 1024 * 1024
    max_connections: int = 4096
    head_s: float = 10.0  # from the first byte of a head to its end
    body_s: float = 60.0  # from the end of the head to the end of the body
    idle_s: float = 75.0  # keep-alive without a request


@dataclass(frozen=True)
class Request:
    head: RequestHead
    body: bytes


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    rows: int = 0  # predicted
    model: str = ""

    @classmethod
    def of_error(cls, error: ApiError | Refusal, path: str = "") -> "Response":
        """`path`: what was asked for, whose protocol says what an error looks like."""
        body = error_body(error.status, error.code, error.message, getattr(error, "param", None), path)
        return cls(error.status, body,
                   headers=getattr(error, "headers", ()))


def http_date() -> str:
    """The value of a Date header for now (RFC 9110, 5.6.7), made once a second."""
    return _date_of(int(time.time()))


@functools.lru_cache(maxsize=2)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)


class Gone(Exception):
    """The client closed the connection, or was idle for too long."""


class Connection(BaseHTTPRequestHandler):
    """Serves the requests of one socket whose receive and send timeouts are WAIT_S and SEND_S.

    `server` is a `listener.Listener`: it has `application`, `limits` and `draining`.
    """

    server: Any  # a listener.Listener, which this module must not import
    received: bytearray
    close_connection: bool

    def setup(self) -> None:
        self.received = bytearray()
        self.close_connection = False

    def finish(self) -> None:
        """Let the client take a last answer before the socket goes: closing on unread bytes would reset it."""
        try:
            self.request.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + LINGER_S
            while time.monotonic() < deadline and self.request.recv(RECEIVE_BYTES):
                pass
        except OSError:
            pass

    def handle(self) -> None:
        try:
            while not self.close_connection:
                self.handle_one_request()
        except Gone:
            pass

    def handle_one_request(self) -> None:
        """Serve one request, from `received` and the socket; sets `close_connection` where no other may follow."""
        start, head, refusal = time.perf_counter(), None, None
        try:
            head = self.receive_head()
            start = time.perf_counter()
        except (Refusal, ApiError) as error:
            refusal = error
        mark = markers.begin(head.headers.get("x-request-id") if head else None)
        try:
            self.serve_received(head, refusal, start)
        finally:
            markers.end(mark)

    def serve_received(self, head: RequestHead | None, refusal: Refusal | ApiError | None, start: float) -> None:
        """Answer the request with this head, or tell why there is none."""
        try:
            if head is None:
                raise refusal
            self.close_connection = not head.keep_alive
            response = self.respond(head)
        except (Refusal, ApiError) as error:
            self.close_connection = True
            response = Response.of_error(error, head.path if head else "")
        self.close_connection |= self.server.draining
        self.reply(head, response, time.perf_counter() - start)

    def time_out(self) -> None:
        """Tell the client that its request did not arrive in time."""
        mark = markers.begin(None)
        try:
            self.close_connection = True
            self.reply(None, Response.of_error(TIMED_OUT), 0.0)
        finally:
            markers.end(mark)

    def reply(self, head: RequestHead | None, response: Response, seconds: float) -> None:
        self.server.application.note(self.client_address, head, response, seconds)
        self.send(self.encode(head, response))

    def respond(self, head: RequestHead) -> Response:
        """Receive the body and have the request answered; what is refused by its head alone needs no body."""
        application = self.server.application
        error = application.check(head)
        if error is None and (head.content_length or 0) > self.server.limits.max_body_bytes:
            error = Refusal("body_too_large")
        if error is None:
            return application.answer(Request(head, self.receive_body(head)))
        if head.expect_continue or head.chunked or (head.content_length or 0) > DISCARD_BYTES:
            self.close_connection = True
        else:
            self.receive_body(head)
        return Response.of_error(error, head.path)

    def receive_head(self) -> RequestHead:
        parser = HeadParser()
        deadline = time.monotonic() + (self.server.limits.head_s if self.received else self.server.limits.idle_s)
        waiting = not self.received
        while True:
            consumed = parser.feed(bytes(self.received))
            if parser.head is not None:
                del self.received[:consumed]
                return parser.head
            self.received.clear()
            self.receive(deadline, idle=waiting)
            if waiting:
                waiting, deadline = False, time.monotonic() + self.server.limits.head_s

    def receive_body(self, head: RequestHead) -> bytes:
        deadline = time.monotonic() + self.server.limits.body_s
        if head.expect_continue and not self.received:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.chunked:
            decoder = ChunkedDecoder(self.server.limits.max_body_bytes)
            while True:
                del self.received[:decoder.feed(bytes(self.received))]
                if decoder.done:
                    return bytes(decoder.body)
                self.receive(deadline)
        length = head.content_length or 0
        while len(self.received) < length:
            self.receive(deadline)
        body = bytes(self.received[:length])
        del self.received[:length]
        return body

    def receive(self, deadline: float, idle: bool = False) -> None:
        """Wait for more bytes. Raises 408 at the deadline; an idle client is not told."""
        while True:
            try:
                data = self.request.recv(RECEIVE_BYTES)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data == b"" or (idle and data is None and self.server.draining):
                raise Gone
            if time.monotonic() > deadline:
                if idle:
                    raise Gone
                raise TIMED_OUT
            if data:
                self.received += data
                return

    def send(self, data: bytes) -> None:
        """Send all of it. Raises Gone when the client is, or does not take it within SEND_S."""
        deadline, unsent = time.monotonic() + SEND_S, memoryview(data)
        try:
            while unsent:
                unsent = unsent[self.request.send(unsent):]
                if unsent and time.monotonic() > deadline:
                    raise Gone
        except OSError:
            raise Gone from None

    def encode(self, head: RequestHead | None, response: Response) -> bytes:
        """The response's bytes: the same headers in the same order as the hot path's."""
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}", "Server: testigo",
                 f"Date: {http_date()}"]
        if self.close_connection:
            lines.append("Connection: close")
        elif head is not None and head.version < (1, 1):
            lines.append("Connection: keep-alive")
        if response.body or response.status != HTTPStatus.NO_CONTENT:
            lines += [f"Content-Type: {response.content_type}", f"Content-Length: {len(response.body)}"]
        if head is not None and "x-request-id" in head.headers:
            lines.append(f"X-Request-Id: {head.headers['x-request-id']}")
        lines += [f"{name}: {value}" for name, value in response.headers]
        if head is not None:
            lines += [f"{name}: {value}" for name, value in self.server.application.cors_headers(head)]
        text = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return text if head is not None and head.method == "HEAD" else text + response.body
