"""What one pass over a trace adds up, and that its memory has bounds."""

import math
import random

import pytest

from tests.tracing.traces import PID, START_NS, Lines, inet, inet6, unix, write
from tracing import overview as subject
from tracing.errors import TraceError
from tracing.histogram import ERROR, Density, Durations, Frequent
from tracing.overview import duration, overview
from tracing.syntax import plain

pytestmark = pytest.mark.core


def serving(lines: Lines | None = None) -> Lines:
    return (lines or Lines()).start().phase("startup").phase("load").phase("warmup").listen().phase("serving").accept()


def see(lines: Lines, tmp_path, **changed):
    return overview(lines.write(tmp_path / "a.trace", **changed))


# --- histogram ----------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_off_by_at_most_one_per_cent(seed):
    random.seed(seed)
    values = sorted(int(random.lognormvariate(10, 3)) for _ in range(2000))
    times = Durations()
    for value in values:
        times.add(value)
    for p in (1, 50, 90, 99, 99.9, 100):
        exact = values[max(1, math.ceil(len(values) * p / 100)) - 1]
        assert abs(times.percentile(p) - exact) <= ERROR * exact + 1e-6
    assert (times.n, times.total_ns, times.max_ns, times.min_ns) == (2000, sum(values), values[-1], values[0])


def test_durations_of_two_are_those_of_both():
    both, one, other = Durations(), Durations(), Durations()
    for ns in (5, 0, 900):
        one.add(ns), both.add(ns)
    for ns in (70, 1_000_000):
        other.add(ns), both.add(ns)
    one.unite(other)
    assert [one.percentile(p) for p in range(0, 101, 10)] == [both.percentile(p) for p in range(0, 101, 10)]
    assert (one.n, one.total_ns, one.min_ns, one.max_ns) == (5, 1_000_975, 0, 1_000_000)


def test_durations_of_nothing_are_zero():
    assert (Durations().percentile(50), Durations().mean_ns) == (0, 0)


def test_density_keeps_all_counts_in_few_stretches():
    density = Density(START_NS)
    for second in range(1000):
        density.add(START_NS + second * 10**9)
    assert sum(density.counts) == 1000 and len(density.counts) <= Density.LIMIT
    assert max(density.counts) <= density.width_ns // 10**9 + 1


def test_frequent_keys_survive_and_dropped_ones_are_counted():
    frequent: Frequent[str, list[int]] = Frequent(100, len)
    for i in range(1000):
        frequent.find("often", list).append(i)
        frequent.find(f"once {i}", list).append(i)
    assert len(frequent.kept) <= 100 and len(frequent.kept["often"]) == 1000
    assert frequent.n_dropped + len(frequent.kept) == 1001


# --- overview -----------------------------------------------------------------------------------

def test_calls_are_counted_by_phase_and_name(tmp_path):
    lines = serving().call("close(99) = -1 EBADF (Bad file descriptor)").exchange().exchange().phase("drain").end()
    view = see(lines, tmp_path)
    assert {key: tally.n for key, tally in view.calls.items() if key[0] in ("startup", "serving", "drain")} == {
        ("startup", "execve"): 1, ("serving", "accept4"): 1, ("serving", "close"): 1, ("serving", "recvfrom"): 2,
        ("serving", "sendto"): 2, ("drain", "exit_group"): 1}
    assert view.calls["serving", "close"].errors == 1
    assert view.calls["serving", "sendto"].durations.max_ns == 100
    assert view.n_calls == sum(tally.n for tally in view.calls.values()) == 11


def test_markers_are_in_no_count(tmp_path):
    assert all(name != "access" for _, name in see(serving().end(), tmp_path).calls)


def test_phases_without_calls_are_shown_too(tmp_path):
    view = see(Lines().start().phase("load").phase("warmup").phase("serving").exchange().end(), tmp_path)
    assert [(phase.name, phase.calls) for phase in view.phases] == [
        ("startup", 1), ("load", 0), ("warmup", 0), ("serving", 3)]
    assert all(a.end_ns == b.start_ns for a, b in zip(view.phases, view.phases[1:]))


