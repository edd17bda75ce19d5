"""The figures of the process, against psutil's."""

import os
import threading

import psutil

from server.process import Process


def test_figures_are_those_of_psutil():
    ours, reference = Process(), psutil.Process()
    assert ours.create_time_s == reference.create_time()
    times = reference.cpu_times()
    assert times.user + times.system <= ours.cpu_s() + 0.02 <= times.user + times.system + 5
    assert 0.5 < ours.resident_bytes() / reference.memory_info().rss < 2
    assert ours.n_descriptors() == len(os.listdir("/proc/self/fd")) - 1


def test_descriptors_are_counted_well_from_many_threads():
    ours, counts = Process(), []
    before = ours.n_descriptors()
    pipe = os.pipe()
    threads = [threading.Thread(target=lambda: counts.extend(ours.n_descriptors() for _ in range(200)))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fd in pipe:
        os.close(fd)
    assert set(counts) == {before + 2}


def test_files_are_closed_with_it():
    n = len(os.listdir("/proc/self/fd"))
    ours = Process()
    assert len(os.listdir("/proc/self/fd")) == n + 2
    del ours
    assert len(os.listdir("/proc/self/fd")) == n
