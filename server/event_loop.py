"""Connections in native code: accept, wait, receive, answer, send, hand over, close.

Two kinds of thread serve connections, and each connection has exactly one holder at a time:

- an **event loop** (one a core, `run_loop`) waits for all its connections with one epoll and answers what is
  ready: under load one `epoll_wait` brings many requests, and idle connections cost 100 bytes each;
- a **worker** (`serve_owned`) holds a single connection and blocks in `recv`. It gets a connection for what the
  loop must not wait for (Python's requests, long bodies, clients that read slowly), and also when a connection has
  been the only busy one for a while: then a request costs `recv` and `send` and nothing else.

The rule to keep: whoever holds a connection is the only one to touch its row; giving it away
(a write to the queue, `epoll_ctl`) is the last thing that the holder does with it.

Why not a thread a connection: measured at 256 connections on one core, the scheduler's order makes p99 two
to three times that of one loop, and each request pays a switch between threads.
"""

import ctypes

from numba import from_dtype, types

from kernels.compiled import cfunc, inner
from kernels.simd import caller_of
from server import hotpath
from server.hotpath import ANSWERED, FAILED, INCOMPLETE_BODY, INCOMPLETE_HEAD, SLOW, bytes_of, int64s_of
from server.layout import (
    BODY, CLOSING, CONNECTION, CONNECTIONS, COUNTS, EVENTS, FLUSH_BYTES, FREE, HEAD, IDLE, IDLE_WORKERS, LINGERING,
    LOOP, LOOP_LOADS, MAX_EVENTS, OVERLOADED, OWNED, REFUSAL, REFUSED, SHARED, TIMED_OUT, TIMEOUTS,
    TURNED_AWAY, WATCHED, WORK,
)
from server.libc import (
    CLOCK_MONOTONIC, EAGAIN, EINTR, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLIN, EVENT_DATA, EVENT_INTS, MSG_DONTWAIT,
    MSG_NOSIGNAL, SHUT_WR, SOCK_CLOEXEC, accept4, atomic_add, close, epoll_ctl, epoll_wait, errno, free,
    malloc, memcpy, memmove, now_ns, read, recv, send, shutdown, usleep, view_of, write,
)
from server.memory import address_of, put_span

# What `serve_owned` gives back to Python.
GONE, PYTHON, LARGE, LATE = range(4)  # closed or back in its loop; a request for it; a larger buffer; an error 408

SOLO_REQUESTS = 16  # a connection that was the only busy one for so many requests moves to a worker
SWEEP_NS = 10_000_000_000  # deadlines are looked at this often, or when the next one is due
NEVER_NS = 1 << 62
DRAIN_LOOK_MS = 50
ACCEPTS_A_TURN = 64

connections_of, loops_of, refusals_of = view_of(CONNECTION), view_of(LOOP), view_of(REFUSAL)
int32s_of = view_of("i4")
call_answer = caller_of(hotpath.SIGNATURE.return_type, *hotpath.SIGNATURE.args)


# --- one connection -----------------------------------------------------------------------------

@inner
def save(address_from, n):
    """A copy of n bytes in memory of their own → its address; 0 for nothing, or when there is no memory."""
    if n == 0:
        return 0
    address = malloc(n)
    if address != 0:
        memcpy(address, address_from, n)
    return address


@inner
def restore(connection, work):
    """Move a connection's saved bytes to the front of `received` → how many; it must hold them (see `hand_over`)."""
    n = connection.saved_bytes
    if n:
        memcpy(work.received.at, connection.saved, n)
        free(connection.saved)
        connection.saved, connection.saved_bytes = 0, 0
    return n


@inner
def close_connection(shared, fd):
    connection = connections_of(shared.connections)[fd]
    if connection.saved:
        free(connection.saved)
    if connection.unsent:
        free(connection.unsent)
    connection.saved, connection.saved_bytes, connection.unsent, connection.unsent_bytes = 0, 0, 0, 0
    connection.state = FREE
    gauges = int64s_of(shared.gauges)
    atomic_add(gauges, LOOP_LOADS + connection.loop, -1)
    if connection.phase != TURNED_AWAY:
        atomic_add(gauges, CONNECTIONS, -1)
    close(fd)  # last: the number may belong to a new connection at once


