"""The sandbox: profiles, the filters made of them, and servers that live with one."""

import json
import platform
import re
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import sandbox
from tests import serving
from tests.classic_bpf import run
from tests.planting import Plant
from tests.server import whole_load
from tests.serving import predict_request, request

pytestmark = pytest.mark.core

ENOSYS = sandbox.ERRNO | 38
ALLOW = {"action": "SCMP_ACT_ALLOW"}
X86_64, AARCH64 = sandbox.MACHINES["x86_64"], sandbox.MACHINES["aarch64"]
enforced = pytest.mark.skipif(bool(sandbox.unsupported()), reason=sandbox.unsupported())
kinds = pytest.mark.parametrize("native", [True, False], ids=["native", "python"])


def profile(*entries: dict, **fields: Any) -> dict:
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": list(entries), **fields}


# --- oracles ------------------------------------------------------------------------------------

COMPARE = {"NE": lambda a, v, w: a != v, "LT": lambda a, v, w: a < v, "LE": lambda a, v, w: a <= v,
           "EQ": lambda a, v, w: a == v, "GE": lambda a, v, w: a >= v, "GT": lambda a, v, w: a > v,
           "MASKED_EQ": lambda a, v, w: a & v == w}
RETURNED = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ERRNO": 0x00050000,
            "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_KILL": 0, "SCMP_ACT_TRAP": 0x00030000}


def expected(content: dict, name: str, args: list[int]) -> int:
    """What a profile says of a call, read from its JSON."""
    def returned(action: str, errno: int) -> int:
        return RETURNED[action] | (errno if action == "SCMP_ACT_ERRNO" else 0)
    for entry in content["syscalls"]:
        if name in entry["names"]:
            given_args = entry.get("args", [])
            held = [COMPARE[arg["op"][len("SCMP_CMP_"):]](args[arg["index"]], arg["value"], arg.get("valueTwo", 0))
                    for arg in given_args]
            once = len({arg["index"] for arg in given_args}) == len(given_args)
            if all(held) if once else any(held):
                return returned(entry["action"], entry.get("errnoRet", 1))
    return returned(content["defaultAction"], content.get("defaultErrnoRet", 1))


NAMES = ["read", "write", "open", "close", "sendto", "clone", "clone3", "futex", "openat", "mseal", "socket", "ppoll"]
VALUES = [0, 1, 2, 4, 0x80, 0xFFFFFFFF, 2 ** 32, 2 ** 32 + 1, 2 ** 63, 2 ** 64 - 1, 0x100000001]
words = st.sampled_from(VALUES) | st.integers(0, 2 ** 64 - 1)
actions = st.sampled_from(sorted(RETURNED))
arguments = st.fixed_dictionaries({"index": st.integers(0, 5), "value": words,
                                   "op": st.sampled_from([f"SCMP_CMP_{op}" for op in COMPARE])},
                                  optional={"valueTwo": words})
entries = st.fixed_dictionaries({"names": st.lists(st.sampled_from(NAMES), min_size=1), "action": actions},
                                optional={"errnoRet": st.integers(0, 4095), "args": st.lists(arguments, max_size=4)})
profiles = st.fixed_dictionaries({"defaultAction": actions, "syscalls": st.lists(entries, max_size=12)},
                                 optional={"defaultErrnoRet": st.integers(0, 4095)})


# --- filters ------------------------------------------------------------------------------------

@given(profiles, st.sampled_from([X86_64, AARCH64]),
       st.lists(st.tuples(st.sampled_from(NAMES), st.lists(words, min_size=6, max_size=6)), min_size=1))
def test_filter_does_what_the_profile_says(content, machine, calls):
    machine_name = "x86_64" if machine is X86_64 else "aarch64"
    code = sandbox.program(sandbox.read(content, machine_name))
    for name, args in calls:
        if name in machine.numbers:
            assert run(code, machine.audit_arch, machine.numbers[name], args) == expected(content, name, args)


@given(profiles, words)
def test_calls_of_other_tables_are_refused_whatever_the_profile(content, word):
    code = sandbox.program(sandbox.read(content, "x86_64"))
    number = word & 0x3FFFFFFF
    assert run(code, 0x40000003, number, [word] * 6) == ENOSYS  # i386
    assert run(code, X86_64.audit_arch, number | 0x40000000, [word] * 6) == ENOSYS  # x32
    assert run(code, X86_64.audit_arch, 0xFFFFFFFF, [word] * 6) == ENOSYS


