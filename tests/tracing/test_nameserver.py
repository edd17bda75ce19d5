"""The name server of an isolated process: what it understands, and that the resolver takes its answers."""

import subprocess
import sys
import textwrap
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracing.nameserver import NameServer, Question, answer, question_of, servers
from tracing.errors import TraceError

ROOT = Path(__file__).resolve().parents[2]
QUERY = bytes.fromhex("abcd 0100 0001 0000 0000 0000") + b"\x04Host\x07example\x00" + bytes.fromhex("0001 0001")
ADDRESS = IPv4Address("192.0.2.1")


def test_question_is_read():
    assert question_of(QUERY) == Question("host.example", 1, QUERY[12:])
    assert question_of(QUERY + b"additional") == Question("host.example", 1, QUERY[12:])


@pytest.mark.parametrize("length", range(len(QUERY)))
def test_cut_question_is_none(length):
    assert question_of(QUERY[:length]) is None


def test_answers_are_no_questions():
    assert question_of(QUERY[:2] + b"\x81" + QUERY[3:]) is None


@given(st.binary(max_size=80))
def test_any_bytes_are_a_question_or_none(data):
    question = question_of(data)
    if question is not None:
        assert answer(data, question, ADDRESS)[:2] == data[:2]


def test_answer_gives_the_address():
    told = answer(QUERY, question_of(QUERY), ADDRESS)
    assert told[:12] == bytes.fromhex("abcd 8180 0001 0001 0000 0000")
    assert told[12:12 + len(QUERY) - 12] == QUERY[12:]
    assert told[len(QUERY):] == bytes.fromhex("c00c 0001 0001 00000000 0004") + ADDRESS.packed


def test_other_types_have_no_answer_and_unknown_names_do_not_exist():
    ipv6 = QUERY[:-4] + bytes.fromhex("001c 0001")
    assert answer(ipv6, question_of(ipv6), ADDRESS)[2:8] == bytes.fromhex("8180 0001 0000")
    assert answer(QUERY, question_of(QUERY), None)[2:8] == bytes.fromhex("8183 0001 0000")


@pytest.mark.parametrize("text, expected", [
    ("# comment\nsearch example\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.2\n", ["10.0.0.2", "10.0.0.3"]),
    ("nameserver 2001:db8::1\nnameserver 10.0.0.999\n", ["127.0.0.1"]), ("", ["127.0.0.1"])])
def test_servers_of_resolv_conf(text, expected):
    assert servers(text) == [IPv4Address(each) for each in expected]


def test_it_does_not_run_in_the_network_of_this_machine(monkeypatch):
    monkeypatch.setattr("tracing.isolation.is_isolated", lambda: False)
    with pytest.raises(TraceError, match="isolated"):
        NameServer.of_this_machine()


def test_resolver_takes_its_answers_and_names_are_remembered():
    code = textwrap.dedent("""
        import errno, socket
        from tracing import isolation
        from tracing.nameserver import NameServer

        try:
            isolation.enter()
        except isolation.TraceError as error:
            print("SKIP", error)
            raise SystemExit
        with NameServer.of_this_machine() as server:
            for name in "one.example", "two.example", "one.example":
                with socket.socket() as client:
                    assert client.connect_ex((name, 443)) == errno.ENETUNREACH
            try:
                socket.gethostbyaddr("192.0.2.9")
            except socket.herror:
                pass
            print(*[f"{name}={address}" for name, address in server.names.items()])
            server.forget()
            assert not server.names
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("SKIP"):
        pytest.skip(done.stdout)
    assert done.stdout.split() == ["one.example=192.0.2.1", "two.example=192.0.2.2", "9.2.0.192.in-addr.arpa=None"]
