"""Two traces of the same behaviour are the same; what is new, missing or changed in count is said, and only that."""

import shutil
import subprocess
import sys
from argparse import Namespace

import pytest

from tests.tracing.traces import PID, Lines, inet
from tracing import diff
from tracing.diff import pattern, steady_path
from tracing.events import Call
from tracing.parse import Parser

pytestmark = pytest.mark.core


def compare(before: Lines, after: Lines, tmp_path, capsys) -> tuple[int, list[str]]:
    options = Namespace(before=before.write(tmp_path / "a"), after=after.write(tmp_path / "b"))
    status = diff.main(options)
    return status, capsys.readouterr().out.splitlines()


def of(text: str) -> str:
    call = Parser().feed(f"100 1700000000.000000001 {text} <0.000001000>")
    assert isinstance(call, Call)
    return pattern(call)


def a_run(pid: int = PID, port: int = 40000, temporary: str = "tmpq8w", fd: int = 5) -> Lines:
    return (Lines().call('execve("/bin/program", ["program"], 0x7ffd /* 3 vars */) = 0', pid)
            .call(f'openat(AT_FDCWD</home/{port}>, "/tmp/{temporary}/x", O_RDWR|O_CREAT, 0600) = {fd}</tmp/{temporary}/x>', pid)
            .call(f"mmap(NULL, {port}, PROT_READ, MAP_PRIVATE, {fd}</tmp/{temporary}/x>, 0) = 0x7f{port}000", pid)
            .call(f"fstat({fd}</tmp/{temporary}/x>, {{st_mode=S_IFREG|0600, st_size={port}, ...}}) = 0", pid)
            .call(f'openat(AT_FDCWD</>, "/proc/{pid}/stat", O_RDONLY) = {fd + 1}</proc/{pid}/stat>', pid)
            .accept(fd + 2, pid, f"127.0.0.1:{port}")
            .call(f'recvfrom({fd + 2}<TCP:[127.0.0.1:80->127.0.0.1:{port}]>, ""..., {port}, 0, NULL, NULL) = {port}', pid)
            .end(pid))


def test_runs_that_differ_in_numbers_only_are_the_same(tmp_path, capsys):
    status, lines = compare(a_run(), a_run(PID + 77, 51234, "tmpzzz", 9), tmp_path, capsys)
    assert status == 0 and lines[-1].startswith("the same")


def test_what_is_new_missing_and_changed_is_said(tmp_path, capsys):
    before = (Lines().start().phase("load").phase("serving").accept().exchange().exchange()
              .call('openat(AT_FDCWD</>, "/etc/old", O_RDONLY) = 6</etc/old>').end())
    after = (Lines().start().phase("load").phase("serving").accept().exchange().exchange().exchange()
             .call("socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 6<TCP:[6]>")
             .call(f"connect(6<TCP:[6]>, {inet('10.0.0.1', 443)}, 16) = 0").end())
    status, lines = compare(before, after, tmp_path, capsys)
    assert status == 1
    assert lines == [
        "program, main, serving",
        "  new     connect(TCP, 10.0.0.1:443): 1",
        "  new     socket(AF_INET, SOCK_STREAM, IPPROTO_IP): 1",
        "  missing openat(/etc/old, O_RDONLY): 1",
        "  changed recvfrom(TCP→127.0.0.1): 2 → 3",
        "  changed sendto(TCP→127.0.0.1, MSG_NOSIGNAL): 2 → 3",
        "different: 2 new, 1 missing, 2 changed in count (left out: how often calls wait or manage memory)"]


def test_what_is_about_one_file_is_one_line(tmp_path, capsys):
    more = (Lines().start().call('openat(AT_FDCWD</>, "/etc/new", O_RDONLY) = 6</etc/new>')
            .call('read(6</etc/new>, ""..., 99) = 9').call('read(6</etc/new>, "", 99) = 0')
            .call("close(6</etc/new>) = 0").end())
    status, lines = compare(Lines().start().end(), more, tmp_path, capsys)
    assert (status, lines[1]) == (1, "  new     /etc/new: read 2, close 1, openat 1")


def test_a_call_moved_to_another_phase_is_a_difference(tmp_path, capsys):
    one, other = (Lines().start().phase("load") for _ in range(2))
    one.call("setsid() = 1").phase("serving").end()
    other.phase("serving").call("setsid() = 1").end()
    status, lines = compare(one, other, tmp_path, capsys)
    assert status == 1
    assert lines[:4] == ["program, main, load", "  missing setsid(): 1", "program, main, serving", "  new     setsid(): 1"]


def test_threads_are_matched_by_what_they_do_not_by_their_numbers(tmp_path, capsys):
    def run(first: int, second: int) -> Lines:
        lines = Lines().start()
        for tid in sorted((first, second)):
            lines.call(f"clone3({{flags=CLONE_VM|CLONE_THREAD|CLONE_FILES}}, 88) = {tid}")
        for _ in range(9):
            lines.call("fsync(3</log>) = 0", first).call("sync() = 0", second)
        return lines.raw("+++ exited with 0 +++", first).raw("+++ exited with 0 +++", second).end()
    assert compare(run(201, 202), run(302, 301), tmp_path, capsys)[0] == 0


