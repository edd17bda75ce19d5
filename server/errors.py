"""What goes wrong, as the error object of the path's protocol: OpenAI's, or MLflow's where models are scored its way.

The rule to keep: a message says what was expected and never holds the client's data; a `code` never changes.

https://platform.openai.com/docs/guides/error-codes
https://mlflow.org/docs/latest/api_reference/rest-api.html (error codes are those of its databricks.proto)
"""

import json
from http import HTTPStatus

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
SCORING_PATHS = {"/invocations"}
SCORING_CODES = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "RESOURCE_DOES_NOT_EXIST",
                 413: "REQUEST_LIMIT_EXCEEDED", 429: "REQUEST_LIMIT_EXCEEDED", 500: "INTERNAL_ERROR",
                 503: "TEMPORARILY_UNAVAILABLE"}  # others are BAD_REQUEST: MLflow's client makes 500 of unknown codes


class ApiError(Exception):
    """An answer other than success: `status`, a stable `code`, a `message`, and which `param` it is about."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None,
                 headers: tuple[tuple[str, str], ...] = ()):
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.headers = status, code, message, param, headers


def error_body(status: int, code: str, message: str, param: str | None = None, path: str = "") -> bytes:
    """The error object of the protocol that `path` belongs to."""
    if path in SCORING_PATHS:
        code = code if code.isupper() else SCORING_CODES.get(status, "BAD_REQUEST")
        return json.dumps({"error_code": code, "message": message}).encode()
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
