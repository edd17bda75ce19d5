"""Markers in a trace of this process: which phase begins, and where a request that Python serves begins and ends.

A marker is one system call that strace shows whole and that touches nothing: access(2) of a path below /dev/null,
which is not a directory. The environment variable TESTIGO_TRACE (16 hex digits, the nonce of the recording) asks for
them:

    /dev/null/testigo/v1/<nonce>/<sequence number>/phase=serving
    /dev/null/testigo/v1/<nonce>/<sequence number>/req=<id>/begin

The rule to keep: without the variable nothing is called; with it the numbers count from 0 without gaps, and the
calls are made in their order, over all threads.
"""

import functools
import itertools
import os
import re
import threading

VARIABLE = "TESTIGO_TRACE"
PHASES = ("startup", "load", "warmup", "serving", "drain", "shutdown")
SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # others would need quoting in a path, or be cut by strace


class Markers:
    """Makes the markers of one recording."""

    def __init__(self, nonce: str):
        self._path = f"/dev/null/testigo/v1/{nonce}"
        self._lock = threading.Lock()
        self._numbers, self._requests = itertools.count(), itertools.count()

    def mark(self, text: str) -> None:
        with self._lock:  # the call inside: its place in the trace is that of its number
            os.access(f"{self._path}/{next(self._numbers)}/{text}", os.F_OK)

    def name(self, request_id: str | None) -> str:
        """What a request is called in the trace: its own id where that is safe, else a number."""
        return request_id if request_id and SAFE_ID.fullmatch(request_id) else f"_{next(self._requests)}"


@functools.cache
def wanted() -> Markers | None:
    """The markers of this process; None where no recording asks for them."""
    nonce = os.environ.get(VARIABLE, "")
    return Markers(nonce) if re.fullmatch("[0-9a-f]{16}", nonce) else None


def phase(name: str) -> None:
    """Begin one of PHASES."""
    if markers := wanted():
        markers.mark(f"phase={name}")


def begin(request_id: str | None) -> str:
    """Begin a request → what `end` must be given."""
    markers = wanted()
    if markers is None:
        return ""
    name = markers.name(request_id)
    markers.mark(f"req={name}/begin")
    return name


def end(name: str) -> None:
    if markers := wanted():
        markers.mark(f"req={name}/end")
