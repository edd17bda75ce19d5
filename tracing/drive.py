"""A load for a server under test: every endpoint, good and bad input, then one steady client.

The rule to keep: each request says which answer it expects, and an answer that differs is reported: a server that
refuses everything would make few system calls, too. Only sockets and http.client: what is measured is the server.
"""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

TIMEOUT_S = 10.0
STEADY = 1500  # requests of the one steady client; the policy wants 1,000 after the first 64
CROWD, EACH = 6, 30  # connections at once, and requests on each
JSON = {"Content-Type": "application/json"}
PREDICT, SCORE = "/v1/predict", "/invocations"


class Exchange(NamedTuple):
    """One request of the drive, and the answers that are right."""

    what: str
    send: Callable[["Target"], int]  # → the status of the answer; 0: the server closed the connection
    expected: tuple[int, ...]


@dataclass
class Driven:
    """What the drive did."""

    requests: int = 0
    steady: int = 0
    wrong: list[str] = field(default_factory=list)  # answers that were not expected
    endpoints: list[str] = field(default_factory=list)

    def count(self, what: str, status: int, expected: tuple[int, ...]) -> None:
        self.requests += 1
        if status not in expected:
            self.wrong.append(f"{what}: answered {status or 'nothing'}, expected {' or '.join(map(str, expected))}")


