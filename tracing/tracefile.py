"""Trace files: a header line, strace's lines, a footer line. Writing them, and reading them as a stream.

    # testigo-trace {"version": 1, ...}
    4711 1700000000.000000001 execve("/bin/true", ["true"], ...) = 0 <0.000312000>
    # testigo-end {"lines": 1, "sha256": ..., ...}

The rule to keep: a file that is not exactly what the recorder wrote says so (`footer` is None, `torn` or `damaged`),
and memory holds a block and a line, never the file. strace escapes newlines, so no tracee can write a footer.
"""

import hashlib
import json
import os
import re
import stat
import types
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from tracing.errors import TraceError

VERSION = 1
HEADER_MARK = b"# testigo-trace "
FOOTER_MARK = b"# testigo-end "
BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 24  # strace with -s 128 stays under 100 kB; other people's -s may be large
PROBE_LINES = 20  # a foreign trace may begin with a warning of strace, or with other output that shares its stderr

# What some line of a plain strace output begins with: [pid] [time] call( or --- or +++ or <...
STRACE_LINE = re.compile(rb"(?:\[pid +\d+\] |\d+ +)? *(?:[\d:.]+ )?(?:\( *[+\d.]+\) )?(?:[a-z_]\w*\("
                         rb"|<\.\.\. \w+ resumed|--- (?:SIG|stopped)|\+\+\+ (?:exited|killed|superseded))")


@dataclass(frozen=True)
class Inherited:
    """A descriptor that was open before the recording began."""

    pid: int
    fd: int
    kind: str  # "socket", "pipe", "file", "anon"
    detail: str  # "TCP 127.0.0.1:80 LISTEN", "TCP 127.0.0.1:80 -> 127.0.0.1:99 ESTABLISHED", "UNIX /run/x", a path


@dataclass(frozen=True)
class Thread:
    """A thread that was there when strace attached."""

    tid: int
    pid: int  # of its process


@dataclass(frozen=True)
class Header:
    """How the trace was recorded."""

    version: int
    command: tuple[str, ...]  # as executed; of an attached process, its command line
    strace: str  # "6.1"
    options: tuple[str, ...]  # strace's, without -o and -p
    profile: str
    traced: tuple[str, ...]  # the names given to -e trace=; "?name": this strace does not know it
    seccomp_bpf: bool
    string_limit: int
    attached: bool
    nonce: str  # of the markers; "" when attached
    started_ns: int  # since the Unix epoch
    tracee: int
    inherited: tuple[Inherited, ...]
    system: str  # kernel and machine
    python: str
    threads: tuple[Thread, ...] = ()  # where strace attached: a trace shows no process of those


@dataclass(frozen=True)
class Footer:
    """How the recording ended."""

    lines: int
    sha256: str  # of all bytes before the footer
    strace_status: int  # below 0: killed by that signal
    recorded: bool  # False: strace or its guard was killed, or processes outlived it
    seconds: float
    torn: bool = False  # the last strace line was cut; the recorder ended it


Part = TypeVar("Part", Header, Footer, Inherited, Thread)


def encode(mark: bytes, part: Header | Footer) -> bytes:
    return mark + json.dumps(asdict(part)).encode() + b"\n"


def decode(kind: type[Part], values: Any) -> Part:
    """`values` (parsed JSON) as a `kind`; ValueError where a field is missing or of another type."""
    if not isinstance(values, dict):
        raise ValueError("expected an object")
    hints = typing.get_type_hints(kind)
    known = {field.name: _field(hints[field.name], values[field.name])
             for field in fields(kind) if field.name in values}
    try:
        return kind(**known)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _field(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.GenericAlias):
        element = typing.get_args(hint)[0]
        if not isinstance(value, list):
            raise ValueError("expected a list")
        return tuple(_field(element, each) for each in value)
    if hint in (Inherited, Thread):
        return decode(hint, value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"expected {hint.__name__}, found {type(value).__name__}")
    return value


