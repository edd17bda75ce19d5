"""The system calls of a running server, by thread, as strace sees them.

The rule to keep: a call counts when it ends. What must be exact waits for calls (`wait_for`), not
for the clock (`settle`).

https://man7.org/linux/man-pages/man1/strace.1.html
"""

import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tracing.parse import Call, Parser

WAIT_S = 30.0
SETTLED_S = 0.1
WARM_UP = 64  # requests after which a connection has found the thread that it stays with


class NoTrace(Exception):
    """System calls cannot be seen here, and why."""


class Trace:
    """The calls of a process and all its threads, from `attach` on."""

    def __init__(self, strace: subprocess.Popen):
        self.calls: list[Call] = []
        self._ended = threading.Condition()
        self._counts: Counter[str] = Counter()
        threading.Thread(target=self._read, args=(strace,), daemon=True).start()

    def _read(self, strace: subprocess.Popen) -> None:
        parser = Parser()
        for line in strace.stdout:
            event = parser.feed(line.rstrip("\n"))
            if isinstance(event, Call):
                with self._ended:
                    self.calls.append(event)
                    self._counts[event.name] += 1
                    self._ended.notify_all()

    def count(self, name: str) -> int:
        """How many calls of this name have ended."""
        return self._counts[name]

    def wait_for(self, name: str, n: int) -> int:
        """Wait until n calls of this name have ended → the number of all calls by then. Raises TimeoutError."""
        with self._ended:
            if not self._ended.wait_for(lambda: self._counts[name] >= n, WAIT_S):
                raise TimeoutError(f"{self._counts[name]} calls of {name} instead of {n} within {WAIT_S} s")
            return len(self.calls)

    def settle(self) -> int:
        """Wait until strace has been silent for a while → the number of all calls. For servers with no client only."""
        with self._ended:
            while self._ended.wait(SETTLED_S):
                pass
            return len(self.calls)


@contextmanager
def attach(pid: int) -> Iterator[Trace]:
    """Trace a process while the block runs. Raises NoTrace where strace is missing or not permitted."""
    program = shutil.which("strace")
    if program is None:
        raise NoTrace("no strace; Debian: apt-get install strace")
    strace = subprocess.Popen([program, "-f", "-s", "16", "-o", "/dev/stdout", "-p", str(pid)], text=True, bufsize=1,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        first = strace.stderr.readline()  # "strace: Process 7 attached with 9 threads"
        if " attached" not in first:
            raise NoTrace(f"strace cannot attach: {first.strip()}")
        yield Trace(strace)
    finally:
        strace.terminate()
        strace.wait()
        strace.stdout.close()
        strace.stderr.close()


def calls_a_request(pid: int, ask: Callable[[], object], n: int = 1000) -> float:
    """The system calls of all threads of a server, per request, while `ask` makes n requests. Raises NoTrace."""
    with attach(pid) as trace:
        for _ in range(WARM_UP):
            ask()
        before = trace.settle()
        for _ in range(n):
            ask()
        return (trace.settle() - before) / n