def test_a_call_that_the_kernel_restarted_counts_once(tmp_path):
    lines = (serving().raw("poll([{fd=5, events=POLLIN}], 1, -1 <unfinished ...>")
             .raw("<... poll resumed>) = ? ERESTART_RESTARTBLOCK (Interrupted by signal) <0.001000000>")
             .raw("--- SIGWINCH {si_signo=SIGWINCH, si_code=SI_KERNEL} ---")
             .call("restart_syscall(<... resuming interrupted poll ...>) = 1").end())
    view = see(lines, tmp_path)
    assert (view.reissued, view.calls["serving", "poll"].n, view.calls["serving", "poll"].errors) == (1, 1, 0)
    assert ("serving", "restart_syscall") not in view.calls
    assert view.signals == {("serving", "SIGWINCH"): 1}


def test_files_are_counted_by_path_and_way(tmp_path):
    lines = serving()
    for path, flags, result in (("/a", "O_RDONLY", "6</a>"), ("/a", "O_RDWR", "6</a>"), ("/b", "O_WRONLY|O_CREAT", "6</b>"),
                                ("/c", "O_RDONLY", "-1 ENOENT (No such file or directory)")):
        lines.call(f'openat(AT_FDCWD</srv>, "{path}", {flags}) = {result}')
    view = see(lines.end(), tmp_path)
    assert {use.path: (use.reads, use.writes, use.failures) for use in view.files} == {
        "/a": (2, 1, 0), "/b": (0, 1, 0), "/c": (0, 0, 1)}
    assert [use.path for use in view.files] == ["/a", "/b", "/c"]


def test_files_without_a_name_are_one(tmp_path):
    lines = serving()
    for i in range(3):
        lines.call(f'openat(AT_FDCWD</srv>, "/tmp", O_RDWR|O_TMPFILE, 0600) = 6</tmp/#{i}>(deleted)')
    assert [(use.path, use.writes) for use in see(lines.end(), tmp_path).files] == [("/tmp/(unnamed)", 3)]


def test_paths_beyond_the_limit_are_only_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "KEPT_FILES", 10)
    lines = serving()
    for i in range(50):
        lines.call(f'openat(AT_FDCWD</srv>, "/f{i}", O_RDONLY) = 6</f{i}>').call('openat(AT_FDCWD</>, "/x", O_RDONLY) = 6</x>')
    view = see(lines.end(), tmp_path)
    assert len(view.files) <= 10 and len(view.files) + view.more_files == 51
    assert next(use for use in view.files if use.path == "/x").reads == 50


def test_requests_beyond_the_sample_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "KEPT_REQUESTS", 10)
    lines = serving()
    for _ in range(100):
        lines.exchange()
    view = see(lines.receive().end(), tmp_path)
    kind = view.requests["hot path"]
    assert (kind.n, kind.unanswered, len(view.sample), view.n_requests) == (101, 1, 10, 101)
    assert (kind.durations.n, sum(kind.calls.values())) == (100, 101)
    assert view.phases[-1].requests == 101 and sum(view.phases[-1].arrivals.counts) == 101


def test_marked_requests_are_apart(tmp_path):
    lines = serving().receive().marker("req=abc/begin").send().marker("req=abc/end").exchange().end()
    view = see(lines, tmp_path)
    assert {kind: one.n for kind, one in view.requests.items()} == {"hot path": 1, "marked": 1}
    assert view.sample[0].id == "abc"


