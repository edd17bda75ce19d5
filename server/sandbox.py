"""`--sandbox`: a seccomp filter that this process sets on itself before it serves, from an OCI profile (JSON).

The filter is a program of classic BPF that the kernel runs at each system call of each thread. It first refuses
calls of other processors' tables (32-bit and x32 calls on x86-64), then finds the call's number by binary search,
then compares arguments.

The rules to keep: what a profile does not say is refused with its default action; a profile that cannot be understood
is an error, never half a filter; a jump leads forward and every path ends with a return.

Of several entries that match a call the first one in the file decides. An entry's arguments must all match; where
one entry names an argument twice, either comparison will do (both as runc has it).

https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp, seccomp(2), bpf(4)
"""

import ctypes
import json
import os
import platform
import re
import struct
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from server.syscall_numbers import AARCH64, X86_64

DEFAULT_PROFILE = Path(__file__).with_name("sandbox.json")
ENOSYS, EPERM, MAX_ERRNO = 38, 1, 4095


class ProfileError(ValueError):
    """A profile that cannot be understood, or not enforced on this processor: what was expected, in one line."""


class SandboxError(Exception):
    """The kernel does not take the filter: why, in one line."""


# --- profiles -----------------------------------------------------------------------------------

class Machine(NamedTuple):
    """A processor, under the names that it has in profiles."""
    numbers: dict[str, int]
    audit_arch: int  # AUDIT_ARCH_…
    oci: str
    docker: str


MACHINES = {
    "x86_64": Machine(X86_64, 0xC000003E, "SCMP_ARCH_X86_64", "amd64"),
    "aarch64": Machine(AARCH64, 0xC00000B7, "SCMP_ARCH_AARCH64", "arm64"),
}
KNOWN_NAMES = set().union(*(machine.numbers for machine in MACHINES.values()))

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
ACTIONS = {  # name: (value, whether an errno is added to it)
    "SCMP_ACT_ALLOW": (ALLOW, False), "SCMP_ACT_LOG": (0x7FFC0000, False), "SCMP_ACT_TRACE": (0x7FF00000, True),
    "SCMP_ACT_ERRNO": (ERRNO, True), "SCMP_ACT_TRAP": (0x00030000, False), "SCMP_ACT_KILL": (0x00000000, False),
    "SCMP_ACT_KILL_THREAD": (0x00000000, False), "SCMP_ACT_KILL_PROCESS": (0x80000000, False),
}
FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 1, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}
OPERATORS = tuple(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))

# Beside the specification's fields: those of Docker's own file, from which it makes an OCI profile.
PROFILE_FIELDS = {"defaultAction", "defaultErrnoRet", "architectures", "archMap", "flags", "listenerPath",
                  "listenerMetadata", "syscalls"}
ENTRY_FIELDS = {"names", "action", "errnoRet", "args", "comment", "includes", "excludes"}
ARGUMENT_FIELDS = {"index", "value", "valueTwo", "op"}
FILTER_FIELDS = {"caps", "arches", "minKernel"}


class Condition(NamedTuple):
    """A comparison of one argument with 64-bit numbers; `value` is the mask of MASKED_EQ."""
    argument: int
    op: str
    value: int
    value_two: int


class Rule(NamedTuple):
    conditions: tuple[Condition, ...]  # all must hold
    action: int  # what the filter returns: SECCOMP_RET_… and its errno


class Profile(NamedTuple):
    """An OCI profile for one processor."""
    machine: Machine
    default: int  # action
    flags: int
    rules: dict[int, tuple[Rule, ...]]  # by number of the system call, in the order of the file
    ignored: tuple[str, ...]  # names that no table here has


def load(path: Path, machine: str = platform.machine()) -> Profile:
    """The profile of a file. Raises ProfileError, with the file's name."""
    try:
        return read(json.loads(path.read_text("utf-8")), machine)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise ProfileError(f"{path}: expected an OCI seccomp profile") from None
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from None
    except ValueError:
        raise ProfileError(f"{path}: expected an OCI seccomp profile, which is a JSON object in UTF-8") from None


