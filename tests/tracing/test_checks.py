"""Each kind of assertion: when it holds, when it does not, and when there is too little to say."""

import pytest

from tests.tracing.traces import PID, Lines, inet, policy, unix
from tracing.judge import judge

pytestmark = pytest.mark.core


def verdict(assertion: str, lines: Lines, path, **changed) -> tuple[str, str]:
    """(verdict, first reason) of one assertion about a trace."""
    judgement = judge(lines.write(path / "a.trace", **changed), [policy(assertion)])
    (outcome,) = judgement.outcomes
    why = outcome.offences[0].why if outcome.offences else outcome.detail
    assert not judgement.reasons
    return judgement.verdict, why


def started() -> Lines:
    return Lines().start()


OPEN = 'openat(AT_FDCWD</srv>, "{}", {}) = {}'
READ_FILE = OPEN.format("/etc/hosts", "O_RDONLY", "3</etc/hosts>")
WRITE_FILE = OPEN.format("out/x", "O_WRONLY|O_CREAT", "3</srv/out/x>")
CASES = [  # assertion, calls, verdict
    ('check = "calls"\nnever = ["connect", "%ipc"]', ["getpid() = 1"], "PASS"),
    ('check = "calls"\nnever = ["connect", "%ipc"]', ["shmget(0x1, 5, 0) = 1"], "FAIL"),
    ('check = "calls"\nonly = ["getpid", "execve", "exit_group"]', ["getpid() = 1"], "PASS"),
    ('check = "calls"\nonly = ["getpid", "execve", "exit_group"]', ["getppid() = 1"], "FAIL"),
    ('check = "calls"\nnever = ["openat"]\nexcept_paths = ["/etc/**"]', [READ_FILE], "PASS"),
    ('check = "calls"\nnever = ["openat"]\nexcept_paths = ["/etc/**"]', [WRITE_FILE], "FAIL"),
    ('check = "count"\nof = ["getpid"]\nis = "== 2"', ["getpid() = 1"] * 2, "PASS"),
    ('check = "count"\nof = ["getpid"]\nis = "== 2"', ["getpid() = 1"] * 3, "FAIL"),
    ('check = "paths"\nopened = "read"\nonly = ["/etc/*"]', [READ_FILE], "PASS"),
    ('check = "paths"\nopened = "read"\nonly = ["/usr/*"]', [READ_FILE], "FAIL"),
    ('check = "paths"\nopened = "read"\nonly = ["/usr/*"]', [WRITE_FILE], "PASS"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', [WRITE_FILE, READ_FILE], "PASS"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', [OPEN.format("/srv/out/../x", "O_RDWR", "-1 EACCES (no)")], "FAIL"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', ['mkdirat(AT_FDCWD</srv>, "out/d", 0777) = 0'], "PASS"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', ['rename("/srv/out/a", "/etc/passwd") = -1 EACCES (no)'], "FAIL"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', ['unlink("x") = 0'], "INCONCLUSIVE"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', [f"bind(3<UNIX-STREAM:[1]>, {unix('/run/s')}, 9) = 0"], "FAIL"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', ['write(7</etc/motd>, ""..., 1) = 1'], "FAIL"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', ['write(7<pipe:[9]>, ""..., 1) = 1'], "PASS"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', ["fchmod(7</etc/motd>, 0600) = 0"], "FAIL"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', ["ioctl(7</etc/motd>, FS_IOC_SETFLAGS, [0]) = 0"], "FAIL"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', ["copy_file_range(8</srv/out/a>, NULL, 7</etc/motd>, NULL, 9, 0) = 9"], "FAIL"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]',
     ["mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 7</etc/motd>, 0) = 0x7f0"], "FAIL"),
    ('check = "paths"\nopened = "write"\nonly = ["/srv/out/**"]', ["io_submit(0x7f0, 1, [{aio_fildes=9}]) = 1"], "INCONCLUSIVE"),
    ('check = "paths"\nopened = "read"\nonly = ["/usr/**"]', [OPEN.format("/etc/O_WRONLY", "O_RDONLY", "3</etc/O_WRONLY>")], "FAIL"),
    ('check = "paths"\nopened = "any"\nnever = ["/etc/shadow"]', [OPEN.format("/etc/shadow", "O_RDONLY", "-1 EACCES (no)")], "FAIL"),
    ('check = "addresses"\nof = "connect"\nonly = ["127.0.0.0/8", "unix:/run/*"]',
     [f"connect(3<TCP:[7]>, {inet('127.0.0.5', 80)}, 16) = 0", f"connect(4<UNIX-STREAM:[8]>, {unix('/run/x')}, 9) = 0"], "PASS"),
    ('check = "addresses"\nof = "connect"\nonly = ["127.0.0.1:80"]', [f"connect(3<TCP:[7]>, {inet('127.0.0.1', 81)}, 16) = 0"], "FAIL"),
    ('check = "addresses"\nof = "connect"\nonly = ["127.0.0.1"]', ["connect(3<TCP:[7]>, 0x7ffd, 16) = -1 EFAULT (Bad address)"], "INCONCLUSIVE"),
    ('check = "addresses"\nof = "bind"\nnever = ["0.0.0.0"]', [f"bind(3<TCP:[7]>, {inet('0.0.0.0', 80)}, 16) = 0"], "FAIL"),
    ('check = "addresses"\nof = "send"\nonly = ["10.0.0.0/8"]',
     [f'sendmmsg(3<UDP:[7]>, [{{msg_hdr={{msg_name={inet("10.0.0.1", 9)}, msg_namelen=16}}, msg_len=1}}, '
      f'{{msg_hdr={{msg_name={inet("11.0.0.1", 9)}, msg_namelen=16}}, msg_len=1}}], 2, 0) = 2'], "FAIL"),
    ('check = "errnos"\nnever = ["EMFILE"]', ["socket(AF_INET, SOCK_STREAM, 0) = -1 EMFILE (Too many)"], "FAIL"),
    ('check = "errnos"\nof = ["read"]\nonly = ["EAGAIN"]', ['read(3</x>, "", 1) = -1 EAGAIN (no)', "close(9) = -1 EBADF (no)"], "PASS"),
    ('check = "addresses"\nof = "send"\nonly = ["127.0.0.0/8"]',
     ["socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3<TCP:[7]>", f"connect(3<TCP:[7]>, {inet('8.8.8.8', 53)}, 16) = 0",
      'sendto(3<TCP:[1.1.1.1:9->8.8.8.8:53]>, ""..., 1, 0, NULL, 0) = 1'], "FAIL"),
    ('check = "memory"\ngrowth_bytes = "<= 0"', ["mmap(NULL, 67108864, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00",
                                                 "mprotect(0x7f00, 135168, PROT_READ|PROT_WRITE) = 0", "munmap(0x9000, 67108864) = 0"], "FAIL"),
    ('check = "order"\nfirst = "getpid"\nthen = "getppid"', ["getpid() = 1", "getppid() = 1"], "PASS"),
    ('check = "order"\nfirst = "getpid"\nthen = "getppid"', ["getppid() = 1", "getpid() = 1"], "FAIL"),
    ('check = "never_after"\ncalls = ["openat"]\nafter = "getpid"', [READ_FILE, "getpid() = 1"], "PASS"),
    ('check = "never_after"\ncalls = ["openat"]\nafter = "getpid"', ["getpid() = 1", READ_FILE], "FAIL"),
    ('check = "memory"\ngrowth_bytes = "<= 4096"', ["brk(NULL) = 0x1000", "brk(0x2000) = 0x2000"], "PASS"),
    ('check = "memory"\ngrowth_bytes = "<= 4096"', ["brk(NULL) = 0x1000", "brk(0x3000) = 0x3000"], "FAIL"),
    ('check = "memory"\ngrowth_bytes = "<= 0"', ["mmap(NULL, 8192, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00",
                                                 "mremap(0x7f00, 8192, 4096, MREMAP_MAYMOVE) = 0x7f00", "munmap(0x7f00, 4096) = 0"], "PASS"),
    ('check = "memory"\ngrowth_bytes = "<= 0"', ["mmap(NULL, 8192, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00"], "FAIL"),
]


