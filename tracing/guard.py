"""The process between the recorder and strace: it starts strace and lets no process outlive the recording.

Run as a script: `python -I -S guard.py FD run|attach strace …`. On the socket FD it says "strace PID", "ending", and
when all is over "end STATUS LEFT": strace's exit status and how many processes were still there when strace had gone.
It reads "signal N" (for the processes that are left when the first has ended) and the end of the file, which means:
end. That comes too when the recorder is killed, for nothing else holds the other end.

The rule to keep: it names processes by descent, never by name, and imports the standard library only (it starts
before every traced program, in milliseconds). Attached processes are not descendants: they go on.

Source: PR_SET_CHILD_SUBREAPER (orphans become the guard's children, so descent is never lost): prctl(2).
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SWEEP_MS = 20  # between two looks for processes that forked while they were being killed
PATIENCE_MS = 10_000  # for strace to end by itself after its tracees have, and its last lines to be read
NO_READER_MS = 500  # … when the recorder is gone: strace may wait for ever for somebody to open the FIFO


class Guard:
    """strace, what descends from it, and the socket to the recorder."""

    def __init__(self, control: socket.socket, attached: bool, command: list[str]):
        self.control, self.attached = control, attached
        self.wake = wake_on_children()
        self.libc = ctypes.CDLL(None)
        self.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.strace = subprocess.Popen(command, process_group=0, preexec_fn=self._die_with_guard)
        self.status: int | None = None
        self.say(f"strace {self.strace.pid}")

    def _die_with_guard(self) -> None:
        self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT if self.attached else signal.SIGKILL, 0, 0, 0)

    def say(self, line: str) -> bool:
        """Tell the recorder; False where it is gone."""
        with contextlib.suppress(OSError):
            self.control.sendall(f"{line}\n".encode())
            return True
        return False

    def run(self) -> None:
        self._obey()
        self._end_strace()
        self.say(f"end {self.status} {self._end_what_is_left()}")

    def _end_what_is_left(self) -> int:
        """Kill what outlived strace; how many processes that were."""
        left = 0
        for _ in range(PATIENCE_MS // SWEEP_MS):  # no longer: a process of another user cannot be killed
            found = self._signal(signal.SIGKILL)
            left = max(left, found)
            if not found:
                break
            self._wait(SWEEP_MS)
        self._reap()
        return left

    def _obey(self) -> None:
        """Until strace ends or the recorder says so."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        while self.status is None:
            ready = [fd for fd, _ in poll.poll()]
            self._reap()
            if self.control.fileno() in ready and not self._command():
                return

    def _command(self) -> bool:
        """Take what the recorder said; False at its end."""
        try:
            data = self.control.recv(4096)
        except OSError:
            return False
        for line in data.decode().splitlines():
            self._signal(int(line.removeprefix("signal ")))
        return bool(data)

    def _end_strace(self) -> None:
        waited, patience = 0, PATIENCE_MS if self.say("ending") else NO_READER_MS
        if self.attached and self.status is None:
            os.kill(self.strace.pid, signal.SIGINT)  # strace lets its tracees go
        while self.status is None and waited < patience:
            if not self.attached:
                self._signal(signal.SIGKILL)  # tracees first: strace then writes down how they ended
            self._wait(SWEEP_MS)
            waited += SWEEP_MS
        if self.status is None:
            os.kill(self.strace.pid, signal.SIGKILL)
        while self.status is None:
            self._wait(SWEEP_MS)

    def _wait(self, timeout_ms: int) -> None:
        """Until a child ends, or for the time given."""
        select.select([self.wake], [], [], timeout_ms / 1000)
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake, 4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.strace.pid:
                    self.status = self.strace.returncode = os.waitstatus_to_exitcode(ended[1])

    def _signal(self, number: int) -> int:
        """Send a signal to all descendants but strace; how many there were."""
        handles = {}
        for pid in self._tracees():
            with contextlib.suppress(ProcessLookupError):
                handles[pid] = os.pidfd_open(pid)
        # A handle may be of a process that took the number of one of ours; a second look tells.
        certain = handles.keys() & self._tracees()
        for pid, handle in handles.items():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if pid in certain:
                    signal.pidfd_send_signal(handle, number)
            os.close(handle)
        return len(certain)

    def _tracees(self) -> set[int]:
        return descendants(os.getpid()) - {self.strace.pid}


def wake_on_children() -> int:
    """A descriptor that becomes readable whenever a child ends."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return readable


def descendants(pid: int) -> set[int]:
    """Everything below `pid` that has not ended."""
    below: dict[int, list[int]] = {}
    for child, parent in live_processes():
        below.setdefault(parent, []).append(child)
    found, look = set(), [pid]
    while look:
        children = below.pop(look.pop(), [])
        found.update(children)
        look += children
    return found


def live_processes() -> list[tuple[int, int]]:
    """(pid, parent's pid) of every process that has not ended."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name in parentheses may hold spaces and ")"
            state, parent, n_threads = fields[0], int(fields[1]), int(fields[17])
            if state not in (b"Z", b"X") or n_threads > 1:  # threads may go on when the first one has ended
                found.append((int(name), parent))
    return found


if __name__ == "__main__":
    Guard(socket.socket(fileno=int(sys.argv[1])), sys.argv[2] == "attach", sys.argv[3:]).run()
