"""The process: what it prints, how it refuses to start, how it stops, and its other commands."""

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernels
from tests import serving
from tests.serving import predict_request, request

pytestmark = pytest.mark.core

HEALTH = request("GET", "/health")
SHORT_DRAIN = (sys.executable, "-c",
               "import sys; from server import __main__; __main__.DRAIN_S = 1.0; __main__.main(sys.argv[1:])")


@pytest.fixture(params=[True, False], ids=["native", "python"])
def own(request: pytest.FixtureRequest) -> Iterator[serving.Server]:
    """A server for one test, which may stop it; it waits at most a second for requests in flight."""
    with serving.start(native=request.param, command=SHORT_DRAIN) as server:
        yield server


def begin_to_stop(server: serving.Server, number: int = signal.SIGTERM) -> None:
    server.process.send_signal(number)
    serving.wait_for(lambda: "stopping" in server.stderr_text())


# --- output -------------------------------------------------------------------------------------

def test_stdout_is_one_line_with_the_address(own):
    own.ask(predict_request())
    own.ask(b"\0")
    assert re.fullmatch(r"[^\n]*http://127\.0\.0\.1:[1-9]\d*\n", own.first_line)
    assert own.stop() == 0
    assert own.process.stdout.read() == b""


def test_text_log_has_a_line_a_request(server):
    server.ask(request("GET", "/nothing", headers={"X-Request-Id": 'a "b" c'}))
    server.ask(request("GET", "/health"))
    lines = server.stderr_text().splitlines()
    assert re.fullmatch(r'\S+Z request client=127\.0\.0\.1 method=GET path=/nothing status=404 ms=[\d.]+'
                        r' request_id="a \\"b\\" c"', lines[-2])
    assert " method=GET path=/health status=200 " in lines[-1]


def test_log_holds_no_body_query_or_key(server):
    for data in (request("GET", "/health?secret-value"), request("POST", "/v1/predict", b"secret-value"),
                 request("GET", "/health", headers={"Authorization": "Bearer secret-value"})):
        server.ask(data)
    assert "secret-value" not in server.stderr_text()


@pytest.mark.parametrize("native", [True, False])
def test_json_log_is_one_object_a_line(native):
    with serving.start("--log-format", "json", native=native) as server:
        server.ask(request("GET", "/nothing", headers={"X-Request-Id": 'caf\xe9 "\t'}))
        server.ask(b"\0")
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.stderr_text().splitlines()]
    requests = [line for line in lines if line["kind"] == "request"]
    assert [(line["path"], line["status"]) for line in requests] == [("/nothing", 404), ("-", 400)]
    assert requests[0]["request_id"] == 'caf\xe9 "'
    assert all(line["time"].endswith("Z") for line in lines)


def test_share_of_the_hot_path_is_logged_to_the_last_request():
    with serving.start("--log-format", "json") as server:
        with server.connect() as client:
            for _ in range(7):
                client.ask(predict_request([[1, 2, 3, 4, 5]] * 3))
        serving.wait_for(lambda: "hot_path" in server.stderr_text())
        with server.connect() as client:
            for _ in range(5):
                client.ask(predict_request())
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.stderr_text().splitlines()]
    shares = [line for line in lines if line["kind"] == "hot_path"]
    assert sum(line["requests"] for line in shares) == 12 and sum(line["rows"] for line in shares) == 26


@pytest.mark.parametrize("with_key", [False, True])
def test_address_beyond_loopback_without_a_key_warns(tmp_path, with_key):
    keys = tmp_path / "keys"
    keys.write_text("key\n")
    with serving.start("--host", "0.0.0.0", *(["--api-key-file", keys] if with_key else []), native=False) as server:
        assert ("warning" in server.stderr_text()) is not with_key
        assert "http://0.0.0.0:" in server.first_line and server.ask(HEALTH).status == 200


@pytest.mark.parametrize("native", [True, False])
def test_ipv6_address_is_served_and_printed_in_brackets(native):
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with serving.start("--host", "::1", native=native) as server:
        assert server.url.startswith("http://[::1]:")
        for host in ("[::1]", "localhost", f"[::1]:{server.port}"):
            assert server.ask(request("GET", "/health", headers={"Host": host})).status == 200
            assert server.ask(predict_request(headers={"Host": host})).status == 200


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


# --- refusals to start --------------------------------------------------------------------------

def check_refused(status: int, *args: str | Path, says: str = "") -> None:
    """The command ends with this status, one line on stderr, and nothing on stdout."""
    result = serving.run(*args)
    assert (result.returncode, result.stdout) == (status, "")
    assert re.fullmatch(r"server: error: [^\n]+\n", result.stderr) and says in result.stderr


@pytest.mark.parametrize("args", [
    ("--port", "65536"), ("--port", "-1"), ("--port", "http"), ("--port",), ("--max-body-bytes", "0"),
    ("--max-connections", "x"), ("--log-format", "xml"), ("--engine", "x"), ("--unknown",), ("--host",),
])
def test_bad_option_is_one_line_and_status_2(args):
    check_refused(2, *args)


@pytest.mark.parametrize("native", [[], ["--no-native"]], ids=["native", "python"])
def test_port_in_use_is_one_line_and_status_4(server, native):
    check_refused(4, "--port", str(server.port), *native, says=str(server.port))