@pytest.mark.parametrize("assertion, calls, expected", CASES, ids=[f"{i}-{case[2]}" for i, case in enumerate(CASES)])
def test_check(tmp_path, assertion, calls, expected):
    lines = started()
    for call in calls:
        lines.call(call)
    assert verdict(assertion, lines.end(), tmp_path)[0] == expected


def test_what_came_first_may_be_in_an_earlier_phase(tmp_path):
    lines = started().listen().phase("serving").call(READ_FILE).end()
    assert verdict('check = "never_after"\ncalls = ["openat"]\nafter = "listen"', lines, tmp_path)[0] == "FAIL"
    assert verdict('check = "order"\nfirst = "listen"\nthen = "openat"', lines, tmp_path)[0] == "PASS"


def test_every_kind_of_check_has_a_case():
    from tracing.checks import CHECKS
    covered = {case[0].split('"')[1] for case in CASES} | {"descriptors", "egress"}
    assert covered == set(CHECKS)


# --- requests -----------------------------------------------------------------------------------

PER_REQUEST = 'check = "count"\nis = "== 2"\nper = "request"\nfree_arrivals = true\nat_least = 3\nstreak_from = 1'


def test_two_calls_a_request_hold_and_segments_are_free(tmp_path):
    lines = started().listen().accept().exchange().exchange().receive().exchange().exchange().end()
    assert verdict(PER_REQUEST, lines, tmp_path) == ("PASS", "2 to 2 calls a request in 3")


