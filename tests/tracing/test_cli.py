"""`python -m tracing`: exit statuses, what goes to stdout and stderr, signals, and wrong options."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import types
from argparse import Namespace
from pathlib import Path

import pytest

from tracing import __main__
from tracing.errors import TraceError
from tracing.tracefile import TraceFile

PATIENCE_S = 30
PIPE = subprocess.PIPE
SAYS_SIGNALS = """
    import signal, sys
    for number in (1, 2, 3, 15):
        signal.signal(number, lambda n, frame: sys.exit(40 + n))
    print("ready", flush=True)
    signal.pause()
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(code)]


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tracing", *arguments]


def tracing(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_line(*arguments), capture_output=True, text=True, timeout=PATIENCE_S, **options)


def run(out: Path, command: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    return tracing("run", "--out", str(out), *options, "--", *command)


def trace_in(out: Path) -> TraceFile:
    path, = out.glob("*.trace")
    trace = TraceFile.open(path)
    assert list(trace.lines())
    return trace


def error_of(capsys, *arguments: str) -> str:
    """The one line on stderr of a command that could not run."""
    assert __main__.main(list(arguments)) == 3
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("tracing: error: ") and said.err.count("\n") == 1
    return said.err


# Without a policy

@pytest.mark.parametrize(("code", "status"), [("pass", 0), ("raise SystemExit(2)", 2),
                                              ("import os; os.kill(os.getpid(), 15)", 143)])
def test_exit_status_is_passed_on_and_the_trace_is_named(tmp_path, code, status):
    done = run(tmp_path, python(f"print('hello', flush=True)\n{code}"))
    assert (done.returncode, done.stdout) == (status, "hello\n")
    assert done.stderr == f"tracing: trace: {trace_in(tmp_path).path}\n"
    assert trace_in(tmp_path).footer.recorded


def test_traces_go_to_a_folder_of_that_name_here(tmp_path):
    done = tracing("run", "--", "true", cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"tracing: trace: traces/true-\d+\.trace\n", done.stderr)
    assert trace_in(tmp_path / "traces").header.profile == "sovereign"


def test_standard_streams_are_the_callers(tmp_path):
    code = "import sys; sys.stdout.write(sys.stdin.read()); sys.stderr.write('complaint')"
    done = subprocess.run(command_line("run", "--out", str(tmp_path), "--", *python(code)), input=b"text",
                          capture_output=True, timeout=PATIENCE_S)
    assert done.stdout == b"text" and done.stderr.startswith(b"complaint")


def test_arguments_of_the_command_are_its_own(tmp_path):
    done = run(tmp_path, [*python("import sys; print(sys.argv[1:])"), "--policy", "x", "--", "-h"], "--profile", "full")
    assert done.stdout == "['--policy', 'x', '--', '-h']\n"
    assert trace_in(tmp_path).header.profile == "full"


@pytest.mark.parametrize("number", __main__.FORWARDED)
def test_signals_are_forwarded(tmp_path, number):
    command = command_line("run", "--out", str(tmp_path), "--", *python(SAYS_SIGNALS))
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE) as recorder:
        assert recorder.stdout.readline() == b"ready\n"
        recorder.send_signal(number)
        assert recorder.wait(PATIENCE_S) == 40 + number
    assert trace_in(tmp_path).footer.recorded


def test_signal_before_there_is_a_tracee_waits_for_it():
    got = []
    with __main__.relayed_signals() as relay:
        signal.raise_signal(signal.SIGTERM)
        relay(got.append)
        signal.raise_signal(signal.SIGHUP)
    assert got == [signal.SIGTERM, signal.SIGHUP]


def test_killed_strace_is_said(tmp_path):
    code = """
        import os, re, signal
        os.kill(int(re.search(r"TracerPid:\\s*(\\d+)", open("/proc/self/status").read())[1]), signal.SIGKILL)
        signal.pause()
    """
    done = run(tmp_path, python(code))
    assert done.returncode == 137
    assert "tracing: warning: strace was killed" in done.stderr
    assert not trace_in(tmp_path).footer.recorded


# Attaching

def test_attach_for_some_time(tmp_path):
    with subprocess.Popen(python(SAYS_SIGNALS), stdout=PIPE) as process:
        process.stdout.readline()
        done = tracing("attach", str(process.pid), "--seconds", "0.1", "--out", str(tmp_path), "--profile", "full")
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"tracing: attached to process \d+; .*\ntracing: trace: .*\n", done.stderr)
        process.terminate()
        assert process.wait(PATIENCE_S) == 40 + signal.SIGTERM
    path, = tmp_path.glob("*.trace")
    assert TraceFile.open(path).header.tracee == process.pid


def test_interrupt_ends_attaching_and_not_the_process(tmp_path):
    code = """
        import os
        while line := os.read(0, 99):
            os.write(1, line)
    """
    with subprocess.Popen(python(code), stdin=PIPE, stdout=PIPE) as process:
        recorder = subprocess.Popen(command_line("attach", str(process.pid), "--out", str(tmp_path)), stderr=PIPE)
        with recorder:
            assert recorder.stderr.readline().startswith(b"tracing: attached to process")
            recorder.send_signal(signal.SIGINT)
            assert recorder.wait(PATIENCE_S) == 0
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"hello\n"
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
    path, = tmp_path.glob("*.trace")
    trace = TraceFile.open(path)
    list(trace.lines())
    assert trace.footer.recorded


