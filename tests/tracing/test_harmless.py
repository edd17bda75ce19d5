"""A proof that cries wolf is no proof: real programs that send nothing anywhere pass `sovereign`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is missing")

PYTHON_WORKS = """
import concurrent.futures, glob, os, socket, sqlite3, subprocess, sys, tempfile, threading
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(lambda path: len(open(path, "rb").read()), glob.glob("*.txt"))) > 0
assert subprocess.run(["cat", "fruit.txt"], capture_output=True, check=True).stdout
near, far = socket.socketpair()
threading.Thread(target=far.sendall, args=(b"x" * 10,)).start()
assert near.recv(10, socket.MSG_WAITALL) == b"x" * 10
with tempfile.TemporaryFile() as file:
    file.write(b"x")
with sqlite3.connect(":memory:") as base:
    base.execute("select 1")
"""
MULTIPROCESSING = """
import multiprocessing
if __name__ == "__main__":
    for method in ("fork", "spawn"):
        pool = multiprocessing.get_context(method).Pool(2)
        assert pool.map(abs, [-1, -2]) == [1, 2]
        pool.close()
        pool.join()
"""
ASYNCIO = """
import asyncio
async def main():
    process = await asyncio.create_subprocess_exec("cat", "fruit.txt", stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0]
    await asyncio.to_thread(open, "fruit.txt")
asyncio.run(main())
"""
# The bind of http.server asks for the name of its address: that is DNS where /etc/hosts does not know it.
LOCAL_SERVER = """
import http.client, http.server, os, socket, socketserver, threading
class Quiet(http.server.SimpleHTTPRequestHandler):
    log_message = lambda *_: None
class Server(socketserver.ThreadingTCPServer):
    address_family, daemon_threads = FAMILY, True
server = Server((HOST, 0), Quiet)
port = server.socket.getsockname()[1]
if os.fork() == 0:  # a client in another process
    server.socket.close()
    for _ in range(3):
        client = http.client.HTTPConnection(HOST, port, timeout=20)
        client.request("GET", "/fruit.txt")
        assert client.getresponse().read()
        client.close()
    os._exit(0)
threading.Thread(target=server.serve_forever, daemon=True).start()
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
server.shutdown()
server.server_close()
"""
LOCAL_DATAGRAMS = """
import socket
udp = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
with udp() as here, udp() as there:
    there.bind(("127.0.0.1", 0))
    here.bind(("127.0.0.1", 0))
    here.sendto(b"x", there.getsockname())
    there.sendto(b"y", here.getsockname())
    assert there.recv(9) == b"x" and here.recv(9) == b"y"
"""
PASSES_DESCRIPTORS = """
import os, socket
near, far = socket.socketpair()
inner, outer = socket.socketpair()
if os.fork() == 0:
    near.close()
    _, [fd], _, _ = socket.recv_fds(far, 9, 1)
    os.write(fd, b"through it")
    os._exit(0)
far.close()
socket.send_fds(near, [b"."], [outer.fileno()])
outer.close()
assert inner.recv(99) == b"through it"
os.wait()
"""
UNIX_SERVER = r"""
import os, socket
with socket.socket(socket.AF_UNIX) as server:
    server.bind("\0of-this-test-%d" % os.getpid())
    server.listen()
    if os.fork() == 0:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server.getsockname())
            client.sendall(b"x")
            os._exit(0)
    assert server.accept()[0].recv(9) == b"x"
    os.wait()
"""
SHELL = """
set -e
sort fruit.txt | uniq -c | head -2 > sorted
for i in 1 2 3; do echo "$i" | cat >> sorted; done
(cd / && ls > /dev/null) &
wait
test -s sorted && rm sorted
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