def test_one_more_call_of_the_thread_fails(tmp_path):
    lines = started().listen().accept().exchange().exchange().call("getpid() = 1").exchange().exchange().end()
    result, why = verdict(PER_REQUEST, lines, tmp_path)
    assert result == "FAIL" and why == "3 calls a request, expected 2"


def test_receive_that_brings_nothing_is_not_free(tmp_path):
    lines = started().listen().accept().exchange().receive(result="-1 EAGAIN (no)").exchange().exchange().exchange().end()
    assert verdict(PER_REQUEST, lines, tmp_path)[0] == "FAIL"


@pytest.mark.parametrize("first, second", [("1", "1"), ("200", "90")])
def test_receive_that_left_bytes_behind_is_no_further_arrival(tmp_path, first, second):
    """It asked for no more than it got: the next one brings what was there already."""
    lines = started().listen().accept().exchange()
    for _ in range(3):
        for size in (first, second):
            lines.call(f'recvfrom(5<TCP:[127.0.0.1:80->127.0.0.1:40000]>, ""..., {size}, 0, NULL, NULL) = {size}')
        lines.send()
    assert verdict(PER_REQUEST, lines.end(), tmp_path)[0] == "FAIL"


def test_look_at_what_has_arrived_is_no_further_arrival(tmp_path):
    lines = started().listen().accept().exchange()
    for _ in range(3):
        lines.call('recvfrom(5<TCP:[127.0.0.1:80->127.0.0.1:40000]>, ""..., 65536, MSG_PEEK, NULL, NULL) = 9').exchange()
    assert verdict(PER_REQUEST, lines.end(), tmp_path)[0] == "FAIL"


def test_too_few_requests_prove_nothing(tmp_path):
    lines = started().listen().accept().exchange().exchange().exchange().end()
    assert verdict(PER_REQUEST, lines, tmp_path) == ("INCONCLUSIVE", "2 to 2 calls a request in 2; 2 requests to count, expected at least 3")


@pytest.mark.parametrize("allowed, expected", [("<= 1", "FAIL"), ("<= 2", "PASS")])
def test_threads_that_serve_nobody_are_counted_by_the_second(tmp_path, allowed, expected):
    rule = f'check = "count"\nis = "{allowed}"\nper = "second"\nthreads = "background"'
    lines = started().phase("serving").listen().accept()
    for _ in range(20):
        lines.wait(0.5).exchange().call("clock_nanosleep(CLOCK_REALTIME, 0, {}, NULL) = 0", PID + 1)
    assert verdict(rule, lines.raw("+++ exited with 0 +++", PID + 1).end(), tmp_path)[0] == expected