def test_jumps_over_more_than_255_instructions():
    entries = [{"names": [name], **ALLOW, "args": [{"index": i, "value": number << 32 | number, "op": "SCMP_CMP_LE"}
                                                   for i in range(2)]}
               for number, name in enumerate(X86_64.numbers)]
    code = sandbox.program(sandbox.read(profile(*entries[:200]), "x86_64"))
    assert len(code) > 1000 and any(op == sandbox.JUMP for op, *_ in code)
    for number, name in enumerate(list(X86_64.numbers)[:210]):
        limit = number << 32 | number
        for value in (limit - 1, limit, limit + 1, limit + 2 ** 32):
            if value >= 0:
                wanted = sandbox.ALLOW if number < 200 and value <= limit else ENOSYS
                assert run(code, X86_64.audit_arch, X86_64.numbers[name], [value, limit] + [0] * 4) == wanted


def test_filter_longer_than_the_kernel_takes_is_an_error():
    entries = [{"names": [name], **ALLOW, "args": [{"index": i, "value": number, "op": "SCMP_CMP_GT"}
                                                   for i in range(6)]}
               for number, name in enumerate(X86_64.numbers)]
    with pytest.raises(sandbox.ProfileError, match="at most 4096 instructions"):
        sandbox.program(sandbox.read(profile(*entries), "x86_64"))


# --- profiles -----------------------------------------------------------------------------------

@pytest.mark.parametrize("machine", sandbox.MACHINES)
def test_default_profile_refuses_every_way_out(machine):
    shipped = sandbox.load(sandbox.DEFAULT_PROFILE, machine)
    assert not shipped.ignored
    code, numbers = sandbox.program(shipped), shipped.machine.numbers

    def answer(name: str, *args: int) -> int:
        return run(code, shipped.machine.audit_arch, numbers[name], [*args, *[0] * (6 - len(args))])
    for name in """bind bpf connect clone3 execve execveat fork init_module io_uring_enter io_uring_register
                   io_uring_setup kill listen memfd_create open openat openat2 perf_event_open pidfd_getfd pipe2
                   pkey_mprotect process_vm_readv process_vm_writev ptrace seccomp sendfile sendmmsg sendmsg setns
                   socket socketpair splice tee unlinkat unshare userfaultfd vfork vmsplice""".split():
        if name in numbers:
            assert answer(name) == ENOSYS, name
    assert answer("sendto", 5, 0x1000, 10, 0, 0, 0) == sandbox.ALLOW
    assert answer("sendto", 5, 0x1000, 10, 0, 0x7F0000000000, 16) == ENOSYS
    assert answer("mmap", 0, 4096, 3) == sandbox.ALLOW and answer("mmap", 0, 4096, 5) == ENOSYS
    assert answer("mprotect", 0, 4096, 7) == ENOSYS
    assert answer("clone", 0x3D0F00) == sandbox.ALLOW  # pthread_create of glibc
    assert answer("clone", 0x01200011) == answer("clone", 0x4111) == ENOSYS  # fork, vfork
    assert answer("read") == answer("futex") == answer("exit_group") == sandbox.ALLOW


def test_profile_in_dockers_own_form():
    """archMap, capabilities and kernels are Docker's; it makes an OCI profile of them."""
    content = profile(
        {"names": ["read", "stat64", "socketcall"], **ALLOW},
        {"names": ["ptrace"], **ALLOW, "includes": {"minKernel": "4.8"}},
        {"names": ["kcmp"], **ALLOW, "includes": {"minKernel": "99.0"}},
        {"names": ["bpf"], **ALLOW, "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["arch_prctl"], **ALLOW, "includes": {"arches": ["amd64", "x32"]}},
        {"names": ["setns"], **ALLOW, "includes": {"arches": ["s390"]}},
        {"names": ["clone"], **ALLOW, "args": [{"index": 0, "value": 0x7E020000, "op": "SCMP_CMP_MASKED_EQ"}],
         "comment": "x", "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390", "s390x"]}},
        {"names": ["unshare"], **ALLOW, "excludes": {"arches": ["amd64"]}},
        archMap=[{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}])
    read = sandbox.read(content, "x86_64")
    allowed = {name for name, number in X86_64.numbers.items() if read.rules.get(number)}
    assert allowed == {"read", "ptrace", "arch_prctl", "clone"}
    assert read.ignored == ("stat64", "socketcall")