def read(content: Any, machine_name: str) -> Profile:
    """Check and translate the content of a profile."""
    if machine_name not in MACHINES:
        raise ProfileError(f"the processor must be one of {', '.join(MACHINES)}; this is {machine_name}")
    machine = MACHINES[machine_name]
    profile = _object(content, PROFILE_FIELDS, "the profile")
    _check_architectures(profile, machine)
    default = _action(profile, "defaultAction", "defaultErrnoRet", "the profile")
    flags = 0
    for flag in _strings(profile, "flags", "the profile"):
        flags |= FLAGS[_one_of(flag, FLAGS, "a flag of the profile")]
    rules: dict[int, tuple[Rule, ...]] = {}
    ignored = []
    for i, entry in enumerate(_list(profile, "syscalls", "the profile")):
        names, found = _rules(entry, f"syscalls[{i}]", machine)
        for name in names:
            if name in machine.numbers:
                number = machine.numbers[name]
                rules[number] = rules.get(number, ()) + found
            elif name not in KNOWN_NAMES:
                ignored.append(name)
    return Profile(machine, default, flags, rules, tuple(dict.fromkeys(ignored)))


def _check_architectures(profile: dict, machine: Machine) -> None:
    named = _strings(profile, "architectures", "the profile")
    named += [each.get("architecture") for each in _list(profile, "archMap", "the profile") if isinstance(each, dict)]
    if named and machine.oci not in named:
        raise ProfileError(f"'architectures' must hold {machine.oci}, which this processor is")


def _rules(entry: Any, where: str, machine: Machine) -> tuple[list[str], tuple[Rule, ...]]:
    """(the names of system calls, what is done with them) of one entry of `syscalls`."""
    entry = _object(entry, ENTRY_FIELDS, where)
    names = _strings(entry, "names", where)
    if not names:
        raise ProfileError(f"{where}: expected 'names', a list of names of system calls")
    action = _action(entry, "action", "errnoRet", where)
    conditions = [_condition(each, f"{where}.args[{i}]") for i, each in enumerate(_list(entry, "args", where))]
    applies = _holds(entry, "includes", where, machine, True) and not _holds(entry, "excludes", where, machine, False)
    if not applies:
        return names, ()
    if len({condition.argument for condition in conditions}) < len(conditions):
        return names, tuple(Rule((condition,), action) for condition in conditions)
    return names, (Rule(tuple(conditions), action),)


def _holds(entry: dict, field: str, where: str, machine: Machine, otherwise: bool) -> bool:
    """Whether what Docker's `includes` or `excludes` asks for is so here, in a process without capabilities."""
    asked = _object(entry.get(field) or {}, FILTER_FIELDS, f"{where}.{field}")
    held = []
    if asked.get("caps"):
        held.append(False)
    if asked.get("arches"):
        held.append(machine.docker in _strings(asked, "arches", f"{where}.{field}"))
    if asked.get("minKernel"):
        held.append(_version(str(asked["minKernel"])) <= _version(platform.release()))
    if not held:
        return otherwise
    return all(held) if otherwise else any(held)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def _condition(argument: Any, where: str) -> Condition:
    argument = _object(argument, ARGUMENT_FIELDS, where)
    if "value" not in argument or "index" not in argument:
        raise ProfileError(f"{where}: expected 'index', 'value' and 'op'")
    return Condition(_number(argument, "index", 5, where), _one_of(argument.get("op"), OPERATORS, f"{where}.op"),
                     _number(argument, "value", 2 ** 64 - 1, where), _number(argument, "valueTwo", 2 ** 64 - 1, where))


def _action(owner: dict, field: str, errno_field: str, where: str) -> int:
    value, takes_errno = ACTIONS[_one_of(owner.get(field), ACTIONS, f"'{field}' of {where}")]
    errno = _number(owner, errno_field, MAX_ERRNO, where, EPERM)
    return value | errno if takes_errno else value


def _object(value: Any, fields: set[str], where: str) -> dict:
    if not isinstance(value, dict):
        raise ProfileError(f"{where}: expected an object")
    for name in sorted(value.keys() - fields):
        raise ProfileError(f"{where}: unknown field {name!r}; expected {', '.join(sorted(fields))}")
    return value


def _list(owner: dict, field: str, where: str) -> list:
    value = owner.get(field)
    if value is not None and not isinstance(value, list):
        raise ProfileError(f"'{field}' of {where}: expected a list")
    return list(value or ())


