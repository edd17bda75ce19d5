"""The listening socket, and a thread a connection behind it: all that there is without native code.

The rule to keep: what holds for a connection here (limits, deadlines, draining) holds for one of `native_listener` too.
"""

import collections
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import ThreadingHTTPServer

from server.application import Application
from server.connection import LINGER_S, SEND_S, WAIT_S, Connection, Limits, http_date
from server.errors import OVERLOADED, refusal

BACKLOG = 4096
SPARE_DESCRIPTORS = 1024  # beyond the connections: files, pipes, refused clients that are still being told


class Listener(ThreadingHTTPServer):
    """Listens at (host, port) and serves with `application`; without native code, one thread a connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = BACKLOG
    allow_reuse_port = False

    def __init__(self, host: str, port: int, application: Application, limits: Limits):
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        self.application, self.limits, self.draining = application, limits, False
        self._open, self._refused = 0, 0
        self._open_lock = threading.Lock()
        self._turned_away: socket.socket | None = None  # by the accepting thread, which closes it next
        self._lingering: collections.deque[tuple[float, socket.socket]] = collections.deque()  # refused; until when
        application.metrics.connections = lambda: (self._open, self._refused)
        super().__init__((host, port), Connection, bind_and_activate=False)
        self.server_bind()
        raise_descriptor_limit(limits.max_connections + SPARE_DESCRIPTORS)

    def server_bind(self) -> None:
        """Bind without the reverse DNS look-up of HTTPServer; accepted sockets inherit the options set here."""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(WAIT_S))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_S))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request, client_address) -> None:
        pass  # the client is gone; whatever else fails is answered and logged by `Application.answer`

    def prepare(self, progress: Callable[[str], None], explanations: bool = False) -> None:
        """Do what takes long before the first connection; `progress` is told each step.

        `explanations`: also what explaining predictions takes, which can else be done later.
        """

    def start(self) -> None:
        """Accept connections, in threads of its own."""
        self.server_activate()
        self._serving = threading.Thread(target=self.serve_forever, name="accept", daemon=True)
        self._serving.start()

    def tick(self) -> None:
        """Called once a second while the server runs."""

    def get_request(self):
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.01)  # no descriptors or memory: what is open must be served first
            raise

    def verify_request(self, request, client_address) -> bool:
        """Whether there is room for this connection; one that is not admitted is told so."""
        with self._open_lock:
            admitted = self._open < self.limits.max_connections
            self._open += admitted
        if not admitted:
            self._refused += 1
            self._turned_away = request
            with suppress(OSError):  # the loss of an error message only
                request.sendall(refusal(OVERLOADED, http_date()))
                self._lingering.append((time.monotonic() + LINGER_S, request.dup()))
        return admitted

    def service_actions(self) -> None:
        """Called after each connection and twice a second: a refused client was given time to read why."""
        while self._lingering and self._lingering[0][0] < time.monotonic():
            self._lingering.popleft()[1].close()

    def shutdown_request(self, request) -> None:
        if request is self._turned_away:
            self._turned_away = None
        else:
            with self._open_lock:
                self._open -= 1
        super().shutdown_request(request)

    def drain(self, deadline: float) -> bool:
        """Stop accepting, let what is in flight finish until `deadline` (monotonic) → whether all did."""
        self.draining = True
        self.shutdown()
        self.socket.close()
        while self._open and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._open == 0


def raise_descriptor_limit(wanted: int) -> None:
    """Allow this process `wanted` open descriptors, or as many as the system lets it have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
