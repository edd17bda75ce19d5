"""`python -m tracing validate`: the lab. Start the server under strace, use all of it, stop it, judge what it did.

The rule to keep: the verdict comes from the trace alone. That the drive got the answers which it expected is checked
besides, because a server that answers nothing leaves a clean trace.
"""

import http.client
import select
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, NamedTuple

from tracing import drive, isolation, judge, record, report
from tracing.drive import Driven
from tracing.errors import TraceError
from tracing.judge import Judgement
from tracing.policy import PROFILES, Policy, load_all, profile_for

DEFAULT_POLICIES = ("sovereign", "steady")
READY_S, STOP_S = 120.0, 20.0  # finding a model at one of MLflow's addresses takes 30 s, traced


class Validation(NamedTuple):
    judgement: Judgement
    driven: Driven
    stopped: int  # the server's exit status
    start_s: float  # until it was ready, traced
    seconds: float  # in all


def validate(models: Sequence[str], policies: Sequence[Policy], trace: Path,
             options: Sequence[str] = ()) -> Validation:
    """Run `python -m server` with these models and options under strace, drive it, and judge the trace.

    Raises TraceError where the server does not start or cannot be traced.
    """
    began = time.monotonic()
    compile_ahead(models, options)
    command = [sys.executable, "-m", "server", *models, "--port", "0", *options]
    with tempfile.TemporaryFile() as stderr:
        start = time.monotonic()
        with record.start(command, profile=profile_for(policies), path=trace, stdout=subprocess.PIPE, stderr=stderr,
                          seccomp_bpf=by_seccomp(options)) as recording:
            url = wait_until_ready(recording, stderr)
            start_s = time.monotonic() - start
            driven = drive_to_its_end(url)
            recording.send_signal(signal.SIGTERM)
            stopped = recording.wait(STOP_S)
    judgement = judged(trace, policies, driven, stopped)
    return Validation(judgement, driven, stopped, start_s, time.monotonic() - began)


def by_seccomp(options: Sequence[str]) -> bool | None:
    """Whether strace may filter by seccomp: the server's own filter would hide calls. None: as the profile has it."""
    return False if "--sandbox" in options else None


def drive_to_its_end(url: str) -> Driven:
    """What the drive did; that the server broke it off is one wrong answer."""
    try:
        return drive.drive(url)
    except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
        return Driven(wrong=[f"the drive broke off: {type(error).__name__}: {error}"])


def compile_ahead(models: Sequence[str], options: Sequence[str] = ()) -> None:
    """What a server compiles the first time on a machine belongs to no trace."""
    command = [sys.executable, "-m", "server", "warm", *models, *["--allow-pickle"] * ("--allow-pickle" in options)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise TraceError(f"the server cannot be prepared: {last_line(done.stderr)}")


def wait_until_ready(recording: record.Recording, stderr: IO[bytes]) -> str:
    """The address in the line that the server prints when it accepts."""
    assert recording.stdout is not None  # asked for above
    ready = select.select([recording.stdout], [], [], READY_S)[0]
    line = recording.stdout.readline().decode(errors="replace") if ready else ""
    found = line.rpartition(" at ")[2].strip()
    if not found.startswith("http://"):
        stderr.seek(0)
        raise TraceError(f"the server did not start: {last_line(stderr.read().decode(errors='replace'))}")
    return found


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1].removeprefix("server: error: ")


def judged(trace: Path, policies: Sequence[Policy], driven: Driven, stopped: int) -> Judgement:
    """By the trace; but a drive that went wrong proves nothing."""
    judgement = judge.judge(trace, policies)
    wrong = [f"{len(driven.wrong)} requests were answered otherwise than expected"] * bool(driven.wrong)
    wrong += [f"the server ended with status {stopped}"] * bool(stopped)
    verdict = judge.INCONCLUSIVE if wrong and judgement.verdict == judge.PASS else judgement.verdict
    return replace(judgement, verdict=verdict, reasons=(*judgement.reasons, *wrong))


def text(validation: Validation) -> str:
    """One screen; the last line begins with the verdict."""
    driven = validation.driven
    lines = [f"  {driven.requests:,} requests to {len(driven.endpoints)} endpoints,"
             f" {len(driven.wrong)} answered otherwise than expected",
             f"  ready in {validation.start_s:.1f} s (traced), all of it {validation.seconds:.1f} s"]
    lines += [f"  unexpected: {wrong}" for wrong in driven.wrong[:5]]
    return "\n".join([*lines, judge.text(validation.judgement)])


def costs() -> str:
    """Of both profiles, measured now: a call that both trace, and one that only the full one does."""
    measured = [(profile, record.overhead(profile, load)) for profile in PROFILES for load in ("calls", "reads")]
    return "; ".join(f"{profile}: {one}" for profile, one in measured)


def main(options: Namespace) -> int:
    """→ exit status."""
    policies = load_all(options.policy or DEFAULT_POLICIES)
    if options.isolated:
        isolation.enter()
    try:
        record.make_private(options.out)
    except OSError as error:
        raise TraceError(f"{options.out}: {error.strerror}") from None
    server = (["--sandbox"] * options.sandbox + ["--no-native"] * options.no_native
              + ["--allow-pickle"] * options.allow_pickle)
    try:
        validation = validate([str(model) for model in options.models], policies, options.out / "validate.trace",
                              options=server)
    except TimeoutError:
        raise TraceError(f"the server did not stop within {STOP_S:.0f} s of SIGTERM") from None
    cost = costs()
    print(f"  recorded with the profile {profile_for(policies)}; what recording costs: {cost}\n{text(validation)}")
    report.write(validation.judgement.path, validation.judgement, html=options.report, junit=options.junit, cost=cost)
    return judge.STATUS[validation.judgement.verdict]
