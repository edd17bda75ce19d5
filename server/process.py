"""What this process uses: processor time, memory, descriptors.

The rule to keep: asking opens nothing on Linux, because a server that opens files while it serves cannot be told
from one that should not; the two files of /proc are opened once.

Source: proc(5).
"""

import os
import sys
import threading

import psutil


class Process:
    """The figures of this process, under the names of psutil; safe to use from all threads."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.create_time_s = self._process.create_time()  # since 1970
        self._lock = threading.Lock()
        self._in_proc = sys.platform == "linux" and os.path.exists("/proc/self/statm")
        if self._in_proc:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
            self._fds = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def __del__(self) -> None:
        if getattr(self, "_fds", None) is not None:
            os.close(self._statm)
            os.close(self._fds)

    def cpu_s(self) -> float:
        """User and system time."""
        times = os.times()
        return times.user + times.system

    def resident_bytes(self) -> int:
        if not self._in_proc:
            return self._process.memory_info().rss
        return int(os.pread(self._statm, 128, 0).split()[1]) * self._page_bytes

    def n_descriptors(self) -> int:
        if not self._in_proc:
            return self._process.num_fds()
        with self._lock:  # all listings of one descriptor share a place in the folder
            return len(os.listdir(self._fds)) - 1  # without the one that lists