@inner
def watch(shared, work, fd):
    """Let a connection's event loop wait for it, as its holder from now on; close it where the system has no room."""
    connection = connections_of(shared.connections)[fd]
    loop, deadline_ns = loops_of(shared.loops)[connection.loop], connection.deadline_ns
    interest = work.interest
    interest[0] = EPOLLIN
    interest[EVENT_DATA], interest[EVENT_DATA + 1] = fd, 0
    if epoll_ctl(loop.epoll, EPOLL_CTL_ADD, fd, address_of(interest)) < 0:
        close_connection(shared, fd)
    elif deadline_ns < loop.sweep_ns:  # it sleeps for longer than this connection may be silent
        work.clock[0] = 1
        write(loop.wake, address_of(work.clock), 8)


@inner
def enter_phase(shared, work, connection, phase):
    """Note that a request waits for more bytes; a new phase starts a new deadline."""
    if phase == connection.phase and phase != IDLE:
        return
    allowed_ns = shared.idle_ns if phase == IDLE else shared.head_ns if phase == HEAD else shared.body_ns
    connection.phase = phase
    connection.deadline_ns = now_ns(CLOCK_MONOTONIC, work.clock) + allowed_ns


@inner
def linger(shared, work, fd):
    """Say that no more is coming, then wait a little for the client to close: a reset would take the answer with it."""
    connection = connections_of(shared.connections)[fd]
    shutdown(fd, SHUT_WR)
    connection.deadline_ns = now_ns(CLOCK_MONOTONIC, work.clock) + shared.linger_ns
    connection.state = LINGERING


@inner
def send_refusal(shared, work, fd, which):
    """Send a ready-made response; its loss (a full socket buffer) is the loss of an error message only."""
    refusal = refusals_of(shared.refusals)[which]
    response = bytes_of(work.response)
    put_span(response, 0, bytes_of(shared.text), refusal.text)
    hotpath.put_date(shared, response, refusal.date_at)
    send(fd, work.response.at, refusal.text.length, MSG_DONTWAIT | MSG_NOSIGNAL)


@inner
def answer_all(shared, work, n, fd, flags):
    """Answer the complete requests in received[0:n] and send the answers.

    → (outcome, start of what is left, end of an incomplete request, keep-alive, unsent bytes or -1).
    The outcome is that of the first request that was not answered; ANSWERED when nothing is left. A
    positive number of unsent bytes stands at the front of `response`; -1: the client is gone.
    """
    at, out, place, keep_alive, outcome = 0, 0, 0, True, ANSWERED
    while at < n and keep_alive:
        outcome = call_answer(shared.answer, (shared, work, at, n, out))
        place = work.result[0]
        if outcome != ANSWERED:
            break
        out, keep_alive, at = work.result[1], work.result[2] != 0, place
        if out >= FLUSH_BYTES:
            out = flush(shared, work, fd, out, flags)
            if out != 0:
                return outcome, at, place, keep_alive, out
    if out:
        out = flush(shared, work, fd, out, flags)
    if outcome == FAILED:
        outcome = SLOW
    return outcome, at, place, keep_alive, out


@inner
def flush(shared, work, fd, n, flags):
    """Send response[0:n] → the bytes that the socket would not take, moved to the front; -1 when the client is gone.

    Without MSG_DONTWAIT it waits for a client that reads slowly, but no longer than `send_ns` in all.
    """
    sent, start_ns = 0, 0
    while sent < n:
        r = send(fd, work.response.at + sent, n - sent, flags | MSG_NOSIGNAL)
        if r < 0:
            reason = errno()
            if reason == EINTR:
                continue
            if reason != EAGAIN or flags == 0:  # without DONTWAIT: the send deadline has passed
                return -1
            memmove(work.response.at, work.response.at + sent, n - sent)
            return n - sent
        sent += r
        if sent < n and flags == 0:
            now = now_ns(CLOCK_MONOTONIC, work.clock)
            start_ns = start_ns or now
            if now - start_ns > shared.send_ns:
                return -1
    return 0


# --- event loop ---------------------------------------------------------------------------------