def test_which_thread_of_a_pool_serves_is_no_difference(tmp_path, capsys):
    def run(shares: tuple[int, int]) -> Lines:
        lines = Lines().start()
        for number, share in enumerate(shares):
            tid = PID + 1 + number
            lines.call(f"clone3({{flags=CLONE_VM|CLONE_THREAD|CLONE_FILES}}, 88) = {tid}").accept(5 + number, tid)
            for _ in range(share):
                lines.exchange(5 + number, tid)
        return lines.raw("+++ exited with 0 +++", PID + 1).raw("+++ exited with 0 +++", PID + 2).end()
    assert compare(run((9, 1)), run((3, 7)), tmp_path, capsys)[0] == 0


def test_waiting_more_often_is_no_difference_but_waiting_at_all_is(tmp_path, capsys):
    def run(n: int) -> Lines:
        lines = Lines().start()
        for _ in range(n):
            lines.call("futex(0x55d, FUTEX_WAIT_PRIVATE, 2, NULL) = 0")
        return lines.call("recvfrom(3<TCP:[3]>, 0x7f, 1, 0, NULL, NULL) = -1 EAGAIN (Try again)").end()
    assert compare(run(1), run(7), tmp_path, capsys)[0] == 0
    status, lines = compare(run(0), run(1), tmp_path, capsys)
    assert (status, lines[:2]) == (1, ["program, main, any phase", "  new     futex: 1"])


def test_a_process_more_is_told_by_its_program(tmp_path, capsys):
    child = (Lines().start().call(f"vfork() = {PID + 1}")
             .call('execve("/bin/curl", ["curl"], 0x7f /* 1 var */) = 0', PID + 1).end(PID + 1).end())
    status, lines = compare(Lines().start().end(), child, tmp_path, capsys)
    assert status == 1 and "curl, main, serving" in lines


def test_output_stays_short(tmp_path, capsys):
    many = Lines().start()
    for i in range(500):
        many.call(f'openat(AT_FDCWD</>, "/srv/f{i}x", O_RDONLY) = -1 ENOENT (No such file or directory)')
    status, lines = compare(Lines().start().end(), many.end(), tmp_path, capsys)
    assert status == 1 and len(lines) == diff.SHOWN + 2
    assert lines[-2] == f"… and {501 - diff.SHOWN} more lines"


def test_gaps_are_said(tmp_path, capsys):
    said = compare(Lines().start(), Lines().start(), tmp_path, capsys)[1]
    assert said[0].startswith(f"incomplete: {tmp_path}/a: 1 threads")


@pytest.mark.parametrize("text, expected", [
    ('openat(AT_FDCWD</home>, "/etc/hosts", O_RDONLY|O_CLOEXEC) = 3</etc/hosts>', "openat(/etc/hosts, O_RDONLY|O_CLOEXEC)"),
    ('stat("/x", 0x7ffc) = -1 ENOENT (No such file or directory)', "stat(/x) ENOENT"),
    ('getrandom("\\x01\\x02", 2, GRND_NONBLOCK) = 2', "getrandom(GRND_NONBLOCK)"),
    ("bind(3<TCP:[99]>, " + inet("127.0.0.1", 35671) + ", 16) = 0", "bind(TCP, 127.0.0.1:0)"),
    ("close(3<pipe:[4711]>) = 0", "close(pipe:[])"),
    ("kill(4711, SIGTERM) = 0", "kill(SIGTERM)"),
])
def test_patterns(text, expected):
    assert of(text) == expected


@pytest.mark.parametrize("path, expected", [
    ("/tmp/tmpab12/x.py", "/tmp/*"), ("/proc/4711/task/4712/stat", "/proc/*/task/*/stat"),
    ("/usr/lib/python3.11", "/usr/lib/python3.11"),
    ("/a/__pycache__/b.cpython-311.pyc.139912345678", "/a/__pycache__/b.cpython-311.pyc.*"),
    ("/cache/0123456789abcdef/x", "/cache/*/x"),
    ("/srv/tmp/x", "/srv/tmp/x"), ("/dev/shm/sem.a1", "/dev/shm/*")])
def test_paths_lose_what_varies(path, expected):
    assert steady_path(path) == expected


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_a_real_program_is_the_same_twice_and_another_is_not(tmp_path, capsys):
    programs = ["import subprocess, tempfile, threading\nt = threading.Thread(target=open, args=('/etc/hosts',))\n"
                "t.start(); t.join(); subprocess.run(['true']); tempfile.mkdtemp()"] * 2
    programs.append(programs[0].replace("/etc/hosts", "/etc/passwd"))
    for number, code in enumerate(programs):
        subprocess.run(["strace", "-f", "-s", "128", "-yy", "-o", tmp_path / str(number), "--",
                        sys.executable, "-S", "-c", code], check=True, env={"TMPDIR": str(tmp_path)})
    assert diff.main(Namespace(before=tmp_path / "0", after=tmp_path / "1")) == 0
    assert diff.main(Namespace(before=tmp_path / "0", after=tmp_path / "2")) == 1
    assert "/etc/passwd" in capsys.readouterr().out
