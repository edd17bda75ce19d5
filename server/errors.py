"""What goes wrong on `/v1/*`, as OpenAI's error object. One place turns every error into a response.

The rule to keep: a message says what was expected and never holds the client's data; a `code` never changes.

https://platform.openai.com/docs/guides/error-codes
"""

import json
from http import HTTPStatus

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than success: `status`, a stable `code`, a `message`, and which `param` it is about."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None,
                 headers: tuple[tuple[str, str], ...] = ()):
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.headers = status, code, message, param, headers


def error_body(status: int, code: str, message: str, param: str | None = None) -> bytes:
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


OVERLOADED = ApiError(503, "too_many_connections", "The server has as many connections as it may; try again later.",
                      headers=(("Retry-After", "1"),))
TIMED_OUT = ApiError(408, "request_timeout", "The request did not arrive in time.")


def refusal(error: ApiError, date: str) -> bytes:
    """A whole response that closes the connection, for clients that no request handler sees."""
    body = error_body(error.status, error.code, error.message)
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", "Server: testigo", f"Date: {date}",
             "Connection: close", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in error.headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body