@pytest.mark.parametrize(("content", "says"), [
    ([], "expected an object"), ({}, "'defaultAction' of the profile: expected one of SCMP_ACT_ALLOW"),
    (profile(syscalls={}), "'syscalls' of the profile: expected a list"),
    (profile(7), "syscalls[0]: expected an object"),
    (profile(defaultErrnoRet=5000), "from 0 to 4095"), (profile(extra=1), "unknown field 'extra'"),
    (profile(architectures=["SCMP_ARCH_ARM"]), "must hold SCMP_ARCH_"),
    (profile(flags=["SECCOMP_FILTER_FLAG_X"]), "expected one of SECCOMP_FILTER_FLAG_TSYNC"),
    (profile({"action": "SCMP_ACT_ALLOW"}), "syscalls[0]: expected 'names'"),
    (profile({"names": "read", **ALLOW}), "expected a list"), (profile({"names": [1], **ALLOW}), "a list of strings"),
    (profile({"names": ["read"], "action": "ALLOW"}), "'action' of syscalls[0]: expected one of"),
    (profile({"names": ["read"], "action": "SCMP_ACT_NOTIFY"}), "expected one of"),
    (profile({"names": ["read"], **ALLOW, "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}), "from 0 to 5"),
    (profile({"names": ["read"], **ALLOW, "args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]}), "from 0 to"),
    (profile({"names": ["read"], **ALLOW, "args": [{"index": 0, "value": 0, "op": "=="}]}), "one of SCMP_CMP_NE"),
    (profile({"names": ["read"], **ALLOW, "args": [{"index": 0, "op": "SCMP_CMP_EQ"}]}), "expected 'index', 'value'"),
    (profile({"names": ["read"], **ALLOW, "arg": []}), "unknown field 'arg'"),
])
def test_bad_profile_says_what_was_expected(content, says, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(content))
    with pytest.raises(sandbox.ProfileError) as error:
        sandbox.load(path, "x86_64")
    assert str(error.value).startswith(f"{path}: ") and says in str(error.value) and "\n" not in str(error.value)


FIELDS = sorted(sandbox.PROFILE_FIELDS | sandbox.ENTRY_FIELDS | sandbox.ARGUMENT_FIELDS | sandbox.FILTER_FIELDS)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["read", *sandbox.ACTIONS]),
                    lambda each: st.lists(each) | st.dictionaries(st.sampled_from(FIELDS), each)))
def test_any_json_is_a_profile_or_an_error(content):
    try:
        sandbox.program(sandbox.read(content, "x86_64"))
    except sandbox.ProfileError:
        pass


# --- servers ------------------------------------------------------------------------------------

def check_refused(result, status: int, says: str) -> None:
    assert (result.returncode, result.stdout) == (status, "")
    assert re.fullmatch(r"server: error: [^\n]+\n", result.stderr) and says in result.stderr


@pytest.mark.parametrize("text", [None, b"", b"{", b"\xff", b"[" * 100_000, b"{}"])
def test_unreadable_profile_is_one_line_and_status_3(text, tmp_path):
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_bytes(text)
    check_refused(serving.run("--port", "0", f"--sandbox={path}"), 3, str(path))


@pytest.mark.parametrize(("patch", "says"), [
    ("import sys; sys.platform = 'plan9'", "Linux"),
    ("import platform; platform.machine = lambda: 'riscv64'", "riscv64"),
    ("from server import sandbox; sandbox._seccomp = lambda *_: (-1, 38)", "this kernel has no seccomp filters"),
])
def test_where_no_sandbox_is_possible_the_server_does_not_start(patch, says):
    code = f"{patch}; import sys; from server import __main__; __main__.main(sys.argv[1:])"
    check_refused(serving.run("--port", "0", "--no-native", "--sandbox", command=(sys.executable, "-c", code)), 6, says)


@enforced
@kinds
def test_thread_that_cannot_be_filtered_stops_the_start(native):
    """A thread with a filter of its own: the kernel would leave it out."""
    code = ("import sys, threading, time; from server import __main__, sandbox\n"
            "def own_filter():\n"
            "    tsync, sandbox.TSYNC = sandbox.TSYNC, 0\n"
            "    sandbox.enforce([(sandbox.RETURN, 0, 0, sandbox.ALLOW)]); sandbox.TSYNC = tsync; done.set()\n"
            "    time.sleep(3600)\n"
            "done = threading.Event(); threading.Thread(target=own_filter, daemon=True).start(); done.wait()\n"
            "__main__.main(sys.argv[1:])")
    result = serving.run("--port", "0", "--sandbox", *([] if native else ["--no-native"]),
                         command=(sys.executable, "-c", code))
    assert (result.returncode, result.stdout) == (6, "")
    assert re.search(r"^server: error: --sandbox: thread \d+ has a filter of its own", result.stderr, re.M)


def seccomp_modes(pid: int) -> set[str]:
    """The Seccomp and NoNewPrivs lines of all threads."""
    texts = [(path / "status").read_text() for path in Path(f"/proc/{pid}/task").iterdir()]
    return {line for text in texts for line in re.findall(r"(?:Seccomp|NoNewPrivs):\t\d", text)}


@enforced
@kinds
def test_server_in_a_sandbox_answers_as_without(native):
    with serving.start(native=native) as free, serving.start("--sandbox", native=native) as held:
        assert seccomp_modes(held.pid) == {"Seccomp:\t2", "NoNewPrivs:\t1"}
        assert whole_load.drive(held) == whole_load.drive(free)
        assert "trace" not in held.stderr_text()
        with held.connect() as late:
            whole_load.begin(late)
            held.process.send_signal(signal.SIGTERM)
            serving.wait_for(lambda: "stopping" in held.stderr_text())
            assert whole_load.finish(late) == 200
        assert held.wait() == 0


@enforced
@kinds
def test_threads_that_start_later_are_in_the_sandbox_too(native):
    body = json.dumps({"inputs": [whole_load.ROW] * 4000}).encode()  # more than an event loop receives
    data = request("POST", "/v1/predict", body)
    with serving.start("--sandbox", native=native) as server, ExitStack() as stack:
        before = len(list(Path(f"/proc/{server.pid}/task").iterdir()))
        clients = [stack.enter_context(server.connect()) for _ in range(20)]
        for client in clients:
            client.send(data[:-1])
        serving.wait_for(lambda: len(list(Path(f"/proc/{server.pid}/task").iterdir())) > before + 5)
        assert seccomp_modes(server.pid) == {"Seccomp:\t2", "NoNewPrivs:\t1"}
        for client in clients:
            client.send(data[-1:])
            assert client.receive().status == 200


@enforced
@kinds
def test_bug_in_a_sandbox_is_answered_and_logged(native):
    code = ("import sys; from server import __main__, application\n"
            "application.ROUTES['/health']['GET'] = lambda *_: 1 / 0\n"
            "__main__.main(sys.argv[1:])")
    with serving.start("--sandbox", native=native, command=(sys.executable, "-c", code)) as server:
        assert server.ask(request("GET", "/health")).code == "internal_error"
        assert "ZeroDivisionError" in server.stderr_text()
        assert server.ask(predict_request()).status == 200


ATTEMPTS = ["connect", "send", "send_message", "make_socket", "bind", "read_file", "write_file", "execute", "fork",
            "map_code", "signal_process"]


@pytest.mark.skipif(sys.platform != "linux", reason="FIFOs that are open for both")
@kinds
@pytest.mark.parametrize("held", [pytest.param(True, marks=enforced), False], ids=["sandbox", "free"])
def test_stranger_in_the_process_gets_enosys_while_the_server_serves(native, held, tmp_path):
    with ExitStack() as stack:
        plant = stack.enter_context(Plant(tmp_path))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = stack.enter_context(serving.start(*["--sandbox"] * held, native=native, env=plant.env))
        arguments = {name: listener.getsockname()[1] for name in ("connect", "send", "send_message")}
        arguments |= {name: tmp_path / "file" for name in ("read_file", "write_file")}
        (tmp_path / "file").touch()
        with server.connect() as client:
            for attempt in ATTEMPTS if held else ATTEMPTS[:4]:
                assert plant.ask(attempt, arguments.get(attempt, "")) == ("ENOSYS" if held else "done"), attempt
                assert client.ask(predict_request()).status == 200
                assert client.ask(request("GET", "/health")).status == 200
        listener.settimeout(0 if held else serving.WAIT_S)
        if held:
            with pytest.raises(BlockingIOError):
                listener.accept()
        else:
            listener.accept()[0].close()
        assert server.stop() == 0


@enforced
def test_profile_of_ones_own_is_enforced_and_unknown_names_are_counted(tmp_path):
    content = json.loads(sandbox.DEFAULT_PROFILE.read_text())
    content["syscalls"].append({"names": ["socket", "stat64"], "action": "SCMP_ACT_ALLOW"})
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    with Plant(tmp_path) as plant, serving.start(f"--sandbox={path}", env=plant.env) as server:
        assert plant.ask("make_socket") == "done" and plant.ask("connect", 9) == "ENOSYS"
        assert server.ask(predict_request()).status == 200
        assert "1 unknown system calls are ignored: stat64" in server.stderr_text()


def test_numbers_of_this_machine_are_those_of_its_c_library():
    header = Path(f"/usr/include/{platform.machine()}-linux-gnu/asm/unistd_64.h")
    if platform.machine() != "x86_64" or not header.exists():
        pytest.skip("no kernel headers for x86-64 here")
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())}
    assert {name: X86_64.numbers.get(name, number) for name, number in numbers.items()} == numbers