class Writer:
    """Writes one trace file; counts and hashes as it goes."""

    def __init__(self, file: BinaryIO, header: Header):
        self._file = file
        self._sha256 = hashlib.sha256()
        self._write(encode(HEADER_MARK, header))
        self._lines = 0

    def _write(self, data: bytes) -> None:
        self._sha256.update(data)
        self._file.write(data)

    def add(self, lines: list[str]) -> None:
        """Append strace lines, given without their newlines."""
        if lines:
            self._write("\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
            self._lines += len(lines)

    def finish(self, strace_status: int, recorded: bool, seconds: float, torn: bool = False) -> Footer:
        footer = Footer(self._lines, self._sha256.hexdigest(), strace_status, recorded, round(seconds, 6), torn)
        self._file.write(encode(FOOTER_MARK, footer))
        self._file.flush()
        return footer


class TraceFile:
    """A trace for reading. What is not known before the end is set when `lines()` is exhausted."""

    def __init__(self, path: Path, header: Header | None):
        self.path = path
        self.header = header  # None: somebody else's trace (plain strace output)
        self._forget()

    def _forget(self) -> None:
        self.footer: Footer | None = None
        self.torn = False  # the last line was cut
        self.damaged = ""  # why the file is not what the recorder wrote
        self.sha256 = ""  # of the whole file
        self._count = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Check that this is a trace, and read its header; TraceError says what is wrong with it."""
        path = Path(path)
        with _opened(path) as file:
            lines = [line for _ in range(PROBE_LINES) if (line := file.readline(MAX_LINE_BYTES))]
        if not lines:
            raise TraceError(f"{path}: the file is empty, not a trace")
        if lines[0].startswith(HEADER_MARK):
            return cls(path, _header(path, lines[0]))
        if any(b"\0" in line for line in lines) or not any(map(STRACE_LINE.match, lines)):
            raise TraceError(f"{path}: not a trace: neither recorded by 'python -m tracing' nor written by strace")
        return cls(path, None)

    def lines(self) -> Iterator[str]:
        """strace's lines, without their newlines."""
        self._forget()
        whole = hashlib.sha256()
        headers = int(self.header is not None)
        for block in _blocks(self.path):
            before = whole.copy()
            whole.update(block)
            yield from self._strace_lines(block, before, headers)
            headers = 0
        self.sha256 = whole.hexdigest()
        if self.footer is not None:
            self.torn = self.torn or self.footer.torn

    def _strace_lines(self, block: bytes, before: "hashlib._Hash", headers: int) -> Iterator[str]:
        """The lines of a `block` of whole lines, of which `headers` are none of strace's."""
        if self.footer is not None:
            self._blame("something follows the footer")
        end = _footer_at(block)
        lines = block[:end].decode("utf-8", "backslashreplace").split("\n")
        self.torn = lines[-1] != ""
        lines = lines[headers:] if self.torn else lines[headers:-1]
        self._count += len(lines)
        yield from lines
        if end < len(block):
            before.update(block[:end])
            self._end(block[end:], before.hexdigest())

    def _end(self, data: bytes, digest: str) -> None:
        """Read the footer at the start of `data` and compare it with what was seen."""
        line, newline, after = data.partition(b"\n")
        try:
            footer = decode(Footer, json.loads(line[len(FOOTER_MARK):]))
        except ValueError:
            return self._blame("the footer is cut or not what the recorder wrote")
        self.footer = footer
        if not newline or after:
            self._blame("something follows the footer" if after else "the footer has no newline")
        if footer.lines != self._count:
            self._blame(f"the footer counts {footer.lines} lines, the file has {self._count}")
        if footer.sha256 != digest:
            self._blame("the digest in the footer is not that of the lines")

    def _blame(self, why: str) -> None:
        self.damaged = self.damaged or why


def _opened(path: Path) -> BinaryIO:
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # a FIFO: no waiting
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    raise TraceError(f"{path}: not a regular file")


def _footer_at(block: bytes) -> int:
    """Where the footer begins; the block's length where there is none."""
    if block.startswith(FOOTER_MARK):
        return 0
    return block.find(b"\n" + FOOTER_MARK) + 1 or len(block)


def _header(path: Path, line: bytes) -> Header:
    try:
        values = json.loads(line[len(HEADER_MARK):])
        if isinstance(values, dict) and values.get("version") != VERSION:
            raise TraceError(f"{path}: a trace of version {values.get('version')!r}; this program reads {VERSION}")
        return decode(Header, values)
    except ValueError as error:
        raise TraceError(f"{path}: the header is not what the recorder wrote: {error}") from None


def _blocks(path: Path) -> Iterator[bytes]:
    """The file in blocks that end with a newline; only the last may not."""
    rest = b""
    with _opened(path) as file:
        while block := file.read(BLOCK_BYTES):
            end = block.rfind(b"\n") + 1
            if end:
                yield rest + block[:end]
                rest = block[end:]
            elif len(rest) > MAX_LINE_BYTES:
                raise TraceError(f"{path}: a line is longer than {MAX_LINE_BYTES} bytes: not a trace")
            else:
                rest += block
    if rest:
        yield rest