def test_port_taken_while_the_server_starts_is_one_line_and_status_4():
    """Both can bind a port at which nobody listens yet; only one can listen."""
    code = ("import socket, sys; from server import __main__, listener\n"
            "def prepare(self, progress, explanations):\n"
            "    global other; other = socket.socket()\n"
            "    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
            "    other.bind(self.server_address); other.listen()\n"
            "listener.Listener.prepare = prepare; __main__.main(sys.argv[1:])")
    result = serving.run("--port", "0", "--no-native", command=(sys.executable, "-c", code))
    assert (result.returncode, result.stdout) == (4, "")
    assert re.fullmatch(r"server: error: [^\n]+\n", result.stderr)


def test_address_of_another_machine_is_status_4():
    check_refused(4, "--host", "192.0.2.1", "--port", "0", says="192.0.2.1")


def test_unreadable_model_is_one_line_and_status_3(tmp_path):
    garbage, cut = tmp_path / "garbage.gguf", tmp_path / "cut.gguf"
    garbage.write_bytes(b"not a model")
    cut.write_bytes(kernels.DEFAULT_MODEL.read_bytes()[:200])
    for path in (tmp_path / "missing.gguf", tmp_path, garbage, cut):
        check_refused(3, path, says=path.name)


def test_two_models_of_one_name_are_status_3():
    check_refused(3, kernels.DEFAULT_MODEL, kernels.DEFAULT_MODEL, says="fraud-detector")


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe", "schlüssel".encode(), b"a\0b"])
def test_bad_key_file_is_one_line_and_status_3(tmp_path, content):
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    check_refused(3, "--api-key-file", path, says="--api-key-file")


# --- stopping -----------------------------------------------------------------------------------

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_what_is_in_flight_and_exits_0(own, number):
    data = predict_request()
    with own.connect() as first, own.connect() as second, own.connect() as third, own.connect() as idle:
        assert idle.ask(HEALTH).status == 200
        first.send(data[:20])
        second.send(data[:-1])
        third.send(HEALTH[:-1])
        assert idle.ask(HEALTH).status == 200  # the others were accepted and read before
        begin_to_stop(own, number)
        assert idle.is_closed()
        for client, rest in ((first, data[20:]), (second, data[-1:]), (third, HEALTH[-1:])):
            response = client.ask(rest)
            assert response.status == 200 and response.headers["Connection"] == "close"
            assert client.is_closed()
    assert own.wait() == 0
    assert "Traceback" not in own.stderr_text()


def test_ready_says_503_while_the_server_stops(own):
    data = request("GET", "/ready")
    with own.connect() as client:
        assert client.ask(data).status == 200
        client.send(data[:-1])
        assert own.ask(HEALTH).status == 200
        begin_to_stop(own)
        response = client.ask(data[-1:])
        assert (response.status, response.code) == (503, "not_ready") and "Retry-After" in response.headers


def test_new_connections_are_refused_while_the_server_stops(own):
    with own.connect() as client:
        client.send(b"GET /")
        assert own.ask(HEALTH).status == 200
        begin_to_stop(own)
        serving.wait_for(lambda: is_refused(own))
        assert client.ask(b"health HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 200
    assert own.wait() == 0


def is_refused(server: serving.Server) -> bool:
    try:
        with server.connect():
            return False
    except ConnectionError:
        return True


def test_request_that_never_ends_does_not_stop_the_server_from_stopping(own):
    with own.connect() as head, own.connect() as body:
        head.send(b"GET /")
        body.send(predict_request()[:-1])
        assert own.ask(HEALTH).status == 200
        begin_to_stop(own)
        assert own.wait() == 0


@pytest.mark.parametrize("native", [True, False])
def test_second_signal_exits_at_once(native):
    """The client of the request in flight would have had ten seconds."""
    with serving.start(native=native) as server, server.connect() as client:
        client.send(b"GET /")
        assert server.ask(HEALTH).status == 200
        begin_to_stop(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(5) == 128 + signal.SIGTERM


def test_signal_before_the_server_serves_exits_0_and_prints_no_address():
    code = ("import os, signal, sys; from server import __main__, listener\n"
            "listener.Listener.prepare = lambda self, progress, explanations: os.kill(os.getpid(), signal.SIGTERM)\n"
            "__main__.main(sys.argv[1:])")
    result = serving.run("--port", "0", "--no-native", command=(sys.executable, "-c", code))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# --- other commands -----------------------------------------------------------------------------

@pytest.mark.parametrize("args", [(), ("doctor",), ("warm",)])
def test_help_says_what_there_is(args):
    result = serving.run(*args, "--help")
    assert (result.returncode, result.stderr) == (0, "") and "usage: python -m server" in result.stdout


def test_version_is_the_packages():
    assert serving.run("--version").stdout == f"testigo {kernels.__version__}\n"


def test_doctor_says_what_works():
    result = serving.run("doctor")
    assert (result.returncode, result.stderr) == (0, "")
    for name in ("Linux", "AVX2", "numba", "gguf", "strace"):
        assert re.search(rf"^  (active |missing)  {name}: ", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("requests are served by native code\n")


def test_doctor_takes_no_arguments():
    check_refused(2, "doctor", "x")
