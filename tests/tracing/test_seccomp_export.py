"""Policies made from traces: what is united, what narrows a call, and what the two forms look like."""

import configparser
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import jsonschema
import pytest

from server import sandbox
from tests import serving
from tests.classic_bpf import run
from tests.planting import Plant
from tests.server import whole_load
from tests.tracing import traces
from tracing import export
from tracing.errors import TraceError
from tracing.tracefile import TraceFile

SYSTEM = "Linux 6.1 x86_64"

# The runtime specification's schema/defs-linux.json, as far as a seccomp section of it goes.
WORD = {"type": "integer", "minimum": 0, "maximum": 2 ** 64 - 1}
ACTION = {"enum": [f"SCMP_ACT_{name}" for name in
                   "KILL KILL_PROCESS KILL_THREAD TRAP ERRNO TRACE ALLOW LOG NOTIFY".split()]}
ARCHITECTURE = {"enum": [f"SCMP_ARCH_{name}" for name in """
    X86 X86_64 X32 ARM AARCH64 LOONGARCH64 M68K MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE S390
    S390X PARISC PARISC64 RISCV64 SH SHEB""".split()]}
OPERATOR = {"enum": [f"SCMP_CMP_{name}" for name in "NE LT LE EQ GE GT MASKED_EQ".split()]}
ARGUMENT = {"type": "object", "required": ["index", "value", "op"], "additionalProperties": False, "properties": {
    "index": {"type": "integer", "minimum": 0, "maximum": 5}, "value": WORD, "valueTwo": WORD, "op": OPERATOR}}
SYSCALL = {"type": "object", "required": ["names", "action"], "additionalProperties": False, "properties": {
    "names": {"type": "array", "minItems": 1, "items": {"type": "string"}}, "action": ACTION,
    "errnoRet": {"type": "integer", "minimum": 0, "maximum": 2 ** 32 - 1},
    "args": {"type": "array", "items": ARGUMENT}}}
SECCOMP = {"type": "object", "required": ["defaultAction"], "additionalProperties": False, "properties": {
    "defaultAction": ACTION, "defaultErrnoRet": {"type": "integer", "minimum": 0, "maximum": 2 ** 32 - 1},
    "architectures": {"type": "array", "items": ARCHITECTURE}, "flags": {"type": "array"},
    "syscalls": {"type": "array", "minItems": 1, "items": SYSCALL}}}