# With a policy

def test_harmless_program_passes(tmp_path):
    done = run(tmp_path, ["true"], "--policy", "sovereign")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("PASS")
    again = tracing("judge", str(trace_in(tmp_path).path), "--policy", "sovereign")
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_status_of_the_program_is_not_that_of_the_verdict(tmp_path):
    assert run(tmp_path, ["sh", "-c", "exit 7"], "--policy", "sovereign").returncode == 0


def test_attempt_to_leave_fails(tmp_path):
    code = """
        import socket
        with socket.socket() as s:
            s.connect_ex(("192.0.2.1", 9))
    """
    done = run(tmp_path, ["unshare", "--net", *(["--map-root-user"] if os.geteuid() else []), *python(code)],
               "--policy", "sovereign")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("FAIL")


def test_lost_evidence_is_inconclusive(tmp_path):
    run(tmp_path, ["true"])
    path = trace_in(tmp_path).path
    path.write_bytes(path.read_bytes()[:-100])
    done = tracing("judge", str(path), "--policy", "sovereign")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("INCONCLUSIVE")


@pytest.mark.parametrize(("given", "asked", "expected"), [
    (None, (), "sovereign"), (None, ("sovereign",), "sovereign"), (None, ("sovereign", "full"), "full"),
    ("sovereign", ("full",), "sovereign"), ("full", (), "full")])
def test_profile_is_what_the_policies_ask_for_unless_given(monkeypatch, given, asked, expected):
    from tracing import policy

    monkeypatch.setattr(policy, "load_all", lambda names: [Namespace(profile=name) for name in names])
    assert __main__.profile_of(Namespace(profile=given, policy=list(asked))) == expected


# What cannot run

@pytest.mark.parametrize(("arguments", "expected"), [
    ((), "COMMAND"),
    (("frob",), "invalid choice: 'frob'"),
    (("run",), "expected the command after --"),
    (("run", "--"), "expected the command after --"),
    (("run", "true"), "unrecognized arguments: true"),
    (("run", "--profile", "half", "--", "true"), "'half'"),
    (("run", "--policy", "no-such-policy", "--", "true"), "no policy 'no-such-policy'"),
    (("run", "--", "no-such-program"), "no such command: no-such-program"),
    (("run", "--", "/dev/null"), "cannot execute /dev/null"),
    (("run", "--out", "/dev/null/traces", "--", "true"), "cannot write the trace"),
    (("attach", "0"), "at least 1"),
    (("attach", "x"), "at least 1"),
    (("attach", str(2 ** 22 + 1)), "no such process"),
    (("attach", "1", "--seconds", "0"), "above 0"),
    (("attach", "1", "--seconds", "nan"), "above 0"),
    (("judge", "no.trace", "--policy", "sovereign"), "no.trace: No such file"),
    (("judge", __file__, "--policy", "sovereign"), "not a trace"),
    (("judge", "no.trace"), "--policy"),
    (("diff", "only-one"), "B"),
])
def test_what_cannot_run_is_one_line_and_three(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(capsys, *arguments)


def test_no_strace_is_one_line_and_three(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "strace is not in PATH" in error_of(capsys, "run", "--", sys.executable)


@pytest.mark.parametrize(("arguments", "module", "expected"), [
    ("judge T --policy A --policy B", "judge", {"trace": Path("T"), "policy": ["A", "B"]}),
    ("validate", "validate", {"models": [], "policy": [], "report": None, "junit": None, "isolated": False}),
    ("validate M --policy A --report R --junit J", "validate", {"models": [Path("M")], "report": Path("R")}),
    ("report T U --html H --json J --junit X", "report", {"traces": [Path("T"), Path("U")], "html": Path("H")}),
    ("summary T", "summary", {"traces": [Path("T")]}),
    ("diff A B", "diff", {"before": Path("A"), "after": Path("B")}),
    ("policy T --oci O --systemd S --phase serving", "export", {"oci": Path("O"), "phases": ["serving"]}),
    ("who-talks mlflow", "recipes", {"names": ["mlflow"]}),
])
def test_subcommands_go_to_their_modules(monkeypatch, arguments, module, expected):
    got = []

    def main(options: Namespace) -> int:
        got.append(vars(options))
        return 2
    monkeypatch.setitem(sys.modules, f"tracing.{module}", types.SimpleNamespace(main=main))
    assert __main__.main(arguments.split()) == 2
    assert got[0].items() >= expected.items()


def test_errors_of_other_modules_are_one_line_and_three(monkeypatch, capsys):
    def main(options: Namespace) -> int:
        raise TraceError("that does not work")
    monkeypatch.setitem(sys.modules, "tracing.summary", types.SimpleNamespace(main=main))
    assert error_of(capsys, "summary", "T") == "tracing: error: that does not work\n"


def test_help_needs_neither_strace_nor_psutil():
    done = subprocess.run([sys.executable, "-S", "-m", "tracing", "--help"], capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in __main__.SUBCOMMANDS)