def _strings(owner: dict, field: str, where: str) -> list[str]:
    value = _list(owner, field, where)
    if not all(isinstance(each, str) for each in value):
        raise ProfileError(f"'{field}' of {where}: expected a list of strings")
    return value


def _one_of(value: Any, expected: Iterable[str], where: str) -> str:
    if not isinstance(value, str) or value not in expected:
        raise ProfileError(f"{where}: expected one of {', '.join(expected)}")
    return value


def _number(owner: dict, field: str, largest: int, where: str, default: int = 0) -> int:
    value = owner.get(field)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise ProfileError(f"'{field}' of {where}: expected a whole number from 0 to {largest}")
    return value


# --- the filter ---------------------------------------------------------------------------------

# struct sock_filter {uint16 code; uint8 jt, jf; uint32 k}: jt and jf say how many instructions to skip.
Instruction = tuple[int, int, int, int]
LOAD, AND, RETURN, JUMP = 0x20, 0x54, 0x06, 0x05  # A = word at k; A &= k; return k; skip k
IF_EQUAL, IF_GREATER, IF_AT_LEAST = 0x15, 0x25, 0x35  # A == k, A > k, A >= k, unsigned
MAX_SKIP, MAX_INSTRUCTIONS = 255, 4096  # of jt and jf; BPF_MAXINSNS

# struct seccomp_data {int32 nr; uint32 arch; uint64 instruction_pointer, args[6]}, both processors little-endian
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16
FOREIGN = ERRNO | ENOSYS  # for calls of another processor's table
X32_BIT = 0x40000000


def program(profile: Profile) -> list[Instruction]:
    """The filter of a profile. Raises ProfileError for one that is too long for the kernel."""
    code: list[Instruction] = [(LOAD, 0, 0, ARCH_AT), (IF_EQUAL, 1, 0, profile.machine.audit_arch), _return(FOREIGN),
                               (LOAD, 0, 0, NUMBER_AT), (IF_AT_LEAST, 0, 1, X32_BIT), _return(FOREIGN)]
    code += _search(_segments(profile), profile.default)
    if len(code) > MAX_INSTRUCTIONS:
        raise ProfileError(f"expected a profile of at most {MAX_INSTRUCTIONS} instructions; this one needs {len(code)}")
    return code


def _segments(profile: Profile) -> list[tuple[int, tuple[Rule, ...]]]:
    """(first number, rules) of each run of numbers that have the same rules, from 0 on."""
    numbers = range(max(profile.rules, default=0) + 2)
    runs = groupby(numbers, lambda number: profile.rules.get(number, ()))
    return [(next(run), rules) for rules, run in runs]


def _search(segments: Sequence[tuple[int, tuple[Rule, ...]]], default: int) -> list[Instruction]:
    """Find the segment of the number in A and do what its rules say."""
    if len(segments) == 1:
        return _body(segments[0][1], default)
    middle = len(segments) // 2
    low, high = _search(segments[:middle], default), _search(segments[middle:], default)
    first = segments[middle][0]
    if len(low) <= MAX_SKIP:
        return [(IF_AT_LEAST, len(low), 0, first), *low, *high]
    return [(IF_AT_LEAST, 0, 1, first), (JUMP, 0, 0, len(low)), *low, *high]


def _body(rules: Sequence[Rule], default: int) -> list[Instruction]:
    code: list[Instruction] = []
    for rule in rules:
        code += _rule(rule)
        if not rule.conditions:
            return code
    return [*code, _return(default)]


def _rule(rule: Rule) -> list[Instruction]:
    """Return the action if all conditions hold, else go on behind."""
    code = [_return(rule.action)]
    for condition in reversed(rule.conditions):
        code = [*_compare(condition, len(code)), *code]
    return code