def served(*calls: str, before: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> traces.Lines:
    """A run with its phases: `before` while loading, `calls` while serving, `after` while it shuts down."""
    lines = traces.Lines().start().phase("load")
    for phase, texts in (("serving", before), ("drain", calls), ("shutdown", ()), ("", after)):
        for text in texts:
            lines.call(text)
        if phase:
            lines.phase(phase)
    return lines.call("exit_group(0) = ?").raw("+++ exited with 0 +++")


@pytest.fixture
def policy(tmp_path: Path):
    """A function: runs (lists of lines) → the Recordings that they are."""
    def unite(*runs: traces.Lines, phases: tuple[str, ...] = export.FROM_SERVING, **header) -> export.Recordings:
        paths = [traces.write(tmp_path / f"{i}.trace", run.lines, **({"system": SYSTEM} | header))
                 for i, run in enumerate(runs)]
        return export.read(paths, phases)
    return unite


def names(recordings: export.Recordings) -> set[str]:
    return {name for entry in export.oci(recordings)["syscalls"] for name in entry["names"]}


def test_calls_from_serving_on_and_the_base_set_are_allowed(policy):
    made = policy(served("epoll_wait(4, [], 8, -1) = 0", before=("uname({}) = 0", "getcwd(\"/\", 9) = 2"),
                         after=("munlock(0x7f, 9) = 0",)))
    assert names(made) == export.BASE | {"epoll_wait", "munlock"}


def test_phases_can_be_chosen(policy):
    made = policy(served("epoll_wait(4, [], 8, -1) = 0", before=("uname({}) = 0",)), phases=("load",))
    assert names(made) == export.BASE | {"uname"}


def test_program_without_markers_is_allowed_what_it_did_from_its_start(policy):
    made = policy(traces.Lines().start().call("uname({}) = 0").call("exit_group(0) = ?").raw("+++ exited with 0 +++"))
    assert names(made) == export.BASE | {"execve", "uname"}


def test_runs_are_united_and_each_call_says_in_how_many_it_was(policy):
    made = policy(*[served("poll([], 1, -1) = 0", *["select(0, [], [], [], NULL) = 0"] * (i == 0)) for i in range(3)])
    lines = {line.split()[0]: line.split()[1:] for line in export.table(made).splitlines()}
    assert lines["poll"] == ["3/3", "3"] and lines["select"] == ["1/3", "1"] and lines["sigaltstack"] == ["base"]
    assert any("not seen in every run: select;" in note for note in export.notes(made))


@pytest.mark.parametrize(("call", "beyond"), [
    ('sendto(5, ""..., 9, MSG_NOSIGNAL, NULL, 0) = 9',
     'sendto(5, ""..., 9, 0, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("127.0.0.1")}, 16) = 9'),
    ('openat(AT_FDCWD, "/O_RDWR", O_RDONLY|O_CLOEXEC) = 3', 'openat(AT_FDCWD, "/x", O_WRONLY|O_CREAT, 0666) = 3'),
    ('open("/x", O_RDONLY) = 3', 'open("/x", O_RDONLY|O_CREAT, 0666) = 3'),
    ("mmap(NULL, 9, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f",
     "mmap(NULL, 9, PROT_EXEC, 2, 3, 0) = 0x7f"),
    ("mprotect(0x7f, 9, PROT_NONE) = 0", "mprotect(0x7f, 9, PROT_READ|PROT_EXEC) = 0"),
    ("clone(child_stack=0x7f, flags=CLONE_VM|CLONE_THREAD, tls=0x7f) = -1 EAGAIN (x)",
     "clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = -1 EAGAIN (x)"),
])
def test_call_is_narrowed_to_what_was_seen_of_it(policy, call, beyond):
    name = call.partition("(")[0]
    narrow, wide = policy(served(call)), policy(served(call), served(call, beyond))
    entry, = (entry for entry in export.oci(narrow)["syscalls"] if entry["names"] == [name])
    assert entry["args"] == [export.LIMITS[name].args] and f"  {export.LIMITS[name].what}" in export.table(narrow)
    assert not any("args" in entry for entry in export.oci(wide)["syscalls"] if name in entry["names"])


def test_limits_stop_what_they_are_there_to_stop():
    """Compiled by the server's sandbox: the flags that a limit looks for in a trace are those of its mask."""
    entries = [{"names": [name], "action": "SCMP_ACT_ALLOW", "args": [limit.args]}
               for name, limit in export.LIMITS.items()]
    content = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": entries}
    for machine in ("x86_64", "aarch64"):
        profile = sandbox.read(content, machine)
        code, numbers = sandbox.program(profile), profile.machine.numbers

        def allows(name: str, *args: int) -> bool:
            padded = [*args, *[0] * (6 - len(args))]
            return run(code, profile.machine.audit_arch, numbers[name], padded) == sandbox.ALLOW
        assert allows("openat", 0, 0, 0o2000000) and not any(
            allows("openat", 0, 0, flags) for flags in (0o1, 0o2, 0o100, 0o1000, 0o2000, 0o20000000))
        assert allows("mmap", 0, 0, 3) and not allows("mmap", 0, 0, 5) and not allows("mprotect", 0, 0, 4)
        assert allows("sendto", 0, 0, 0, 0, 0) and not allows("sendto", 0, 0, 0, 0, 2 ** 40)
        assert allows("clone", 0x3D0F00) and not allows("clone", 0x1200011)


def test_oci_profile_keeps_to_the_specification(policy):
    made = policy(served('sendto(5, ""..., 9, 0, NULL, 0) = 9', "mprotect(0x7f, 9, PROT_NONE) = 0"),
                  served("epoll_wait(4, [], 8, -1) = 0"))
    profile = json.loads(export.oci_text(made))
    jsonschema.validate(profile, SECCOMP)
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    assert profile["architectures"] == ["SCMP_ARCH_X86_64"]
    every = [name for entry in profile["syscalls"] for name in entry["names"]]
    assert len(every) == len(set(every))
    assert not sandbox.read(profile, "x86_64").ignored


def test_profile_that_the_server_ships_keeps_to_the_specification():
    profile = json.loads(sandbox.DEFAULT_PROFILE.read_text())
    for entry in profile["syscalls"]:
        del entry["comment"]  # which Docker reads over
    jsonschema.validate(profile, SECCOMP)


def test_systemd_settings_hold_all_phases(policy, tmp_path):
    made = policy(served("epoll_wait(4, [], 8, -1) = 0",
                         before=("socket(AF_INET6, SOCK_STREAM, IPPROTO_TCP) = -1 EAFNOSUPPORT (x)",
                                 "socket(AF_INET, SOCK_STREAM, IPPROTO_TCP) = 3", *(f"{name}(0) = 0" for name in (
                                     "bind", "listen", "setsockopt", "getsockname", "uname", "getcwd", "getdents64",
                                     "epoll_create1", "eventfd2", "sched_getaffinity", "newfstatat", "prlimit64")))))
    text = export.systemd_text(made)
    sections = configparser.RawConfigParser(strict=False, delimiters="=")
    sections.read_string(text)
    service = dict(sections["Service"])
    assert service["systemcallerrornumber"] == "ENOSYS" and service["restrictaddressfamilies"] == "AF_INET AF_INET6"
    assert service["ipaddressdeny"] == "any" and service["ipaddressallow"] == "localhost"
    filters = [line.partition("=")[2] for line in text.splitlines() if line.startswith("SystemCallFilter=")]
    assert set(" ".join(filters).split()) >= export.BASE | {"execve", "socket", "bind", "epoll_wait", "uname"}
    assert all(len(line) <= 120 for line in filters) and len(filters) > 1
    if shutil.which("systemd-analyze"):
        unit = tmp_path / "testigo-test.service"
        unit.write_text(f"[Service]\nExecStart={sys.executable}\n{text.partition('[Service]')[2]}")
        verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
        assert "testigo-test" not in verified.stderr and "nknown" not in verified.stderr, verified.stderr


def test_what_deserves_a_look_is_said(policy):
    made = policy(served('connect(5, {sa_family=AF_UNIX, sun_path="/x"}, 9) = -1 ENOENT (x)', "syscall_0x1d3(0) = 0"))
    notes = " ".join(export.notes(made))
    assert "look before you keep it: connect" in notes and "strace has no name for syscall_0x1d3" in notes
    assert "one run shows" in notes and "syscall_0x1d3" not in names(made) and "connect" in names(made)


def test_incomplete_recording_is_noted(tmp_path):
    path = traces.write(tmp_path / "a.trace", served("poll([], 1, -1) = 0").lines, recorded=False, system=SYSTEM)
    assert any(note.startswith(f"{path}: the recording did not end") for note in export.read([path]).notes)


def test_trace_that_leaves_calls_out_is_refused(policy):
    with pytest.raises(TraceError, match="needs --profile full"):
        policy(served("poll([], 1, -1) = 0"), traced=("%net", "%process"), profile="sovereign")


@pytest.mark.parametrize(("system", "says"), [("Linux 6.1 riscv64", "x86_64, aarch64"), ("Linux 6.1 aarch64", "")])
def test_profile_is_for_the_processor_of_the_trace(policy, system, says):
    if says:
        with pytest.raises(TraceError, match=says):
            policy(served("poll([], 1, -1) = 0"), system=system)
    else:
        assert export.oci(policy(served("ppoll(0) = 0"), system=system))["architectures"] == ["SCMP_ARCH_AARCH64"]


def test_trace_without_serving_is_refused(policy):
    with pytest.raises(TraceError, match="no calls in serving, drain, shutdown"):
        policy(traces.Lines().start().phase("load").call("uname({}) = 0"))


def test_command_writes_both_files_and_says_where_it_cannot(tmp_path, capsys):
    trace = traces.write(tmp_path / "a.trace", served("poll([], 1, -1) = 0").lines, system=SYSTEM)
    options = Namespace(traces=[trace], oci=tmp_path / "seccomp.json", systemd=tmp_path / "unit.conf", phases=[])
    assert export.main(options) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["call", "runs", "calls", "only"]
    jsonschema.validate(json.loads(options.oci.read_text()), SECCOMP)
    assert options.systemd.read_text().startswith("# Made from 1 recorded run;")
    options.oci = tmp_path / "none" / "seccomp.json"
    with pytest.raises(TraceError, match="seccomp.json: No such file"):
        export.main(options)


def test_trace_of_strace_alone_will_do(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text('7 execve("/bin/true", ["true"], 0x7f /* 3 vars */) = 0\n7 uname({}) = 0\n'
                    "7 +++ exited with 0 +++\n")
    assert TraceFile.open(path).header is None
    made = export.read([path])
    assert "uname" in names(made) and any("not recorded by this program" in note for note in made.notes)


def test_server_lives_in_the_sandbox_that_its_own_recording_gives(tmp_path):
    """The whole circle: record both kinds of serving, unite, export, enforce."""
    if shutil.which("strace") is None or subprocess.run(["strace", "-o", os.devnull, "true"]).returncode:
        pytest.skip("strace cannot trace here")
    if reason := sandbox.unsupported():
        pytest.skip(reason)
    for native in (True, False):
        record = (sys.executable, "-m", "tracing", "run", "--profile", "full", "--out", tmp_path / "traces", "--",
                  *serving.COMMAND)
        with serving.start(native=native, command=record) as server:
            whole_load.drive(server)
            assert server.stop() == 0
    profile = tmp_path / "seccomp.json"
    made = export.read(sorted((tmp_path / "traces").iterdir()))
    assert made.n == 2 and {"recvfrom", "sendto", "epoll_wait", "accept4"} <= names(made)
    shipped = json.loads(sandbox.DEFAULT_PROFILE.read_text())
    assert names(made) - {name for entry in shipped["syscalls"] for name in entry["names"]} == {"clone3"}
    assert names(made) & export.QUESTIONABLE == set() and "openat" not in names(made)
    profile.write_text(export.oci_text(made))
    for native in (True, False):
        with Plant(tmp_path / str(native)) as plant:
            with serving.start(f"--sandbox={profile}", native=native, env=plant.env) as server:
                whole_load.drive(server)
                assert plant.ask("make_socket") == plant.ask("connect", server.port) == "ENOSYS"
                assert server.stop() == 0
