"""What reading a trace costs: lines a second against a plain loop of regular expressions, and memory.

The rule to keep: parser and peer read the same lines, which hold what a server's trace holds, in neighbouring turns.
"""

import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable

from tests.bench.conftest import Goal
from tests.tracing.strace_lines import raw_server_trace, server_trace
from tracing import validate
from tracing.judge import PASS
from tracing.parse import Call, parse
from tracing.policy import load_all
from tracing.redact import redact

N_LINES, N_ROUNDS = 80_000, 7
NAIVE = re.compile(r"(\d+) +([\d.]+) (\w+)\((.*)\) += (\S+)")  # whole calls only, and fooled by a ") = " in a string
# How much the interpreter grew while it read a file of so many lines.
READ = """
import resource, sys
from collections import deque
from tracing.parse import parse
lines = open(sys.argv[1])
deque(parse([next(lines) for _ in range(1000)]), 0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
deque(parse(lines), 0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def naive(lines: list[str]) -> None:
    for line in lines:
        match = NAIVE.match(line)
        if match:
            match.groups()


def lines_per_s(read: Callable[[list[str]], object], lines: list[str]) -> float:
    start = time.process_time()
    read(lines)
    return len(lines) / (time.process_time() - start)


def test_lines_parsed_a_second(benchmark, goals):
    lines = list(server_trace(N_LINES))
    assert sum(isinstance(event, Call) for event in parse(lines)) == N_LINES * 7 // 8  # one call of eight has two lines
    rounds = benchmark.pedantic(rounds_of, args=(lambda some: deque(parse(some), 0), lines), rounds=1)
    goals.check(("lines parsed a second, one core, best round", [max(ours for ours, _ in rounds)],
                 Goal("≥", 200_000, 0.25)),
                ("lines parsed a second, against a plain re.match loop", [ours / peer for ours, peer in rounds],
                 Goal("≥", 0.2, 0.1)))
    goals.note(f"  best round of the plain loop: {max(peer for _, peer in rounds):.0f} lines/s")


def test_clean_server_passes_twenty_times(benchmark, goals, tmp_path):
    policies = load_all(validate.DEFAULT_POLICIES)

    def validations() -> list[validate.Validation]:
        return [validate.validate([], policies, tmp_path / f"{i}.trace") for i in range(20)]
    done = benchmark.pedantic(validations, rounds=1)
    goals.check(("validations of the clean server that pass, of 20", [sum(v.judgement.verdict == PASS for v in done)],
                 Goal("≥", 20)),
                ("seconds to validate", [v.seconds for v in done], Goal("≤", 30)))


def test_recording_costs(benchmark, goals):
    """No goal: strace costs what it costs."""
    goals.note(f"  recording: {benchmark.pedantic(validate.costs, rounds=1)}")


def test_lines_redacted_a_second(benchmark, goals):
    lines = list(raw_server_trace(N_LINES))
    assert "Content-Length" in lines[0] and "Content-Length" not in "".join(map(redact, lines))
    rounds = benchmark.pedantic(rounds_of, args=(lambda some: deque(map(redact, some), 0), lines), rounds=1)
    goals.check(("lines redacted a second, one core, best round", [max(ours for ours, _ in rounds)],
                 Goal("≥", 300_000, 0.25)))


def rounds_of(read: Callable[[list[str]], object], lines: list[str]) -> list[tuple[float, float]]:
    """(lines/s of `read`, of the plain loop), in turns."""
    return [(lines_per_s(read, lines), lines_per_s(naive, lines)) for _ in range(N_ROUNDS)]


def test_memory_to_read_a_million_lines(benchmark, goals, tmp_path):
    trace = tmp_path / "trace"
    with trace.open("w") as file:
        file.writelines(f"{line}\n" for line in server_trace(1_000_000))
    grown = benchmark.pedantic(subprocess.check_output, args=([sys.executable, "-c", READ, str(trace)],), rounds=1)
    goals.check(("KiB that the process grows in 1,000,000 lines", [int(grown)], Goal("≤", 500)))
