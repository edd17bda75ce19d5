"""`python -m tracing policy TRACE…`: what the recorded runs did, as a filter that allows that and refuses the rest.

The rule to keep: a recording shows less than a program may do. So the runs are united, what a program needs without
ever being seen to need it is added (BASE), each call's coverage is printed, and what is refused is ENOSYS, which
the C library takes for an older kernel and works around.

A filter sees numbers, not what they point to: an address to connect to is not visible to it.

https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp, systemd.exec(5)
"""

import json
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tracing.errors import TraceError
from tracing.parse import Call
from tracing.phases import PHASES
from tracing.replay import Replay, Step
from tracing.syntax import arguments

FROM_SERVING = tuple(PHASES[PHASES.index("serving"):])
ENOSYS = 38
ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64", "arm64": "SCMP_ARCH_AARCH64"}

# Needed without being seen: to end, to take a signal, to grow, to say what is wrong; to read clocks where the vDSO
# cannot; and access, with which this project's server marks its phases.
BASE = frozenset("""
    access brk clock_getres clock_gettime clock_nanosleep close exit exit_group faccessat futex getpid getrandom gettid
    gettimeofday madvise mmap mprotect mremap munmap nanosleep restart_syscall rseq rt_sigaction rt_sigprocmask
    rt_sigreturn sched_yield set_robust_list sigaltstack tgkill time write""".split())

# Seen while serving, these deserve a look before they are allowed for good.
QUESTIONABLE = frozenset("""
    bpf connect execve execveat fork io_uring_enter io_uring_register io_uring_setup open_by_handle_at pidfd_getfd
    process_vm_readv process_vm_writev ptrace sendmmsg sendmsg setns socket splice unshare vfork""".split())

STARTS = frozenset({"execve"})  # what systemd itself does under the filter of a unit


class Limit(NamedTuple):
    """A comparison that narrows a call to what was seen of it: allowed only where it holds."""
    what: str
    seen: Callable[[list[str]], bool]  # whether a call's arguments, as strace shows them, are within it
    args: dict[str, Any]  # OCI's form


def _lacks(index: int, words: str) -> Callable[[list[str]], bool]:
    pattern = re.compile(rf"\b({words})\b")
    return lambda args: len(args) > index and not pattern.search(args[index])


def _masked(index: int, mask: int, value: int = 0) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


# O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND and what only O_TMPFILE has: the same bits on x86-64 and aarch64.
WRITING, WRITING_BITS = "O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE", 0o20003103
THREAD = 0x00010000  # CLONE_THREAD
LIMITS = {
    "clone": Limit("threads only", lambda args: any("CLONE_THREAD" in arg for arg in args),
                   _masked(0, THREAD, THREAD)),
    "mmap": Limit("not executable", _lacks(2, "PROT_EXEC"), _masked(2, 4)),
    "mprotect": Limit("not executable", _lacks(2, "PROT_EXEC"), _masked(2, 4)),
    "open": Limit("for reading", _lacks(1, WRITING), _masked(1, WRITING_BITS)),
    "openat": Limit("for reading", _lacks(2, WRITING), _masked(2, WRITING_BITS)),
    "sendto": Limit("without an address", lambda args: len(args) > 4 and args[4] == "NULL",
                    {"index": 4, "value": 0, "op": "SCMP_CMP_EQ"}),
}


@dataclass
class Seen:
    """What some runs did, by call."""
    runs: Counter[str] = field(default_factory=Counter)  # in how many runs
    calls: Counter[str] = field(default_factory=Counter)
    beyond: set[str] = field(default_factory=set)  # calls that went beyond their limit
    families: set[str] = field(default_factory=set)  # of sockets

    def add(self, call: Call) -> None:
        self.calls[call.name] += 1
        if call.name in LIMITS and call.name not in self.beyond:
            if not LIMITS[call.name].seen(arguments(call.args)):
                self.beyond.add(call.name)
        if call.name in ("socket", "socketpair"):
            self.families.add(call.args.partition(",")[0])

    def unite(self, run: "Seen") -> None:
        self.runs.update(set(run.calls))
        self.calls += run.calls
        self.beyond |= run.beyond
        self.families |= run.families


@dataclass
class Recordings:
    """All runs together."""
    phases: tuple[str, ...]
    n: int = 0
    chosen: Seen = field(default_factory=Seen)  # in `phases`
    whole: Seen = field(default_factory=Seen)  # from execve on
    architectures: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def main(options: Any) -> int:
    """`options`: traces, oci, systemd (paths or None), phases (names; empty: from serving on) → exit status."""
    recordings = read(options.traces, tuple(options.phases or FROM_SERVING))
    print(table(recordings))
    for path, text in ((options.oci, oci_text), (options.systemd, systemd_text)):
        if path:
            _write(Path(path), text(recordings))
    return 0


def read(traces: Sequence[str | Path], phases: tuple[str, ...] = FROM_SERVING) -> Recordings:
    """Unite these traces. Raises TraceError for one that cannot say what a run did."""
    recordings = Recordings(phases)
    for trace in traces:
        _read_one(trace, recordings)
    if not recordings.chosen.calls:
        raise TraceError(f"no calls in {', '.join(phases)}: expected traces of runs that served")
    return recordings