def test_peers_and_listening_addresses(tmp_path):
    lines = (serving().listen(8, "0.0.0.0", 8080)
             .call("socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 9<TCP:[9]>")
             .call(f"connect(9<TCP:[9]>, {inet('10.0.0.1', 443)}, 16) = -1 ECONNREFUSED (Connection refused)")
             .call("socket(AF_INET6, SOCK_DGRAM, IPPROTO_IP) = 10<UDPv6:[10]>")
             .call(f'sendto(10<UDPv6:[10]>, ""..., 3, 0, {inet6("2001:db8::1", 53)}, 28) = 3')
             .call("socket(AF_UNIX, SOCK_STREAM, 0) = 11<UNIX-STREAM:[11]>")
             .call(f"connect(11<UNIX-STREAM:[11]>, {unix('/run/x')}, 110) = -1 ENOENT (No such file or directory)").end())
    view = see(lines, tmp_path)
    assert {(peer.address, peer.way, peer.n, peer.failures) for peer in view.peers} == {
        ("127.0.0.1 at 127.0.0.1:80", "accept from", 1, 0), ("10.0.0.1:443", "connect", 1, 1),
        ("[2001:db8::1]:53", "send to", 1, 0), ("unix:/run/x", "connect", 1, 1)}
    assert view.listening == [("127.0.0.1:80", "SOCK_STREAM", False), ("0.0.0.0:8080", "SOCK_STREAM", True)]


def test_processes_have_programs_threads_and_ends(tmp_path):
    child, thread = PID + 1, PID + 2
    lines = (Lines().start()
             .call(f"clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = {child}")
             .call('execve("/bin/sh", ["sh", "-c", "true"], 0x7f /* 1 var */) = 0', child)
             .raw("+++ killed by SIGKILL +++", child)
             .call(f"clone3({{flags=CLONE_VM|CLONE_THREAD|CLONE_FILES}}, 88) = {thread}")
             .call("gettid() = 102", thread).raw("+++ exited with 0 +++", thread).end())
    first, second = see(lines, tmp_path).processes
    assert (first.programs, first.threads, first.end) == (["/bin/program"], 2, "exited with 0")
    assert (second.programs, second.threads, second.end) == (["/bin/sh -c true"], 1, "killed by SIGKILL")


def test_gaps_in_the_evidence_are_kept(tmp_path):
    view = see(serving(), tmp_path)
    assert any("no exit line" in reason for reason in view.reasons)


def test_foreign_trace_without_times_and_threads(tmp_path):
    path = tmp_path / "ls.txt"
    path.write_text('execve("/bin/ls", ["ls"], 0x7f /* 1 var */) = 0\nclose(3) = 0\nexit_group(0) = ?\n+++ exited with 0 +++\n')
    view = overview(path)
    assert (view.header, view.n_calls, view.start_ns) == (None, 3, 0)
    assert [phase.name for phase in view.phases] == ["serving"]


def test_what_is_no_trace_is_refused_in_one_line(tmp_path):
    path = tmp_path / "x"
    path.write_text("hello\n")
    with pytest.raises(TraceError, match="not a trace"):
        overview(path)


def test_memory_does_not_grow_with_the_trace(tmp_path):
    lines = serving()
    for _ in range(500):
        lines.exchange()
    small = overview(write(tmp_path / "small", lines.lines))
    for _ in range(5000):
        lines.exchange()
    large = overview(write(tmp_path / "large", lines.lines))
    assert large.n_requests == 11 * small.n_requests
    assert len(large.sample) == subject.KEPT_REQUESTS and len(large.slowest) == subject.KEPT_SLOWEST
    assert len(large.calls) == len(small.calls)
    assert all(len(phase.density.counts) <= Density.LIMIT for phase in large.phases)


@pytest.mark.parametrize("ns, text", [(0, "0"), (7, "7 ns"), (1_530_000, "1.53 ms"), (123_456, "123 µs"),
                                      (36_600_000_000, "36.6 s"), (4_000_000_000_000, "4,000 s")])
def test_durations_are_written_with_three_digits(ns, text):
    assert duration(ns) == text


def test_text_of_a_tracee_cannot_do_more_than_be_seen():
    assert plain("a\x1b[2Jb\nc\u202ed\udcff\u200be é") == "a\\x1b[2Jb\\nc\\u202ed\\udcff\\u200be é"