# For each operator: the jumps of the comparison of the high words, then of the low words, each to TRUE, to FALSE, or
# on to the next instruction. An operator that is another one's opposite is that one with TRUE and FALSE exchanged.
NEXT, TRUE, FALSE = range(3)
Step = tuple[int, int, int]  # code, where to if it holds, where to if not
COMPARISONS: dict[str, tuple[tuple[Step, ...], Step]] = {
    "EQ": (((IF_EQUAL, NEXT, FALSE),), (IF_EQUAL, TRUE, FALSE)),
    "MASKED_EQ": (((IF_EQUAL, NEXT, FALSE),), (IF_EQUAL, TRUE, FALSE)),
    "NE": (((IF_EQUAL, NEXT, TRUE),), (IF_EQUAL, FALSE, TRUE)),
    "GT": (((IF_GREATER, TRUE, NEXT), (IF_EQUAL, NEXT, FALSE)), (IF_GREATER, TRUE, FALSE)),
    "GE": (((IF_GREATER, TRUE, NEXT), (IF_EQUAL, NEXT, FALSE)), (IF_AT_LEAST, TRUE, FALSE)),
    "LT": (((IF_GREATER, FALSE, NEXT), (IF_EQUAL, NEXT, TRUE)), (IF_AT_LEAST, FALSE, TRUE)),
    "LE": (((IF_GREATER, FALSE, NEXT), (IF_EQUAL, NEXT, TRUE)), (IF_GREATER, FALSE, TRUE)),
}


def _compare(condition: Condition, n_behind: int) -> list[Instruction]:
    """Go on behind if the condition holds, else skip the `n_behind` instructions behind it.

    A rule has at most six conditions of at most seven instructions: such a skip always fits.
    """
    op = condition.op.removeprefix("SCMP_CMP_")
    masked = op == "MASKED_EQ"
    wanted = condition.value_two if masked else condition.value
    at = ARGUMENTS_AT + 8 * condition.argument
    high, low = COMPARISONS[op]
    plan: list[Instruction | tuple[Step, int]] = []
    for shift, offset, steps in ((32, at + 4, high), (0, at, (low,))):
        plan.append((LOAD, 0, 0, offset))
        if masked:
            plan.append((AND, 0, 0, condition.value >> shift & 0xFFFFFFFF))
        plan += [(step, wanted >> shift & 0xFFFFFFFF) for step in steps]
    code: list[Instruction] = []
    for i, planned in enumerate(plan):
        if len(planned) == 4:
            code.append(planned)
        else:
            (operator, then, otherwise), k = planned
            skips = {NEXT: 0, TRUE: len(plan) - i - 1, FALSE: len(plan) - i - 1 + n_behind}
            code.append((operator, skips[then], skips[otherwise], k))
    return code


def _return(action: int) -> Instruction:
    return (RETURN, 0, 0, action)


# --- the kernel ---------------------------------------------------------------------------------

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_GET_ACTION_AVAIL = 1, 2
TSYNC = FLAGS["SECCOMP_FILTER_FLAG_TSYNC"]


class _Program(ctypes.Structure):
    """struct sock_fprog"""
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def unsupported() -> str:
    """Why no filter can be set here; "" when it can."""
    if sys.platform != "linux":
        return "seccomp filters need Linux"
    if platform.machine() not in MACHINES or sys.maxsize < 2 ** 32:
        return f"the processor must be one of {', '.join(MACHINES)} in 64-bit mode; this is {platform.machine()}"
    result, errno = _seccomp(SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(ctypes.c_uint32(ERRNO)))
    return "" if result == 0 else f"this kernel has no seccomp filters ({os.strerror(errno)})"


def enforce(instructions: Sequence[Instruction], flags: int = 0) -> None:
    """Set the filter on all threads of this process, for good; threads that start later have it too.

    Raises SandboxError; no thread has the filter then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise SandboxError(f"PR_SET_NO_NEW_PRIVS: {os.strerror(ctypes.get_errno())}")
    result, errno = _seccomp(SECCOMP_SET_MODE_FILTER, TSYNC | flags,
                             ctypes.byref(_Program(len(instructions), packed)))
    if result > 0:
        raise SandboxError(f"thread {result} has a filter of its own, so that not all threads can have this one")
    if result < 0:
        raise SandboxError(f"the kernel refuses the filter: {os.strerror(errno)}")


def _seccomp(operation: int, flags: int, argument) -> tuple[int, int]:
    """seccomp(2), which has no function in the C library → (result, errno)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number = MACHINES[platform.machine()].numbers["seccomp"]
    result = libc.syscall(ctypes.c_long(number), ctypes.c_uint(operation), ctypes.c_uint(flags), argument)
    return result, ctypes.get_errno()