@inner
def hand_over(shared, work, fd, at, n, unsent):
    """Give a connection with received[at:n] and response[0:unsent] to a worker."""
    connection = connections_of(shared.connections)[fd]
    connection.saved = save(work.received.at + at, n - at)
    connection.unsent = save(work.response.at, unsent)
    if (n > at and connection.saved == 0) or (unsent and connection.unsent == 0):
        close_connection(shared, fd)  # out of memory
        return
    connection.saved_bytes, connection.unsent_bytes = n - at, unsent
    connection.state = OWNED
    epoll_ctl(loops_of(shared.loops)[connection.loop].epoll, EPOLL_CTL_DEL, fd, 0)
    work.clock[0] = fd
    write(shared.queue_in, address_of(work.clock), 4)


@inner
def serve_ready(shared, work, fd):
    """Serve a connection that epoll reports → whether it answered and is idle again."""
    connection = connections_of(shared.connections)[fd]
    size = work.received.length
    if connection.state == LINGERING:
        r = recv(fd, work.received.at, size, MSG_DONTWAIT)
        if r == 0 or (r < 0 and errno() != EAGAIN):
            close_connection(shared, fd)
        return False
    n = restore(connection, work)
    r = recv(fd, work.received.at + n, size - n, MSG_DONTWAIT)
    if r <= 0:
        if r == 0 or (errno() != EAGAIN and errno() != EINTR) or not keep(shared, work, fd, 0, n):
            close_connection(shared, fd)
        return False
    n += r
    outcome, at, place, keep_alive, unsent = answer_all(shared, work, n, fd, MSG_DONTWAIT)
    if unsent < 0:
        close_connection(shared, fd)
    elif unsent > 0 and not keep_alive:
        connection.phase = CLOSING
        hand_over(shared, work, fd, n, n, unsent)
    elif unsent > 0 or outcome == SLOW or (outcome == INCOMPLETE_BODY and place - at > size):
        hand_over(shared, work, fd, at, n, unsent)
    elif not keep_alive:
        linger(shared, work, fd)
    else:
        if at > 0:
            connection.phase = IDLE  # what is left belongs to another request, with a deadline of its own
        enter_phase(shared, work, connection,
                    HEAD if outcome == INCOMPLETE_HEAD else BODY if outcome == INCOMPLETE_BODY else IDLE)
        if keep(shared, work, fd, at, n):
            return outcome == ANSWERED
        close_connection(shared, fd)
    return False


@inner
def keep(shared, work, fd, at, n):
    """Keep received[at:n] until more of the request comes → whether there was memory for it."""
    connection = connections_of(shared.connections)[fd]
    connection.saved = save(work.received.at + at, n - at)
    connection.saved_bytes = n - at if connection.saved else 0
    return connection.saved_bytes == n - at


@inner
def accept_ready(shared, work):
    """Accept what waits; each connection goes to the event loop that has the fewest."""
    connections, loops, gauges = (
        connections_of(shared.connections), loops_of(shared.loops), int64s_of(shared.gauges))
    for _ in range(ACCEPTS_A_TURN):
        fd = accept4(shared.listener, 0, 0, SOCK_CLOEXEC)
        if fd < 0:
            reason = errno()
            if reason != EAGAIN and reason != EINTR:
                usleep(10_000)  # no descriptors or memory: what is open must be served first
            return
        if fd >= connections.size:
            atomic_add(gauges, REFUSED, 1)
            send_refusal(shared, work, fd, OVERLOADED)
            close(fd)
            continue
        loop = 0
        for i in range(1, loops.size):
            if gauges[LOOP_LOADS + i] < gauges[LOOP_LOADS + loop]:
                loop = i
        connection = connections_of(shared.connections)[fd]
        enter_phase(shared, work, connection, IDLE)
        connection.loop, connection.state = loop, WATCHED
        atomic_add(gauges, LOOP_LOADS + loop, 1)
        if atomic_add(gauges, CONNECTIONS, 1) >= shared.max_connections:
            atomic_add(gauges, CONNECTIONS, -1)
            atomic_add(gauges, REFUSED, 1)
            connection.phase = TURNED_AWAY
            send_refusal(shared, work, fd, OVERLOADED)
            linger(shared, work, fd)
        watch(shared, work, fd)