@pytest.mark.parametrize("apart_s, beside, expected", [
    (0.002, False, "PASS"), (0.002, True, "FAIL"), (0.2, False, "INCONCLUSIVE"), (0.2, True, "INCONCLUSIVE")])
def test_what_other_threads_do_for_each_request_is_seen(tmp_path, apart_s, beside, expected):
    rule = 'check = "count"\nis = "<= 10"\nper = "second"\nstreak_from = 2'
    lines = started().phase("serving").listen().accept()
    for _ in range(1000 if apart_s < 0.1 else 20):
        lines.exchange().wait(apart_s)
        if beside:
            lines.call("futex(0x1, FUTEX_WAIT, 1) = 0", PID + 1)
    lines.call("getpid() = 1", PID + 1).raw("+++ exited with 0 +++", PID + 1)
    assert verdict(rule, lines.end(), tmp_path)[0] == expected


def test_tokens(tmp_path):
    rule = 'check = "count"\nis = "== 1"\nper = "token"'
    lines = started().phase("serving").listen().accept().receive().marker("req=a/begin").marker("req=a/first_token").send().send()
    assert verdict(rule, lines.marker("req=a/end").end(), tmp_path)[0] == "PASS"
    lines = started().phase("serving").listen().accept().receive().marker("req=a/begin").marker("req=a/first_token").send()
    assert verdict(rule, lines.call("getpid() = 1").send().marker("req=a/end").end(), tmp_path)[0] == "FAIL"


@pytest.mark.parametrize("leak, expected", [(False, "PASS"), (True, "FAIL")])
def test_descriptor_growth(tmp_path, leak, expected):
    lines = started().listen().accept()
    for i in range(10):
        lines.receive().call(f'openat(AT_FDCWD</>, "/x", O_RDONLY) = {10 + i}</x>')
        if not leak:
            lines.call(f"close({10 + i}</x>) = 0")
        lines.send()
    assert verdict('check = "descriptors"\ngrowth = "<= 0"\nover_requests = 10', lines.end(), tmp_path)[0] == expected


def test_descriptor_growth_over_too_few_requests_proves_nothing(tmp_path):
    lines = started().listen().accept().exchange().end()
    assert verdict('check = "descriptors"\ngrowth = "<= 0"\nover_requests = 10', lines, tmp_path)[0] == "INCONCLUSIVE"


# --- evidence -----------------------------------------------------------------------------------

def test_calls_that_were_not_recorded_prove_nothing(tmp_path):
    rule = 'check = "calls"\nnever = ["connect", "shmget"]'
    result, why = verdict(rule, started().end(), tmp_path, traced=("%net", "%process"))
    assert (result, why) == ("INCONCLUSIVE", "the recording leaves out shmget")


def test_first_offenders_are_named_and_the_rest_counted(tmp_path):
    lines = started()
    for i in range(9):
        lines.call(f"shmget(0x{i}, 5, 0) = 1")
    (outcome,) = judge(lines.end().write(tmp_path / "a"), [policy('check = "calls"\nnever = ["%ipc"]')]).outcomes
    assert (outcome.n_offences, len(outcome.offences)) == (9, 5)
    assert outcome.offences[0].call == "shmget(0x0, 5, 0) = 1" and outcome.offences[0].line == 2


def test_offence_does_not_show_payload(tmp_path):
    lines = started().call('sendto(3<UDP:[7]>, "secret", 6, 0, NULL, 0) = 6').end()
    (outcome,) = judge(lines.write(tmp_path / "a"), [policy('check = "calls"\nnever = ["sendto"]')]).outcomes
    assert "secret" not in outcome.offences[0].call and outcome.offences[0].call.startswith("sendto(3<UDP:[7]>")
