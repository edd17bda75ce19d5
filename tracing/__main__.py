"""`python -m tracing`: options and exit statuses: with a policy 0 PASS, 1 FAIL, 2 INCONCLUSIVE; 3 could not run.

The rule to keep: whatever cannot run is one line on stderr and 3, a wrong option too: 2 is a verdict. With a policy the
last line on stdout begins with the verdict.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import traceback
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tracing.errors import TraceError
from tracing.preflight import PROFILES

if TYPE_CHECKING:  # imported late: --help and errors should not wait for psutil
    from tracing.record import Recording

COULD_NOT_RUN = 3
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
DEFAULT_PROFILE = "sovereign"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise TraceError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    p = Parser(prog="python -m tracing", description="Record what a program does with strace, and judge it.",
               epilog="Exit status with a policy: 0 PASS, 1 FAIL, 2 INCONCLUSIVE, 3 could not run. Without a policy"
                      " 'run' passes on the program's.")
    commands = p.add_subparsers(dest="subcommand", metavar="COMMAND", required=True, parser_class=Parser)
    for name, (about, options, _) in SUBCOMMANDS.items():
        command = commands.add_parser(name, help=about, description=about, usage=USAGE.get(name))
        options(command)
    return p


# Options

def recording_options(p: Parser) -> None:
    p.add_argument("--profile", choices=PROFILES,
                   help="what to trace (default: what the policies ask for, else sovereign)")
    p.add_argument("--policy", action="append", default=[], metavar="NAME|FILE",
                   help="judge the trace; may be repeated")
    p.add_argument("--out", type=Path, default=Path("traces"), metavar="DIR",
                   help="folder for the trace (default: %(default)s)")
    p.add_argument("--no-seccomp-bpf", action="store_true",
                   help="stop at every call: slower, but sees calls that the program's own seccomp filter refuses")


def run_options(p: Parser) -> None:
    recording_options(p)
    isolated_option(p)


def isolated_option(p: Parser) -> None:
    p.add_argument("--isolated", action="store_true", help="in a network namespace that leads nowhere")


def attach_options(p: Parser) -> None:
    p.add_argument("pid", type=whole, metavar="PID")
    p.add_argument("--seconds", type=positive, metavar="N", help="how long (default: until Ctrl-C or its end)")
    recording_options(p)


def judge_options(p: Parser) -> None:
    p.add_argument("trace", type=Path, metavar="TRACE")
    p.add_argument("--policy", action="append", required=True, metavar="NAME|FILE", help="may be repeated")


def validate_options(p: Parser) -> None:
    p.add_argument("models", type=Path, nargs="*", metavar="MODEL",
                   help="what 'python -m server' serves: model files, MLflow's folders and addresses (default: the one"
                        " that is shipped)")
    p.add_argument("--policy", action="append", default=[], metavar="NAME|FILE",
                   help="may be repeated (default: sovereign and steady)")
    p.add_argument("--report", type=Path, metavar="FILE", help="write a page for a browser")
    p.add_argument("--junit", type=Path, metavar="FILE", help="write the outcomes for a CI server")
    p.add_argument("--out", type=Path, default=Path("traces"), metavar="DIR",
                   help="folder for the trace (default: %(default)s)")
    p.add_argument("--sandbox", action="store_true", help="with the server's own seccomp filter")
    p.add_argument("--no-native", action="store_true", help="with the server in Python, without compiled code")
    p.add_argument("--allow-pickle", action="store_true", help="with MLflow's models that are pickles or code")
    isolated_option(p)


def report_options(p: Parser) -> None:
    traces_options(p)
    p.add_argument("--policy", action="append", default=[], metavar="NAME|FILE", help="judge; may be repeated")
    p.add_argument("--html", type=Path, metavar="FILE", help="one page that needs nothing else")
    p.add_argument("--json", type=Path, metavar="FILE")
    p.add_argument("--junit", type=Path, metavar="FILE")


def traces_options(p: Parser) -> None:
    p.add_argument("traces", type=Path, nargs="+", metavar="TRACE")


def diff_options(p: Parser) -> None:
    p.add_argument("before", type=Path, metavar="A")
    p.add_argument("after", type=Path, metavar="B")


def export_options(p: Parser) -> None:
    traces_options(p)
    p.add_argument("--phase", action="append", default=[], dest="phases", metavar="PHASE",
                   help="of which phases; may be repeated (default: from serving on)")
    p.add_argument("--oci", type=Path, metavar="FILE", help="write a seccomp profile for containers (JSON)")
    p.add_argument("--systemd", type=Path, metavar="FILE", help="write the settings of a systemd unit")


def recipes_options(p: Parser) -> None:
    p.add_argument("names", nargs="*", metavar="NAME", help="which recipes (default: all that can run here)")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the table there, as Markdown")
    p.add_argument("--python", default=sys.executable, metavar="PATH",
                   help="the interpreter that has the servers (default: this one)")


def whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds


# Recording

def run(options: Namespace) -> int:
    from tracing import isolation, record

    profile = profile_of(options)
    if options.isolated:
        isolation.enter()
    with relayed_signals() as relay:
        with record.start(options.command, profile=profile, out=options.out,
                          seccomp_bpf=not options.no_seccomp_bpf) as recording:
            relay(recording.send_signal)
            status = recording.wait()
    return conclude(options, recording, status)


def attach(options: Namespace) -> int:
    from tracing import record

    profile = profile_of(options)
    with relayed_signals() as relay:
        with record.attach(options.pid, profile=profile, out=options.out) as recording:
            relay(lambda number: recording.stop())
            print(f"tracing: attached to process {options.pid}; Ctrl-C lets it go", file=sys.stderr, flush=True)
            with contextlib.suppress(TimeoutError):
                recording.wait(options.seconds)
    return conclude(options, recording, 0)


def profile_of(options: Namespace) -> str:
    """Load the policies, so that a wrong one is found before anything starts; the profile that they need."""
    if not options.policy:
        return options.profile or DEFAULT_PROFILE
    from tracing import policy

    return options.profile or policy.profile_for(policy.load_all(options.policy))


Receiver = Callable[[int], None]


@contextlib.contextmanager
def relayed_signals() -> Iterator[Callable[[Receiver], None]]:
    """Signals to this process go to the receiver that is given to `relay`; those that came before it, too."""
    receivers: list[Receiver] = []
    early: list[int] = []

    def take(number: int, frame: object) -> None:
        for receive in receivers or [early.append]:
            receive(number)

    def relay(receive: Receiver) -> None:
        receivers.append(receive)
        while early:
            receive(early.pop(0))

    before = {number: signal.signal(number, take) for number in FORWARDED}
    try:
        yield relay
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def conclude(options: Namespace, recording: "Recording", status: int) -> int:
    print(f"tracing: trace: {recording.path}", file=sys.stderr)
    if options.policy:
        from tracing import judge

        return judge.main(Namespace(trace=recording.path, policy=options.policy))
    if recording.footer is None or not recording.footer.recorded:
        print("tracing: warning: strace was killed, or processes outlived it: the trace is incomplete", file=sys.stderr)
    return status


def elsewhere(module: str) -> Callable[[Namespace], int]:
    """The `main` of a module that is imported when its subcommand is asked for."""
    return lambda options: importlib.import_module(f"tracing.{module}").main(options)


SUBCOMMANDS: dict[str, tuple[str, Callable[[Parser], None], Callable[[Namespace], int]]] = {
    "run": ("Record a command.", run_options, run),
    "attach": ("Record a process that runs already, and its children.", attach_options, attach),
    "judge": ("Judge a trace.", judge_options, elsewhere("judge")),
    "validate": ("Start the server under strace, use all of it, and judge.", validate_options, elsewhere("validate")),
    "report": ("Show what happened in a trace.", report_options, elsewhere("report")),
    "summary": ("Count calls, and the time in them.", traces_options, elsewhere("summary")),
    "diff": ("Compare two traces.", diff_options, elsewhere("diff")),
    "policy": ("Make a seccomp profile from traces.", export_options, elsewhere("export")),
    "who-talks": ("Judge other servers.", recipes_options, elsewhere("recipes")),
}
USAGE = {"run": "python -m tracing run [--profile sovereign|full] [--policy NAME|FILE]... [--out DIR]"
                " [--no-seccomp-bpf] -- CMD ..."}


def parsed(argv: list[str]) -> Namespace:
    """The options; what follows the first "--" is the command of `run`, and for no other."""
    if argv[:1] != ["run"]:
        return parser().parse_args(argv)
    at = argv.index("--") if "--" in argv else len(argv)
    options = parser().parse_args(argv[:at])
    options.command = argv[at + 1:]
    if not options.command:
        raise TraceError("run: expected the command after -- (see python -m tracing run --help)")
    return options


def main(argv: list[str]) -> int:
    try:
        options = parsed(argv)
        status = SUBCOMMANDS[options.subcommand][2](options)
        sys.stdout.flush()
        return status
    except TraceError as error:
        print(f"tracing: error: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of our stdout went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("tracing: error: interrupted", file=sys.stderr)
    except Exception:  # a bug: its status must not be taken for a verdict
        traceback.print_exc()
    return COULD_NOT_RUN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