class Target:
    """A server by its URL, and what it says that its first model takes."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.model = json.loads(self.ask("GET", "/v1/models")[1])["data"][0]
        self.paths: dict[str, dict] = json.loads(self.ask("GET", "/openapi.json")[1])["paths"]
        features = self.model.get("features") or [{}] * int(self.model["n_features"])
        self.row: list[float | str] = [usual_value(feature) for feature in features]
        self.name = str(self.model.get("id") or self.model["name"])
        names = [feature.get("name") for feature in features]
        self.table: dict[str, object] = ({"instances": [self.row]} if None in names else
                                         {"dataframe_split": {"columns": names, "data": [self.row]}})

    def connect(self) -> socket.socket:
        connection = socket.create_connection((self.host, self.port), TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask(self, method: str, path: str, body: bytes | None = None,
            headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """One request on a connection of its own, by Python's own client → (status, body)."""
        client = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        try:
            client.request(method, path, body, headers or {})
            answer = client.getresponse()
            return answer.status, answer.read()
        finally:
            client.close()

    def predict(self, **fields: object) -> bytes:
        return json.dumps({"inputs": [self.row], **fields}).encode()

    def raw(self, data: bytes, parts: int = 1) -> int:
        """Bytes as they are, in so many segments → the status of the answer; 0 when there is none."""
        with self.connect() as connection:
            step = -(-len(data) // parts)
            with suppress(OSError):  # a refusal may come before the end of what is refused
                for at in range(0, len(data), step):
                    connection.sendall(data[at:at + step])
            return receive(connection)


def usual_value(feature: dict) -> float | str:
    """What a feature takes, by what the server says of it."""
    return (feature.get("categories") or ["?"])[0] if feature.get("type") == "string" else 0.25


def receive(connection: socket.socket) -> int:
    """The status of one whole answer; 0: the server closed without one."""
    answer = http.client.HTTPResponse(connection)
    try:
        answer.begin()
        answer.read()
    except (http.client.HTTPException, OSError):
        return 0
    finally:
        answer.close()
    return answer.status


def request_bytes(target: Target, body: bytes, extra: str = "") -> bytes:
    return (f"POST {PREDICT} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nContent-Type: application/json\r\n{extra}"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def post(fields: dict[str, object] | bytes, headers: dict[str, str] | None = None) -> Callable[[Target], int]:
    def send(target: Target) -> int:
        body = fields if isinstance(fields, bytes) else target.predict(**fields)
        return target.ask("POST", PREDICT, body, JSON | (headers or {}))[0]
    return send


def score(make: Callable[[Target], object], content_type: str = JSON["Content-Type"]) -> Callable[[Target], int]:
    """A request of MLflow's protocol."""
    def send(target: Target) -> int:
        return target.ask("POST", SCORE, json.dumps(make(target)).encode(), {"Content-Type": content_type})[0]
    return send


def raw(make: Callable[[Target], bytes], parts: int = 1) -> Callable[[Target], int]:
    return lambda target: target.raw(make(target), parts)


def chunked(target: Target) -> bytes:
    body = target.predict()
    return (f"POST {PREDICT} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nContent-Type: application/json\r\n"
            f"Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n").encode() + body + b"\r\n0\r\n\r\n"


def gives_up(target: Target) -> int:
    """A client that leaves in the middle of its body."""
    with target.connect() as connection:
        connection.sendall(request_bytes(target, target.predict())[:-3])
    return 0


GOOD = (200,)
BAD = (400, 404, 405, 411, 413, 414, 415, 422, 431, 505)
EXCHANGES = [
    Exchange("probabilities", post({"parameters": {"return_probabilities": True}}), GOOD),
    Exchange("many rows", lambda t: t.ask("POST", PREDICT, json.dumps({"inputs": [t.row] * 500}).encode(), JSON)[0],
             GOOD),
    Exchange("the model by name", lambda t: t.ask("POST", PREDICT, t.predict(model=t.name), JSON)[0], GOOD),
    Exchange("in 40 segments", raw(lambda t: request_bytes(t, t.predict()), 40), GOOD),
    Exchange("a chunked body", raw(chunked), GOOD),
    Exchange("Expect: 100-continue", raw(lambda t: request_bytes(t, t.predict(), "Expect: 100-continue\r\n")), GOOD),
    Exchange("a table as MLflow has it", score(lambda t: t.table), GOOD),
    Exchange("a table that is none", score(lambda t: {"dataframe_split": 1}), BAD),
    Exchange("a table in another form", score(lambda t: t.table, "text/csv; charset=latin-1"), BAD),
    Exchange("no model of that name", post({"model": "no-such-model"}), BAD),
    Exchange("not JSON", post(b"{inputs"), BAD),
    Exchange("no inputs", post(b"{}"), BAD),
    Exchange("text for a number", post({"inputs": [["a"]]}), BAD),
    Exchange("too few numbers", post({"inputs": [[]]}), BAD),
    Exchange("an unknown parameter", post({"parameters": {"no_such_parameter": 1}}), BAD),
    Exchange("deep nesting", post(b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}"), BAD),
    Exchange("another content type", post({}, {"Content-Type": "text/plain"}), BAD),
    Exchange("no such path", lambda t: t.ask("GET", "/no/such/path")[0], BAD),
    Exchange("another method", lambda t: t.ask("DELETE", PREDICT)[0], BAD),
    Exchange("a body that is too long", raw(lambda t: request_bytes(t, b"", "X: 1\r\n").replace(
        b"Content-Length: 0", b"Content-Length: 999999999999")), BAD),
    Exchange("two lengths", raw(lambda t: request_bytes(t, b"", "Content-Length: 5\r\n")), BAD),
    Exchange("a head that is too long",
             raw(lambda t: b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), (*BAD, 0)),
    Exchange("no HTTP", raw(lambda t: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n"), (*BAD, 0)),
    Exchange("a client that gives up", gives_up, (0,)),
]


def endpoints(target: Target) -> Iterator[Exchange]:
    """Each path that the server's OpenAPI document names, by GET, HEAD and OPTIONS; JSON where it is asked for."""
    for path, methods in target.paths.items():
        concrete = path.replace("{id}", target.name).replace("{model_id}", target.name)
        if "get" in methods:
            for method in ("GET", "HEAD"):
                yield Exchange(f"{method} {path}", lambda t, m=method, p=concrete: t.ask(m, p)[0], GOOD)
            yield Exchange(f"GET {path} as JSON",
                           lambda t, p=concrete: t.ask("GET", p, None, {"Accept": "application/json"})[0], GOOD)
        yield Exchange(f"OPTIONS {path}", lambda t, p=concrete: t.ask("OPTIONS", p)[0], (200, 204, *BAD))


def drive(url: str) -> Driven:
    """The whole load, one part after the other."""
    target, driven = Target(url), Driven()
    driven.endpoints = list(target.paths)
    for exchange in [*endpoints(target), *EXCHANGES]:
        driven.count(exchange.what, exchange.send(target), exchange.expected)
    crowd(target, driven)
    steady(target, driven, STEADY)
    return driven


def crowd(target: Target, driven: Driven) -> None:
    """Several clients at once, each keeping its connection."""
    parts = [Driven() for _ in range(CROWD)]
    threads = [threading.Thread(target=steady, args=(target, part, EACH)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    driven.requests += sum(part.requests for part in parts)
    driven.wrong += [wrong for part in parts for wrong in part.wrong]


def steady(target: Target, driven: Driven, n: int) -> None:
    """One client that sends its next request when it has the answer to the last."""
    data = request_bytes(target, target.predict())
    with target.connect() as connection:
        for _ in range(n):
            connection.sendall(data)
            driven.count("a steady request", receive(connection), GOOD)
            driven.steady += 1
