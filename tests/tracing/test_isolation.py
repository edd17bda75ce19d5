"""A network of its own: nothing leads out of it, loopback works, and whoever started it keeps theirs."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from tracing import isolation
from tracing.errors import TraceError

ROOT = Path(__file__).resolve().parents[2]
CONNECT = """
    import ctypes, errno, os, socket, subprocess, sys
    from ipaddress import IPv4Address
    from tracing import isolation

    def connect(host, port, family=socket.AF_INET):
        with socket.socket(family) as client:
            return client.connect_ex((host, port))
"""


def run(code: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(CONNECT) + textwrap.dedent(code)], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def allowed():
    """Leave all of this out where the kernel makes no namespaces for us."""
    done = subprocess.run([sys.executable, "-c", "from tracing import isolation; isolation.enter()"], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    if "TraceError" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])


def test_other_machines_are_out_of_reach_and_loopback_is_not():
    assert run("""
        isolation.enter()
        assert isolation.is_isolated()
        assert connect("192.0.2.1", 80) == errno.ENETUNREACH
        assert connect("2001:db8::1", 80, socket.AF_INET6) in (errno.ENETUNREACH, errno.EAFNOSUPPORT)
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert connect(*server.getsockname()) == 0
        print("isolated")
    """) == "isolated"


def test_what_it_starts_is_isolated_too():
    code = "import socket; print(socket.socket().connect_ex(('192.0.2.1', 80)))"
    assert run(f"""
        isolation.enter()
        print(subprocess.check_output([sys.executable, "-c", {code!r}], text=True))
    """) == str(errno.ENETUNREACH)


def test_whoever_started_it_keeps_the_network():
    before = os.readlink("/proc/self/ns/net")
    inside = run("isolation.enter(); print(os.readlink('/proc/self/ns/net'))")
    assert inside != before == os.readlink("/proc/self/ns/net")


def test_a_user_without_rights_enters_by_a_user_namespace():
    said = run("""
        if os.geteuid() == 0:
            os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: as a program that this user starts
        uid = os.geteuid()
        try:
            isolation.enter()
        except isolation.TraceError as error:
            print(error)
        else:
            assert os.geteuid() == uid and connect("192.0.2.1", 80) == errno.ENETUNREACH
            print("isolated")
    """)
    if said != "isolated":
        pytest.skip(said)


def test_one_address_can_be_made_ours_and_none_beside_it():
    assert run("""
        isolation.enter()
        isolation.own(IPv4Address("10.1.2.3"), 0)
        with socket.create_server(("10.1.2.3", 0)) as server:
            assert connect(*server.getsockname()) == 0
        assert connect("10.1.2.4", 80) == errno.ENETUNREACH
        print("ours")
    """) == "ours"


def test_threads_would_keep_the_network_so_a_process_with_threads_is_refused():
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    before = os.readlink("/proc/thread-self/ns/net")
    try:
        with pytest.raises(TraceError, match="threads"):
            isolation.enter()
    finally:
        end.set()
        thread.join()
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_a_kernel_that_forbids_it_is_one_clear_line():
    said = run("""
        def refuse(flags):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        isolation._call_unshare = refuse
        try:
            isolation.enter()
        except isolation.TraceError as error:
            print(error)
    """)
    assert said.startswith("cannot make a network namespace (Operation not permitted)")
    assert len(said.splitlines()) == 1


def test_a_process_that_kept_the_network_is_not_isolated_where_an_interface_is_up():
    said = run("""
        isolation._unshare()
        print(isolation.is_isolated())
        isolation._flags = lambda control, name: isolation.IFF_UP
        isolation._interfaces = lambda: ["lo", "eth0"]
        print(isolation.is_isolated())
    """)
    assert said.split() == ["True", "False"]
