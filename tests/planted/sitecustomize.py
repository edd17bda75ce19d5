"""A stranger in the process: a thread that does on command what no server should do. Loaded by Python's own start-up.

The rule to keep: whatever it tries stays on this machine (127.0.0.1), and without the variable PLANTED it does nothing.

PLANTED=<FIFO of commands>:<FIFO of answers>. A command is a line, one of ATTEMPTS and its argument; the answer is
"done" or the name of the error. What an attempt needs beforehand (sockets) is made before any sandbox.
"""

import errno
import mmap
import os
import socket
import threading


def connect(port: str) -> None:
    TCP.connect(("127.0.0.1", int(port)))


def send(port: str) -> None:
    UDP.sendto(b"secret", ("127.0.0.1", int(port)))


def send_message(port: str) -> None:
    UDP.sendmsg([b"secret"], [], 0, ("127.0.0.1", int(port)))


def make_socket(_: str) -> None:
    socket.socket().close()


def bind(_: str) -> None:
    TCP.bind(("127.0.0.1", 0))


def read_file(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def write_file(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))


def execute(_: str) -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def fork(_: str) -> None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def map_code(_: str) -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()


def signal_process(_: str) -> None:
    os.kill(os.getpid(), 0)


ATTEMPTS = {f.__name__: f for f in (connect, send, send_message, make_socket, bind, read_file, write_file, execute,
                                    fork, map_code, signal_process)}


def obey(commands: str, answers: str) -> None:
    with open(os.open(commands, os.O_RDWR), "r") as asked, open(os.open(answers, os.O_RDWR), "w") as answer:
        for line in asked:
            name, _, argument = line.rstrip("\n").partition(" ")
            try:
                ATTEMPTS[name](argument)
                result = "done"
            except OSError as error:
                result = errno.errorcode[error.errno or 0]
            answer.write(result + "\n")
            answer.flush()


if "PLANTED" in os.environ:
    TCP, UDP = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    places = os.environ.pop("PLANTED").split(":")  # the children of this process are left alone
    threading.Thread(target=obey, args=places, daemon=True).start()
