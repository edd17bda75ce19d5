"""Before recording: can strace trace here, with which options, and what exactly is started.

The rule to keep: what would fail under strace fails here, in one line that says what to do; and a program is started
as the user wrote it. Only a `python3` that is a script (a shim of pyenv, asdf …) is looked through: its shell would
fill the trace.

Source: strace(1).
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tracing.errors import TraceError

STRING_LIMIT = 128  # -s: also limits arrays, so fewer could hide the second message of a sendmmsg
OPTIONS = ("-f", "-a1", "-s", str(STRING_LIMIT), "-yy", "--absolute-timestamps=format:unix,precision:ns",
           "--syscall-times=ns")
QUIET = "--quiet=attach"  # not when attaching: strace's own messages say when it is done
TRIAL_S = 20  # to trace `true`: a few milliseconds, unless strace hangs
UNKNOWN_CALL = re.compile(r"invalid system call '(\w+)'")
NO_SECCOMP = "seccomp filter is requested but unavailable"


class Profile(NamedTuple):
    """What is traced."""

    seccomp_bpf: bool  # leaves other calls at native speed
    traced: tuple[str, ...]


PROFILES = {
    "sovereign": Profile(seccomp_bpf=True, traced=tuple("""
        %net %process splice tee vmsplice sendfile process_vm_readv process_vm_writev ptrace io_uring_setup
        io_uring_enter io_uring_register pidfd_getfd openat open openat2 creat access faccessat faccessat2 dup dup2
        dup3 fcntl close close_range prctl seccomp bpf init_module finit_module unshare setns io_submit
        mount fsopen fsconfig kexec_load kexec_file_load swapon acct open_by_handle_at request_key ioctl
        rt_sigreturn""".split())),
    "full": Profile(seccomp_bpf=False, traced=("all",)),
}


@dataclass(frozen=True)
class Strace:
    """The strace of this machine, and how it is called."""

    path: str
    version: str
    traced: tuple[str, ...]  # "?name": this strace does not know it on this machine
    seccomp_bpf: bool
    options: tuple[str, ...]


def prepare(profile: str, seccomp_bpf: bool = True, attached: bool = False) -> Strace:
    """Find strace, trace `true` with the options of `profile`, and leave out what this machine cannot do."""
    if profile not in PROFILES:
        raise TraceError(f"no profile {profile!r}; expected one of: {', '.join(PROFILES)}")
    path = shutil.which("strace")
    if path is None:
        raise TraceError("strace is not in PATH; install it (apt install strace, dnf install strace)")
    wanted, traced = PROFILES[profile]
    filtered = wanted and seccomp_bpf and not attached  # strace does not combine --seccomp-bpf with -p
    while True:
        strace = Strace(path, version(path), traced, filtered, options(traced, filtered, attached))
        complaint = trial(strace)
        if unknown := UNKNOWN_CALL.search(complaint):
            traced = tuple(f"?{name}" if name == unknown[1] else name for name in traced)
        elif filtered and NO_SECCOMP in complaint:
            filtered = False
        else:
            return strace


def options(traced: Sequence[str], seccomp_bpf: bool, attached: bool) -> tuple[str, ...]:
    return (*OPTIONS, *([] if attached else [QUIET]), *(["--seccomp-bpf"] if seccomp_bpf else []),
            "-e", f"trace={','.join(traced)}")


def version(path: str) -> str:
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"version (\S+)", said)
    if found is None:
        raise TraceError(f"{path} does not say its version; expected strace 5.6 or later")
    return found[1]


def trial(strace: Strace) -> str:
    """What strace says when it traces `true`; TraceError where it cannot and no other options would help."""
    status, complaint = _tried([strace.path, *strace.options, "-o", os.devnull, "true"])
    if status and not UNKNOWN_CALL.search(complaint):
        said = (complaint.strip().splitlines() or [f"status {status}"])[-1].removeprefix(f"{strace.path}: ")
        raise TraceError(f"strace {strace.version} cannot trace here ({said}): allow ptrace (in a container:"
                         " --cap-add=SYS_PTRACE; kernel.yama.ptrace_scope below 3)")
    return complaint


def _tried(command: list[str]) -> tuple[int, str]:
    """Exit status and stderr. Not by a pipe: when strace is killed, its stopped child would hold that for ever."""
    with tempfile.TemporaryFile() as complaint:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=complaint, stderr=complaint,
                                   process_group=0)
        try:
            status = process.wait(TRIAL_S)
        except subprocess.TimeoutExpired:
            status = -signal.SIGALRM
        if status < 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        complaint.seek(0)
        return status, complaint.read().decode(errors="replace")


def resolve(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | None = None) -> tuple[str, ...]:
    """The command as it is started: found, executable, and not a shim in front of a Python."""
    if not command or not command[0]:
        raise TraceError("no command; expected one after --")
    program = _find(command[0], os.environ if env is None else env, cwd)
    if re.fullmatch(r"python[\d.]*", Path(program).name) and _is_script(program):
        return _behind(program, env, cwd), *command[1:]
    return tuple(command)


def _find(name: str, env: Mapping[str, str], cwd: str | None) -> str:
    search = env.get("PATH", os.defpath)
    found = os.path.join(cwd or "", name) if "/" in name else shutil.which(name, path=search)
    if found and os.path.isfile(found) and os.access(found, os.X_OK):
        return _runnable(name, found)
    if found and os.path.exists(found):
        raise TraceError(f"cannot execute {name}: {'it is a folder' if os.path.isdir(found) else 'Permission denied'}")
    raise TraceError(f"no such command: {name}")


def _runnable(name: str, program: str) -> str:
    """The program, unless the kernel would refuse it; then strace would say so in its own words, and start."""
    try:
        with open(program, "rb") as file:
            start = file.read(256)
    except OSError:
        return program  # it may be executable and not readable
    interpreter = (start[2:].partition(b"\n")[0].split() or [b""])[0] if start.startswith(b"#!") else b"/"
    if not os.path.exists(interpreter):
        raise TraceError(f"cannot execute {name}: its interpreter {os.fsdecode(interpreter)!r} does not exist")
    if not start.startswith((b"\x7fELF", b"#!")) and not _has_other_formats():
        raise TraceError(f"cannot execute {name}: it is neither a program nor a script that begins with '#!'")
    return program


def _has_other_formats() -> bool:
    try:
        return bool(set(os.listdir("/proc/sys/fs/binfmt_misc")) - {"register", "status"})
    except OSError:
        return False


def _is_script(program: str) -> bool:
    try:
        with open(program, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _behind(shim: str, env: Mapping[str, str] | None, cwd: str | None) -> str:
    """The interpreter that a shim starts. As it names itself: its real path may lie outside its environment."""
    try:
        said = subprocess.run([shim, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True,
                              env=env, cwd=cwd, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise TraceError(f"cannot execute {shim}: {error.strerror}") from None
    interpreter = said.stdout.strip()
    if said.returncode or not interpreter or _is_script(interpreter):
        raise TraceError(f"{shim} is a script that does not lead to a Python; give the interpreter's own path")
    return interpreter


def interpreter() -> str:
    """The Python that runs this program, as it is: also where it is a link in a virtual environment."""
    if not sys.executable or _is_script(sys.executable):
        raise TraceError(f"this Python ({sys.executable!r}) is not an executable file; start it by its own path")
    return sys.executable