HARMLESS = {  # the first word must exist on this machine
    "ls": ["ls", "-l", "/", "."],
    "sort": ["sort", "-u", "fruit.txt"],
    "python": python("pass"),
    "python at work": python(PYTHON_WORKS),
    "python multiprocessing": python(MULTIPROCESSING),
    "python asyncio": python(ASYNCIO),
    "python sqlite3": python("import sqlite3; sqlite3.connect('base').execute('create table t(x)')"),
    "sqlite3": ["sqlite3", "base", "create table t(x); insert into t values (1); select * from t;"],
    "git log": ["git", "--no-pager", "log", "--stat"],
    "grep": ["grep", "-r", "apple", "."],
    "tar": ["tar", "-cf", "archive.tar", "fruit.txt", "trees.txt"],
    "tar with gzip": ["tar", "-czf", "archive.tar.gz", "fruit.txt"],
    "gzip": ["gzip", "-k", "fruit.txt"],
    "awk": ["awk", "{ n += NF } END { print n }", "fruit.txt"],
    "sha256sum": ["sha256sum", "fruit.txt", "trees.txt"],
    "find": ["find", ".", "-name", "*.txt", "-exec", "wc", "-l", "{}", ";"],
    "perl": ["perl", "-ne", "print if /a/", "fruit.txt"],
    "jq": ["jq", ".fruit", "fruit.json"],
    "sh": ["sh", "-c", SHELL],
    "bash": ["bash", "-c", SHELL],
    "id": ["id"],
    "getent": ["getent", "passwd", "root"],
    "sed": ["sed", "s/a/b/", "fruit.txt"],
    "diff": ["diff", "fruit.txt", "fruit.txt"],
    "make": ["make", "-j2", "-f", "rules", "all"],
    "openssl": ["openssl", "dgst", "-sha256", "fruit.txt"],
}
TALKING_TO_THEMSELVES = {
    "http server and client, IPv4": "HOST, FAMILY = '127.0.0.1', 2\n" + LOCAL_SERVER,
    "http server and client, IPv6": "HOST, FAMILY = '::1', 10\n" + LOCAL_SERVER,
    "datagrams": LOCAL_DATAGRAMS,
    "descriptors passed through a socketpair": PASSES_DESCRIPTORS,
    "server at an abstract name": UNIX_SERVER,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Somewhere to work."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "fruit.txt").write_text("pear\napple\nfig\napple\n")
    (folder / "trees.txt").write_text("oak\n")
    (folder / "fruit.json").write_text('{"fruit": ["apple"]}')
    (folder / "rules").write_text("all: a b\na b:\n\techo $@ > $@\n")
    return folder


def judged(command: list[str], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    recorder = [sys.executable, "-m", "tracing", "run", "--policy", "sovereign", *options]
    inside = ["--out", str(folder.parent / "traces"), "--", "env", "-C", str(folder)]
    return subprocess.run([*recorder, *inside, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def assert_passes(command: list[str], folder: Path, *options: str) -> None:
    done = judged(command, folder, *options)
    assert done.stdout.splitlines()[-1].startswith("PASS sovereign"), done.stdout + done.stderr
    assert done.returncode == 0
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_program_passes(folder, name):
    command = HARMLESS[name]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not on this machine")
    if Path("/run/nscd/socket").exists() and command[0] in ("id", "ls", "getent", "tar", "git", "find"):
        pytest.skip("nscd runs here: a helper that the program asks")
    if command[0] == "git":
        commit_something(folder)
    assert_passes(command, folder)


def commit_something(folder: Path) -> None:
    for words in (["init", "-q"], ["add", "fruit.txt"],
                  ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--no-gpg-sign", "-m", "fruit"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def test_enough_harmless_programs_are_on_this_machine():
    assert len({command[0] for command in HARMLESS.values() if shutil.which(command[0])}) >= 10


@pytest.mark.parametrize("name", TALKING_TO_THEMSELVES)
def test_processes_that_talk_to_each_other_pass(folder, name):
    assert_passes(python(TALKING_TO_THEMSELVES[name]), folder)


@pytest.mark.parametrize("name", ["ls", "python at work", "sh"])
def test_harmless_program_passes_when_all_calls_are_traced(folder, name):
    assert_passes(HARMLESS[name], folder, "--profile", "full")
