"""Programs that each leave the traced processes in one way: `python -m tests.tracing.leaks NAME`.

The rule to keep: a leak runs only where no network interface leads out of the machine (`refuse_outside`), and says
"attempted NAME" on stderr when its attempt was made; without that line a test of it proves nothing.

OUTSIDE looks like another host and is one's own loopback: the stage gives it that address, and listens there.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

FAIL, INCONCLUSIVE = "FAIL", "INCONCLUSIVE"
OUTSIDE, OUTSIDE6, NOWHERE = "192.0.2.1", "2001:db8::1", "198.51.100.1"  # addresses of RFC 5737 and RFC 3849
PORT, FULL_PORT = 9009, 9010  # a listener that takes all; one whose queue is full: connects to it block
SECRET = b"the weights of the model"
NO_NAMESPACE, NOT_HERE = 77, 78  # exit statuses
PEERS, MARKERS = "LEAK_PEERS", "TESTIGO_TRACE"
PATIENCE_S = 20.0


class Leak(NamedTuple):
    """One way out, and what `sovereign` must say of it."""

    run: Callable[[], None]
    verdict: str
    arrives: bool  # the untraced neighbour receives SECRET: the leak is real, not only tried
    how: str  # how the stage starts it: "run", "attach", "stdin", "stdout", "no_bpf"


LEAKS: dict[str, Leak] = {}
running = ""  # the name of the leak that this process is


def leak(verdict: str, arrives: bool = False, how: str = "run") -> Callable[[Callable[[], None]], Callable[[], None]]:
    """A row of LEAKS, named after the function."""
    def add(run: Callable[[], None]) -> Callable[[], None]:
        LEAKS[run.__name__] = Leak(run, verdict, arrives, how)
        return run
    return add


def interfaces() -> list[str]:
    return [line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]]


def refuse_outside() -> None:
    if interfaces() != ["lo"]:
        print(f"refused: this network namespace has interfaces besides lo ({', '.join(interfaces())});"
              " start me with: unshare --net", file=sys.stderr)
        sys.exit(NO_NAMESPACE)


def attempted() -> None:
    os.write(2, f"attempted {running}\n".encode())


@contextlib.contextmanager
def attempt() -> Iterator[None]:
    """What counts: it may fail, it was made."""
    with contextlib.suppress(OSError):
        yield
    attempted()


def wait_for_tracer() -> None:
    """Until the stage says that strace has attached."""
    print("ready", flush=True)
    sys.stdin.readline()


def not_here(why: str) -> None:
    print(f"not on this machine: {why}", file=sys.stderr)
    sys.exit(NOT_HERE)


# Phases

_marks = 0


def phase(name: str) -> None:
    """Mark a phase, as server/markers.py does."""
    global _marks
    os.access(f"/dev/null/testigo/v1/{os.environ.get(MARKERS, '')}/{_marks}/phase={name}", os.F_OK)
    _marks += 1


# Untraced neighbours

def peers() -> dict[str, Any]:
    """What the stage started beside the trace: {"folder": …, "pid": …, "fd": …, "address": …}."""
    return json.loads(os.environ[PEERS])


def path(name: str) -> str:
    return os.path.join(peers()["folder"], name)


def wait_until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {PATIENCE_S} s for {what}")
        time.sleep(0.002)


def ask(request: str) -> None:
    """Let the neighbour do something, such as `listen tcp ::1 9100`; by files: a socket would be a leak itself."""
    done, asked = path("answer"), path("ask")
    Path(asked + ".new").write_text(request)
    os.rename(asked + ".new", asked)
    wait_until(lambda: os.path.exists(done), f"the neighbour to {request}")
    said = Path(done).read_text()
    os.unlink(done)
    if said:
        raise OSError(f"the neighbour could not {request}: {said}")