@inner
def sweep(shared, work, loop, now):
    """Close what is past its deadline, in this loop → when to look again. While draining, the idle go too."""
    connections, epoll = connections_of(shared.connections), loops_of(shared.loops)[loop].epoll
    next_ns = now + SWEEP_NS
    for fd in range(connections.size):
        connection = connections[fd]
        if connection.loop != loop or (connection.state != WATCHED and connection.state != LINGERING):
            continue
        idle = connection.state == WATCHED and connection.phase == IDLE
        if connection.deadline_ns > now and not (idle and shared.draining):
            next_ns = min(next_ns, connection.deadline_ns)
        elif epoll_ctl(epoll, EPOLL_CTL_DEL, fd, 0) < 0:
            continue  # it is still, or again, in the hands of another thread: only what is in the epoll is ours
        elif connection.state == LINGERING or idle:
            close_connection(shared, fd)
        else:
            atomic_add(int64s_of(shared.gauges), TIMEOUTS, 1)
            send_refusal(shared, work, fd, TIMED_OUT)
            linger(shared, work, fd)
            next_ns = min(next_ns, connection.deadline_ns)
            watch(shared, work, fd)
    return next_ns


def run_loop(shared, work, loop):
    """Serve connections until the server drains and none is left."""
    this = loops_of(shared.loops)[loop]
    gauges, counts, events = int64s_of(shared.gauges), int64s_of(shared.counts), int32s_of(work.events)
    last_fd, streak, sweep_ns, stopped = -1, 0, 0, False
    while True:
        now = now_ns(CLOCK_MONOTONIC, work.clock)
        if shared.draining and not stopped:
            epoll_ctl(this.epoll, EPOLL_CTL_DEL, shared.listener, 0)
            stopped, sweep_ns = True, 0
        if now >= sweep_ns:
            this.sweep_ns = NEVER_NS  # who gives a connection back meanwhile, and unseen, wakes us
            sweep_ns = sweep(shared, work, loop, now)
        wait_ms = -1
        if gauges[LOOP_LOADS + loop] > 0:
            wait_ms = (sweep_ns - now) // 1_000_000 + 1
        if stopped:
            if gauges[LOOP_LOADS + loop] == 0:
                return 0
            wait_ms, sweep_ns = min(wait_ms, DRAIN_LOOK_MS), 0
        this.sweep_ns = sweep_ns if wait_ms >= 0 else NEVER_NS
        n = epoll_wait(this.epoll, address_of(events), MAX_EVENTS, wait_ms)
        for i in range(n):
            fd = events[i * EVENT_INTS + EVENT_DATA]
            if fd == shared.listener:
                accept_ready(shared, work)
            elif fd == this.wake:
                sweep_ns = 0
            else:
                counts[work.thread * COUNTS + EVENTS] += 1
                idle = serve_ready(shared, work, fd)
                sweep_ns = min(sweep_ns, connections_of(shared.connections)[fd].deadline_ns)
                streak = streak + 1 if fd == last_fd and n == 1 else 0
                last_fd = fd
                if idle and streak >= SOLO_REQUESTS and gauges[IDLE_WORKERS] > 0:
                    streak = 0
                    hand_over(shared, work, fd, 0, 0, 0)


# --- worker -------------------------------------------------------------------------------------

def take(shared, work):
    """Wait for a connection that an event loop hands over → its descriptor, or -1 when the server stops."""
    gauges = int64s_of(shared.gauges)
    atomic_add(gauges, IDLE_WORKERS, 1)
    while True:
        r = read(shared.queue_out, address_of(work.clock), 4)
        if r >= 0 or errno() != EINTR:
            break
    atomic_add(gauges, IDLE_WORKERS, -1)
    return work.clock[0] & 0xFFFFFFFF if r == 4 else -1


def begin(shared, work, fd):
    """Take up a connection that was handed over: send what is unsent → bytes in `received`; -1: there is no more to do.

    The buffers are at least as large as the event loop's, from which these bytes came.
    """
    connection = connections_of(shared.connections)[fd]
    if connection.unsent_bytes:
        n = connection.unsent_bytes
        memcpy(work.response.at, connection.unsent, n)
        free(connection.unsent)
        connection.unsent, connection.unsent_bytes = 0, 0
        if flush(shared, work, fd, n, 0) != 0:
            close_connection(shared, fd)
            return -1
    if connection.phase == CLOSING:
        leave(shared, work, fd)
        return -1
    return restore(connection, work)


