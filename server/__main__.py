"""`python -m server`: options, start, stop. Exit statuses: 0 stopped as asked, 2 bad option, 3 unreadable model, key
file or sandbox profile, 4 cannot listen, 5 wrong `kernels` package, 6 no sandbox possible.

The rule to keep: stdout holds one line, the address; everything else goes to stderr.
"""

import argparse
import importlib.util
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:  # imported late: --help and errors should not wait for numba
    from server.application import Application
    from server.listener import Listener

BAD_FILE, CANNOT_LISTEN, WRONG_PACKAGE, NO_SANDBOX = 3, 4, 5, 6
ALLOW_PICKLE = ("open MLflow's models that are pickles or run code of their own, each in another process; they can do"
                " whatever you can")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def fail(status: int, message: str) -> NoReturn:
    print(f"server: error: {message}", file=sys.stderr)
    raise SystemExit(status)


_found = importlib.util.find_spec("kernels")
if _found is None or not any((Path(folder) / "gguf.py").exists() for folder in _found.submodule_search_locations or ()):
    fail(WRONG_PACKAGE, f"the package 'kernels' at {_found and _found.origin} is another one of that name, not"
                        " Testigo's: uninstall it (pip uninstall kernels) or run in an environment of its own")

import kernels  # noqa: E402
from kernels import DEFAULT_MODEL, ModelError  # noqa: E402
from server import allocator, markers, sagemaker, sandbox  # noqa: E402


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str):
        fail(2, f"{message} (see --help)")


def parser() -> Parser:
    p = Parser(prog="python -m server", description="Serve models over HTTP.",
               epilog="Also: 'python -m server doctor' says what works on this machine, 'python -m server warm"
                      " [MODEL ...]' compiles ahead. Exit status: 0 stopped as asked, 2 bad option, 3 unreadable model,"
                      " key file or sandbox profile, 4 cannot listen, 5 wrong 'kernels' package, 6 no sandbox"
                      " possible.")
    p.add_argument("models", nargs="*", metavar="MODEL",
                   help="model files, folders with MLflow's MLmodel, models:/NAME@ALIAS, models:/NAME/VERSION or"
                        " runs:/RUN/PATH; the first one answers requests that name none (default:"
                        f" {DEFAULT_MODEL.stem}); 'serve' alone starts as Amazon SageMaker does, with the model in"
                        f" {sagemaker.FOLDER}")
    p.add_argument("--allow-pickle", action="store_true", help=ALLOW_PICKLE)
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    p.add_argument("--port", type=port, default=8080, help="0 picks a free one (default: %(default)s)")
    p.add_argument("--api-key-file", type=Path, metavar="F", help="keys that clients must send, one a line")
    p.add_argument("--max-body-bytes", type=positive, default=16 * 1024 * 1024, metavar="N",
                   help="largest request body (default: %(default)s)")
    p.add_argument("--max-connections", type=positive, default=4096, metavar="N",
                   help="more are answered 503 (default: %(default)s)")
    p.add_argument("--allowed-hosts", metavar="A,B", type=hosts,
                   help="names that a request's Host may give, or * (default: loopback names when listening on"
                        " loopback, else *)")
    p.add_argument("--cors-origin", metavar="ORIGIN", type=origin,
                   help="let pages of this origin (or *) call the server from a browser")
    p.add_argument("--log-format", choices=("text", "json"), default="text")
    p.add_argument("--no-native", action="store_true", help="serve everything in Python, without compiled code")
    p.add_argument("--engine", choices=("testigo", "onnxruntime"), default="testigo",
                   help="onnxruntime runs ONNX models of operators that the native kernels lack, without the native hot"
                        " path (default: %(default)s)")
    p.add_argument("--sandbox", type=Path, nargs="?", const=sandbox.DEFAULT_PROFILE, metavar="PROFILE",
                   help="once started, refuse this process all system calls but those of an OCI seccomp profile"
                        " (default: what serving needs; no new connections, processes or open files); name MODELs"
                        " before it")
    p.add_argument("--version", action="version", version=f"testigo {kernels.__version__}")
    return p