def _read_one(path: str | Path, recordings: Recordings) -> None:
    chosen, whole = Seen(), Seen()
    replay = Replay(path)
    header = replay.header
    if header is not None and header.traced != ("all",):
        raise TraceError(f"{path}: recorded with --profile {header.profile}, which leaves calls out; a policy needs"
                         " --profile full")
    for event in replay:
        if isinstance(event, Step):
            whole.add(event.call)
            if event.phase in recordings.phases:
                chosen.add(event.call)
    recordings.n += 1
    recordings.chosen.unite(chosen)
    recordings.whole.unite(whole)
    recordings.architectures.add(_architecture(header.system if header else platform.machine()))
    if header is None:
        recordings.notes.append(f"{path}: not recorded by this program: calls may have been left out")
    recordings.notes += [f"{path}: {reason}" for reason in replay.reasons()]


def _architecture(system: str) -> str:
    for word in reversed(re.findall(r"\w+", system)):
        if word in ARCHITECTURES:
            return ARCHITECTURES[word]
    raise TraceError(f"a policy can be made for {', '.join(ARCHITECTURES)}; the trace is from {system!r}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None


# --- text ---------------------------------------------------------------------------------------

def table(recordings: Recordings) -> str:
    """Every allowed call: in how many of the runs it was seen, how often, and what narrows it."""
    seen, n = recordings.chosen, recordings.n
    lines = [f"{len(allowed(seen))} calls are allowed: those of {', '.join(recordings.phases)} in {n} "
             f"{'run' if n == 1 else 'runs'}, and a base set", f"{'call':<24}{'runs':>7}{'calls':>10}  only"]
    for name in sorted(allowed(seen), key=lambda name: (-seen.runs[name], -seen.calls[name], name)):
        runs = f"{seen.runs[name]}/{n}" if name in seen.runs else "base"
        lines.append(f"{name:<24}{runs:>7}{seen.calls[name] or '':>10}  {_limit(seen, name)}".rstrip())
    return "\n".join(lines + [f"note: {note}" for note in notes(recordings)])


def _limit(seen: Seen, name: str) -> str:
    return LIMITS[name].what if name in narrowed(seen) else ""


def notes(recordings: Recordings) -> list[str]:
    seen = recordings.chosen
    rare = [name for name, runs in sorted(seen.runs.items()) if runs < recordings.n]
    found = list(recordings.notes)
    if rare:
        found.append(f"not seen in every run: {', '.join(rare)}; record more runs until none is new")
    if recordings.n == 1:
        found.append("one run shows what it happened to do; unite several, with shutdowns and faults")
    if questionable := sorted(QUESTIONABLE & seen.calls.keys()):
        found.append(f"seen, and so allowed, but look before you keep it: {', '.join(questionable)}")
    if unknown := sorted(name for name in seen.calls if not _is_name(name)):
        found.append(f"strace has no name for {', '.join(unknown)}: left out")
    return found


def _is_name(call: str) -> bool:
    return not call.startswith("syscall_0x")


# --- profiles -----------------------------------------------------------------------------------

def allowed(seen: Seen) -> set[str]:
    return {name for name in seen.calls if _is_name(name)} | BASE


def narrowed(seen: Seen) -> set[str]:
    """Calls that were seen, and never beyond their limit."""
    return {name for name in LIMITS if name in seen.calls and name not in seen.beyond}


def oci(recordings: Recordings) -> dict[str, Any]:
    """The seccomp section of an OCI runtime configuration."""
    seen = recordings.chosen
    narrow = narrowed(seen)
    entries = [_entry(sorted(allowed(seen) - narrow))]
    entries += [_entry([name]) | {"args": [LIMITS[name].args]} for name in sorted(narrow)]
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": ENOSYS,
            "architectures": sorted(recordings.architectures), "syscalls": entries}


def _entry(names: list[str]) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW"}


def oci_text(recordings: Recordings) -> str:
    return json.dumps(oci(recordings), indent=2) + "\n"


def systemd_text(recordings: Recordings) -> str:
    """A drop-in for a unit: its filter is there before the program starts, so it allows the calls of all phases."""
    seen = recordings.whole
    return "\n".join([
        f"# Made from {recordings.n} recorded {'run' if recordings.n == 1 else 'runs'}; for"
        " /etc/systemd/system/NAME.service.d/. Clients beyond this machine need an IPAddressAllow of their own.",
        "[Service]", "NoNewPrivileges=yes", "SystemCallArchitectures=native", "SystemCallErrorNumber=ENOSYS",
        *_filter_lines(sorted(allowed(seen) | STARTS)),
        f"RestrictAddressFamilies={' '.join(sorted(seen.families)) or 'none'}",
        "IPAddressDeny=any", "IPAddressAllow=localhost"]) + "\n"


def _filter_lines(names: Iterable[str]) -> list[str]:
    """SystemCallFilter= as often as lines of readable length need: the lists are united."""
    lines: list[str] = []
    for name in names:
        if not lines or len(lines[-1]) + len(name) > 110:
            lines.append("SystemCallFilter=")
        lines[-1] += f"{'' if lines[-1].endswith('=') else ' '}{name}"
    return lines