@inner
def give_back(shared, work, fd, n):
    """Return a connection with received[0:n] to its event loop, whose buffer must hold them."""
    connection = connections_of(shared.connections)[fd]
    if n == 0:
        enter_phase(shared, work, connection, IDLE)
    if (n == 0 and shared.draining) or not keep(shared, work, fd, 0, n):
        close_connection(shared, fd)
        return
    connection.state = WATCHED
    watch(shared, work, fd)


def serve_owned(shared, work, fd, n, loop_bytes):
    """Serve a held connection, received[0:n] being there already → what Python must do; in work.result: the bytes
    in `received`, and how large it must be.

    The connection goes back to its event loop when it falls silent or when others there are busy;
    `loop_bytes` is the size of a loop's buffer.
    """
    connection = connections_of(shared.connections)[fd]
    counts = int64s_of(shared.counts)
    seen = counts[connection.loop * COUNTS + EVENTS]
    size = work.received.length
    while True:
        outcome, at, place, keep_alive, unsent = answer_all(shared, work, n, fd, 0)
        needed = place - at
        n -= at
        if at and n:
            memmove(work.received.at, work.received.at + at, n)
        work.result[0], work.result[1] = n, needed
        if unsent != 0:
            close_connection(shared, fd)
            return GONE
        if outcome == SLOW:
            connection.phase = IDLE  # Python has deadlines of its own
            return PYTHON
        if not keep_alive:
            leave(shared, work, fd)
            return GONE
        if outcome == INCOMPLETE_BODY and needed > size:
            return LARGE
        if n == 0:
            if counts[connection.loop * COUNTS + EVENTS] != seen or shared.draining:
                give_back(shared, work, fd, 0)
                return GONE
            connection.phase = IDLE
        else:
            if at > 0:
                connection.phase = IDLE  # as in serve_ready
            enter_phase(shared, work, connection, HEAD if outcome == INCOMPLETE_HEAD else BODY)
        r = -1
        while r < 0:
            r = recv(fd, work.received.at + n, size - n, 0)
            if r < 0:
                reason = errno()
                if reason == EAGAIN and n < loop_bytes and (outcome != INCOMPLETE_BODY or needed <= loop_bytes):
                    give_back(shared, work, fd, n)
                    return GONE
                if reason != EAGAIN and reason != EINTR:
                    r = 0
            if r != 0 and n and now_ns(CLOCK_MONOTONIC, work.clock) > connection.deadline_ns:
                return LATE
        if r == 0:
            close_connection(shared, fd)
            return GONE
        n += r


@inner
def leave(shared, work, fd):
    """Close a held connection after its last answer, with the event loop to wait for the client's own close."""
    linger(shared, work, fd)
    watch(shared, work, fd)
    return 0


# --- for Python ---------------------------------------------------------------------------------

# The functions that Python calls, (Shared, Work, so many numbers) → int64; neighbours share the most functions.
ENTRIES = {"leave": (leave.py_func, 1), "take": (take, 0), "begin": (begin, 1), "serve_owned": (serve_owned, 3),
           "run_loop": (run_loop, 1)}


def compile_entry(name: str):
    """One of ENTRIES as a C function, compiled or from the cache."""
    function, n_numbers = ENTRIES[name]
    return cfunc(types.int64(from_dtype(SHARED), from_dtype(WORK), *[types.intp] * n_numbers))(function)


class Native:
    """The compiled functions, for Python to call with the addresses of a `Shared` and a `Work`; none holds the GIL."""

    def __init__(self) -> None:
        units = {name: hotpath.compile_unit(name) for name in hotpath.UNITS}
        self.addresses = {name: unit.address for name, unit in units.items()}  # fields of SHARED
        self.answer_address = self.addresses["answer"]
        entries = {name: compile_entry(name) for name in ENTRIES}
        self._kept = [*units.values(), *entries.values()]
        self.run_loop, self.serve_owned, self.take, self.begin, self.leave = (
            _callable(entries[name]) for name in ("run_loop", "serve_owned", "take", "begin", "leave"))


def _callable(compiled):
    numbers = [ctypes.c_int64] * len(compiled._sig.args)
    return ctypes.CFUNCTYPE(ctypes.c_int64, *numbers)(compiled.address)
