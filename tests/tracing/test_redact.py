"""Redaction: no character of a payload survives, names stay, and the calls are otherwise the same."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tracing.strace_lines import BLOCKS, WHOLE
from tests.tracing.test_parse import HOSTILE, quoted
from tracing.parse import parse
from tracing.redact import ALL, NAMES, redact
from tracing.syntax import ANNOTATION

pytestmark = pytest.mark.core

AT = "4060  1795477143.777805300 "
MARK = "§"  # in every payload, and nowhere else: strace escapes it, we look for the escaped bytes
ESCAPED = quoted(MARK)
PAYLOAD_CALLS = [
    "read(3, {}, 9) = 9", "write(3</a>, {}, 9) = 9", "pread64(3, {}, 9, 0) = 9", "pwrite64(3, {}, 9, 0) = 9",
    "readv(3, [{{iov_base={}, iov_len=9}}], 1) = 9", "writev(3, [{{iov_base={}, iov_len=9}}, {{iov_base={}}}], 2) = 9",
    "recvfrom(3<TCP:[127.0.0.1:1->127.0.0.1:2]>, {}, 9, 0, NULL, NULL) = 9 <0.1>", "sendto(3, {}, 9, 0, NULL, 0) = 9",
    "sendmsg(3, {{msg_name=NULL, msg_iov=[{{iov_base={}, iov_len=9}}], msg_iovlen=1, msg_control={}}}, 0) = 9",
    "sendmmsg(3, [{{msg_hdr={{msg_iov=[{{iov_base={}, iov_len=9}}]}}, msg_len=9}}], 1, 0) = 1",
    "vmsplice(3, [{{iov_base={}, iov_len=9}}], 1, 0) = 9", "msgsnd(1, {{1, {}}}, 9, 0) = 0", "getrandom({}, 9, 0) = 9",
    "process_vm_writev(7, [{{iov_base={}, iov_len=9}}], 1, [{{iov_base=0x1, iov_len=9}}], 1, 0) = 9",
    "mq_timedsend(3, {}, 9, 0, NULL) = 0", "setsockopt(3, SOL_SOCKET, SO_BINDTODEVICE, {}, 9) = 0",
    "ioctl(0, TCGETS, {{c_cc={}}}) = 0", 'add_key({}, "a", {}, 9, 1) = 1', "prctl(PR_SET_NAME, {}) = 0",
    "syscall_0x1d3({}) = 0", "nobody_knows_this_call({}) = 0", "write(1, {} <unfinished ...>",
    "<... recvfrom resumed>{}, 9, 0, NULL, NULL) = 9", "<... openat2_or_so resumed>{}) = 0", "[pid 3] write(1, {}) = 1",
    'setxattr("/name", "user.name", {}, 9, 0) = 0', "<... getxattr resumed>{}, 9) = 9",
    'mount("/name", "/name", "cifs", 0, {}) = 0', "{} is not a line of strace's", "+++ {} +++", "{}",
]
payloads = st.builds(lambda a, b: a + MARK + b, *[st.lists(st.sampled_from(HOSTILE) | st.text(
    st.characters(codec="utf-8"), max_size=3), max_size=4).map("".join)] * 2)


def without_strings(lines: list[str]) -> list[tuple]:
    """The events of these lines, without any string outside annotations."""
    pattern = re.compile(rf'({ANNOTATION})|"(?:[^"\\]|\\.)*"(?:\.\.\.)?')
    return [tuple(pattern.sub(r"\1", each) if isinstance(each, str) else each for each in event)
            for event in parse(lines)]


@given(st.sampled_from(PAYLOAD_CALLS), payloads, st.sampled_from(["", "..."]))
def test_no_payload_survives(call, payload, more):
    line = AT + call.replace("{}", f'"{quoted(payload)}"{more}').replace("{{", "{").replace("}}", "}")
    redacted = redact(line)
    assert redacted == AT + call.replace("{}", '""...').replace("{{", "{").replace("}}", "}").replace('"a"', '""...')
    assert without_strings([redacted]) == without_strings([line])


@given(st.sampled_from(PAYLOAD_CALLS), payloads, st.integers(0, 400))
def test_no_payload_survives_in_a_torn_line(call, payload, end):
    line = AT + call.replace("{}", f'"{quoted(payload)}"').replace("{{", "{").replace("}}", "}")
    assert ESCAPED not in redact(line[:end])


@given(st.sampled_from(list(NAMES)), payloads)
def test_names_stay(name, path):
    names = ", ".join([f'"{quoted(path)}"'] * min(NAMES[name], 4))
    line = f'{AT}{name}(3</a"b>, {names}, 0) = 0</{quoted(path, "<>")}>'
    assert redact(line) == line


@pytest.mark.parametrize("line", [
    'connect(3, {sa_family=AF_UNIX, sun_path="/run/x"}, 9) = 0',
    'connect(3, {sa_family=AF_UNIX, sun_path=@"abstract"}, 9) = 0',
    'bind(3<UNIX-STREAM:[1->2,"/a\\"b"]>, {sa_family=AF_INET, sin_addr=inet_addr("127.0.0.1")}, 16) = 0',
    'sendto(3, NULL, 0, 0, {sa_family=AF_INET6, inet_pton(AF_INET6, "::1", &sin6_addr)}, 28) = 0',
    'bind(3, {sa_family=AF_INET6, sin6_scope_id=if_nametoindex("lo")}, 28) = 0',
    'close(3<UNIX-STREAM:[1->2,@"a]> = 3"]>) = 0',
    'access("/dev/null/testigo/v1/00/0/phase=serving", F_OK) = -1 ENOTDIR (Not a directory)',
    '<... readlink resumed>"/usr/bin/python3.11", 4096) = 19',
    'execve("/bin/sh", ["sh", "-c", "echo \\"a\\""], 0x7ffe /* 3 vars */) = 0',
    "--- SIGCHLD {si_signo=SIGCHLD} ---", "+++ exited with 0 +++", ""])
def test_line_without_payload_stays(line):
    assert redact(AT + line) == AT + line
    assert redact(line) == line


def test_thread_that_is_named_like_a_call_changes_nothing():
    line = '7<openat("/x> write(1, "payload", 7) = 7'
    assert "payload" not in redact(line)


@pytest.mark.parametrize("lines", [[line] for line, *_ in WHOLE] + [block.splitlines() for block in BLOCKS.values()])
def test_redacted_lines_are_the_same_events(lines):
    redacted = list(map(redact, lines))
    assert without_strings(redacted) == without_strings(lines)
    assert list(map(redact, redacted)) == redacted


@given(st.text())
def test_no_text_raises(text):
    redact(text)
    redact('"' + text)


def test_all_is_more_than_a_call_has():
    assert ALL > 64
