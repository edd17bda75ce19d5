"""Trace files: what was written is read back; what is not exactly that says so."""

import dataclasses
import gzip
import io
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracing import tracefile
from tracing.errors import TraceError
from tracing.tracefile import FOOTER_MARK, HEADER_MARK, Header, Inherited, TraceFile, Writer

LINES = ['4711 1700000000.000000001 execve("/bin/true", ["true"], 0x7ffe /* 35 vars */) = 0 <0.000312000>',
         '4711 1700000000.000000002 +++ exited with 0 +++']
HEADER = Header(1, ("true",), "6.1", ("-f", "-e", "trace=all"), "full", ("all",), False, 128, False, "00ff" * 4,
                1_700_000_000_000_000_000, 4711, (Inherited(4711, 0, "socket", "TCP [::1]:80 LISTEN"),),
                "Linux 6 x86_64", "3.11.7")
FOREIGN = {
    "plain": b'execve("/bin/true", ["true"], 0x7ffe /* 35 vars */) = 0\n+++ exited with 0 +++\n',
    "pids": b'4711  execve("/bin/true", ["true"], 0x7ffe /* 35 vars */) = 0\n4711  +++ exited with 0 +++\n',
    "stderr": b'strace: Process 4712 attached\n[pid  4712] 12:00:00.000001 close(3) = 0\n',
    "relative": b'     0.000000 close(3) = 0\n',
    "one torn line": b'close(3',
}
NO_TRACES = {
    "empty": (b"", "empty"),
    "text": (b"hello\nworld\n", "not a trace"),
    "binary": (bytes(range(256)), "not a trace"),
    "packed": (gzip.compress(FOREIGN["plain"]), "not a trace"),
    "zeros": (bytes(3000), "not a trace"),
    "other version": (HEADER_MARK + b'{"version": 2}\n', "version 2"),
    "no JSON": (HEADER_MARK + b'{"version"\n', "header"),
    "no object": (HEADER_MARK + b'[]\n', "header"),
    "missing field": (HEADER_MARK + b'{"version": 1}\n', "command"),
    "wrong type": (HEADER_MARK + json.dumps({**dataclasses.asdict(HEADER), "tracee": "1"}).encode() + b"\n", "int"),
    "wrong element": (HEADER_MARK + json.dumps({**dataclasses.asdict(HEADER), "inherited": [3]}).encode(), "object"),
}


def written(lines=LINES, torn=False) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, HEADER)
    writer.add(lines)
    writer.finish(0, True, 0.5, torn)
    return file.getvalue()


@pytest.fixture
def reading(tmp_path):
    """bytes → (trace, its lines)"""
    def read(data: bytes) -> tuple[TraceFile, list[str]]:
        path = tmp_path / "a.trace"
        path.write_bytes(data)
        trace = TraceFile.open(path)
        return trace, list(trace.lines())
    return read


def is_whole(trace: TraceFile) -> bool:
    return trace.footer is not None and trace.footer.recorded and not trace.torn and not trace.damaged


def test_what_was_written_is_read(reading):
    data = written()
    trace, lines = reading(data)
    assert lines == LINES
    assert trace.header == HEADER
    assert is_whole(trace)
    assert trace.footer.lines == 2 and trace.footer.strace_status == 0 and trace.footer.seconds == 0.5
    assert trace.sha256 == tracefile.hashlib.sha256(data).hexdigest()
    assert list(trace.lines()) == LINES and is_whole(trace)  # again


@pytest.mark.parametrize("size", [1, 7, 64, 200, 4096])
def test_block_size_changes_nothing(reading, monkeypatch, size):
    monkeypatch.setattr(tracefile, "BLOCK_BYTES", size)
    trace, lines = reading(written(LINES * 10))
    assert lines == LINES * 10
    assert is_whole(trace)


def test_trace_without_calls(reading):
    trace, lines = reading(written([]))
    assert lines == [] and is_whole(trace)


@pytest.mark.parametrize("size", [64, 1 << 20])
def test_file_cut_anywhere_is_not_whole(reading, monkeypatch, size):
    monkeypatch.setattr(tracefile, "BLOCK_BYTES", size)
    data = written()
    for end in range(data.index(b"\n") + 1, len(data)):
        trace, lines = reading(data[:end])
        assert not is_whole(trace), data[:end]
        assert trace.torn == (data[end - 1:end] != b"\n" and end <= data.index(FOOTER_MARK) + len(FOOTER_MARK) - 1)


def test_changed_byte_is_damage(reading):
    data = written()
    trace, _ = reading(data.replace(b"exited with 0", b"exited with 1"))
    assert "digest" in trace.damaged


def test_lost_line_is_damage(reading):
    trace, _ = reading(written().replace(LINES[0].encode() + b"\n", b""))
    assert "counts 2 lines, the file has 1" in trace.damaged


@pytest.mark.parametrize("more", [b"\n", b"x", LINES[0].encode() + b"\n", written(), b"# testigo-end {}\n"])
@pytest.mark.parametrize("size", [64, 1 << 20])
def test_anything_after_the_footer_is_damage(reading, monkeypatch, more, size):
    monkeypatch.setattr(tracefile, "BLOCK_BYTES", size)
    trace, _ = reading(written() + more)
    assert trace.damaged


def test_footer_of_another_file_is_damage(reading):
    mine, other = written(), written(LINES[:1])
    trace, _ = reading(mine[:mine.index(FOOTER_MARK)] + other[other.index(FOOTER_MARK):])
    assert trace.damaged


def test_lost_header_leaves_a_foreign_trace_with_a_wrong_footer(reading):
    data = written()
    trace, lines = reading(data[data.index(b"\n") + 1:])
    assert trace.header is None and lines == LINES and trace.damaged


def test_line_that_the_recorder_ended_is_torn(reading):
    trace, lines = reading(written(LINES[:1] + ["4711 1700000000.0 clo"], torn=True))
    assert len(lines) == 2 and trace.torn and not trace.damaged


@pytest.mark.parametrize("name", FOREIGN)
def test_plain_strace_output_has_no_header(reading, name):
    trace, lines = reading(FOREIGN[name])
    assert trace.header is None and trace.footer is None
    assert lines == FOREIGN[name].decode().splitlines()
    assert trace.torn == (not FOREIGN[name].endswith(b"\n"))


@pytest.mark.parametrize("name", NO_TRACES)
def test_no_trace_is_one_line_of_error(tmp_path, name):
    data, expected = NO_TRACES[name]
    path = tmp_path / "a.trace"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=expected) as error:
        TraceFile.open(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_unreadable_paths(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, expected in (("missing", "No such file"), (".", "Is a directory"), ("fifo", "regular file")):
        with pytest.raises(TraceError, match=expected):
            TraceFile.open(tmp_path / name)


def test_line_without_end_is_refused_before_it_fills_memory(reading, monkeypatch):
    monkeypatch.setattr(tracefile, "BLOCK_BYTES", 64)
    monkeypatch.setattr(tracefile, "MAX_LINE_BYTES", 1000)
    with pytest.raises(TraceError, match="longer than 1000"):
        reading(FOREIGN["plain"] + b"a" * 3000)


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))))
def test_any_text_comes_back(tmp_path_factory, lines):
    lines = [line for line in lines if not line.startswith(FOOTER_MARK.decode())]
    path = tmp_path_factory.mktemp("traces") / "a.trace"
    path.write_bytes(written(lines))
    trace = TraceFile.open(path)
    assert list(trace.lines()) == lines
    assert is_whole(trace)