def port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a number from 0 to 65535")
    return int(text)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)


def origin(text: str) -> str:
    if not re.fullmatch(r"\*|https?://[A-Za-z0-9.\-\[\]:]{1,255}", text):
        raise argparse.ArgumentTypeError("must be * or an origin such as https://app.example")
    return text


def hosts(text: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in text.split(",") if name.strip())


def read_keys(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        keys = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        fail(BAD_FILE, f"--api-key-file {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}")
    if not keys or not all(key.isascii() and key.isprintable() for key in keys):
        fail(BAD_FILE, f"--api-key-file {path}: expected at least one key, each a line of printable ASCII")
    return keys


def is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def native_is_possible() -> bool:
    return sys.platform == "linux"


def main(argv: list[str]) -> None:
    if argv[:1] == ["doctor"]:
        from server import doctor
        Parser(prog="python -m server doctor", description="Say what works on this machine.").parse_args(argv[1:])
        raise SystemExit(doctor.main())
    if argv[:1] == ["warm"]:
        p = Parser(prog="python -m server warm", description="Compile ahead what serving these models needs.")
        p.add_argument("models", nargs="*", metavar="MODEL", help="as for 'python -m server'")
        p.add_argument("--allow-pickle", action="store_true", help=ALLOW_PICKLE)
        asked = p.parse_args(argv[1:])
        from server import warm
        raise SystemExit(warm.main(asked.models, asked.allow_pickle))
    markers.phase("startup")
    options = parser().parse_args(argv)
    if options.models == [sagemaker.COMMAND]:
        options = as_sagemaker(argv)
    serve(options)


def as_sagemaker(argv: list[str]) -> argparse.Namespace:
    """The options of a container that SageMaker starts: its own port and model, and requests from outside."""
    p = parser()
    try:
        p.set_defaults(host="0.0.0.0", port=port(os.environ.get(sagemaker.PORT, "8080")))
        options = p.parse_args(argv)
        options.models = [sagemaker.model(Path(os.environ.get(sagemaker.MODEL, sagemaker.FOLDER)))]
    except argparse.ArgumentTypeError as error:
        fail(2, f"{sagemaker.PORT}: {error}")
    except ModelError as error:
        fail(BAD_FILE, str(error))
    return options


def serve(options: argparse.Namespace) -> None:
    native = native_is_possible() and not options.no_native
    close_sandbox = prepare_sandbox(options.sandbox)
    markers.phase("load")
    application = build_application(options, native)
    listener = bind(options, application, native)
    stop = stop_on_signals()
    markers.phase("warmup")
    all_now = options.sandbox is not None  # which lets nothing be compiled or opened later
    listener.prepare(application.access_log.message, explanations=all_now)
    application.models.warm_up()
    explain_later = prepare_explanations(application, native, all_now)
    allocator.settle()
    if not stop.is_set():
        run(listener, stop, options, close_sandbox, explain_later)


def prepare_explanations(application: "Application", native: bool, now: bool) -> Callable[[], None]:
    """Make explanations ready, or give what does that beside serving: a first start should not wait for compilers."""
    models = application.models
    if native and not now:
        from server import warm
        served = list(models.by_name.values())

        def compile_first() -> None:
            warm.compile_ahead(served, application.access_log.message, explanations=True, nice=warm.NICE)
        if warm.missing_units(served, explanations=True):
            return threading.Thread(target=models.prepare_explanations, args=(compile_first,), daemon=True).start
    models.prepare_explanations()
    return lambda: None


def prepare_sandbox(path: Path | None) -> Callable[[], None]:
    """What sets the sandbox, which is checked as far as it can be before."""
    if path is None:
        return lambda: None
    if reason := sandbox.unsupported():
        fail(NO_SANDBOX, f"--sandbox: {reason}")
    try:
        profile = sandbox.load(path)
        program = sandbox.program(profile)
    except sandbox.ProfileError as error:
        fail(BAD_FILE, f"--sandbox {error}")
    if profile.ignored:
        print(f"server: --sandbox {path}: {len(profile.ignored)} unknown system calls are ignored:"
              f" {', '.join(profile.ignored[:8])}{', …' * (len(profile.ignored) > 8)}", file=sys.stderr)

    def close() -> None:
        try:
            sandbox.enforce(program, profile.flags)
        except sandbox.SandboxError as error:
            print(f"server: error: --sandbox: {error}", file=sys.stderr, flush=True)
            os._exit(NO_SANDBOX)  # the event loops run already, and would keep the process
    return close


def build_application(options: argparse.Namespace, native: bool) -> "Application":
    from server import models
    from server.access_log import AccessLog
    from server.application import Application
    from server.metrics import Metrics

    keys, log = read_keys(options.api_key_file), AccessLog(options.log_format)
    try:
        served = models.load(options.models, native, options.engine, options.allow_pickle, log.message)
    except (ModelError, OSError) as error:
        fail(BAD_FILE, str(error) if isinstance(error, ModelError) else f"{error.filename}: {error.strerror}")
    allowed = options.allowed_hosts
    if allowed is None and is_loopback(options.host):
        allowed = frozenset(LOOPBACK) | {options.host if ":" not in options.host else f"[{options.host}]"}
    return Application(served, Metrics(list(served.by_name)), log, keys=keys,
                       allowed_hosts=None if allowed and "*" in allowed else allowed, cors_origin=options.cors_origin)


def bind(options: argparse.Namespace, application: "Application", native: bool) -> "Listener":
    from server.connection import Limits
    if native:
        from server.native_listener import NativeListener as Kind
    else:
        from server.listener import Listener as Kind  # type: ignore[assignment]
    limits = Limits(max_body_bytes=options.max_body_bytes, max_connections=options.max_connections)
    with failing_to_listen(options):
        listener = Kind(options.host, options.port, application, limits)
    if not is_loopback(options.host) and not application.keys:
        application.access_log.message(
            f"warning: {options.host} is not a loopback address and there is no --api-key-file: whoever reaches this"
            " port may use the models")
    return listener


def run(listener: "Listener", stop: threading.Event, options: argparse.Namespace,
        close_sandbox: Callable[[], None] = lambda: None, explain_later: Callable[[], None] = lambda: None) -> None:
    """Serve until `stop`, then let what is in flight finish."""
    from server.access_log import HotShare
    application = listener.application
    log, metrics = application.access_log, application.metrics
    log_hot_share = HotShare(log, metrics.hot_totals, metrics.shared)
    with failing_to_listen(options):  # another process may have been faster since
        listener.start()
    application.ready = True
    address = f"[{options.host}]" if ":" in options.host else options.host
    close_sandbox()  # not before: what a filter is made from (a trace of serving) holds no listen, and few clones
    markers.phase("serving")
    explain_later()
    print(f"Testigo {kernels.__version__} serves {', '.join(application.models.by_name)} at http://{address}:"
          f"{listener.server_address[1]}", flush=True)
    while not stop.wait(1 - time.time() % 1):
        listener.tick()
        log_hot_share()
    application.ready = False
    log.message("stopping: waiting for requests in flight")
    markers.phase("drain")
    all_done = listener.drain(time.monotonic() + DRAIN_S)
    markers.phase("shutdown")
    log_hot_share()
    if not all_done:
        log.message("stopped with requests in flight")
        os._exit(0)  # the threads that hold them would keep the process


DRAIN_S = 10.0


@contextmanager
def failing_to_listen(options: argparse.Namespace) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fail(CANNOT_LISTEN, f"cannot listen at {options.host} port {options.port}: {error.strerror}")


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM or SIGINT sets; the second one ends the process at once."""
    stop = threading.Event()

    def on_signal(number: int, _frame) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop


if __name__ == "__main__":
    main(sys.argv[1:])
