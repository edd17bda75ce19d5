"""Calls in their context: phases, requests, and what is missing from the evidence."""

import pytest

from tests.tracing.traces import PID, Inherited, Lines, inet
from tracing.errors import TraceError
from tracing.phases import Request
from tracing.replay import Replay, Step

pytestmark = pytest.mark.core


def replay(lines: Lines, path, **changed) -> tuple[list[Step], list[Request], list[str], Replay]:
    played = Replay(lines.write(path / "a.trace", **changed))
    events = list(played)
    return ([event for event in events if isinstance(event, Step)], [event for event in events if isinstance(event, Request)],
            played.reasons(), played)


# --- phases -------------------------------------------------------------------------------------

def test_program_without_markers_is_one_phase(tmp_path):
    steps, _, reasons, _ = replay(Lines().start().call("getpid() = 1").end(), tmp_path)
    assert {step.phase for step in steps} == {"serving"} and not reasons


def test_call_belongs_to_the_phase_in_which_it_was_entered(tmp_path):
    lines = (Lines().start().call("getpid() = 1").phase("load").call("getppid() = 1").raw("read(0,  <unfinished ...>", PID + 1)
             .phase("serving").call("getuid() = 0").raw('<... read resumed>"", 9) = 0 <0.1>', PID + 1).end()
             .raw("+++ exited with 0 +++", PID + 1))
    steps, _, reasons, played = replay(lines, tmp_path)
    assert {step.call.name: step.phase for step in steps} == {
        "execve": "startup", "getpid": "startup", "getppid": "load", "read": "load", "getuid": "serving", "exit_group": "serving"}
    assert [phase.name for phase in played.phases] == ["startup", "load", "serving"] and not reasons


def test_markers_are_no_steps(tmp_path):
    steps, _, _, _ = replay(Lines().start().phase("serving").end(), tmp_path)
    assert [step.call.name for step in steps] == ["execve", "exit_group"]


@pytest.mark.parametrize("lines, reason", [
    (Lines().start().phase("load").phase("load"), "marked after"),
    (Lines().start().phase("serving").phase("load"), "marked after"),
    (Lines().start().phase("lunch"), "unknown phase"),
    (Lines().start().phase("load"), "none was serving"),
    (Lines().start().phase("serving", nonce="ffff"), "another nonce"),
])
def test_markers_that_make_no_sense_forbid_a_verdict(tmp_path, lines, reason):
    _, _, reasons, _ = replay(lines.end(), tmp_path)
    assert any(reason in one for one in reasons)


def test_missing_marker_is_noticed(tmp_path):
    lines = Lines().start().phase("load").phase("warmup").phase("serving").end()
    del lines.lines[2]
    _, _, reasons, _ = replay(lines, tmp_path)
    assert reasons == [f"process {PID} made 3 markers, 2 are in the trace"]


# --- requests -----------------------------------------------------------------------------------

def test_request_ends_with_its_send(tmp_path):
    _, requests, _, _ = replay(Lines().start().listen().accept().exchange().exchange().call(
        "close(5<TCP:[127.0.0.1:80->127.0.0.1:40000]>) = 0").end(), tmp_path)
    assert [(r.calls, r.arrivals, r.sends, r.streak) for r in requests] == [(2, 1, 1, 0), (2, 1, 1, 1)]
    assert len({r.id for r in requests}) == 2


def test_what_a_thread_does_between_two_requests_counts_for_the_next(tmp_path):
    lines = Lines().start().listen().accept().exchange().call("getpid() = 1").exchange().end()
    steps, requests, _, _ = replay(lines, tmp_path)
    assert [r.calls for r in requests] == [2, 3]
    assert [step.request for step in steps if step.call.name == "getpid"] == [requests[1]]


def test_request_in_three_segments_has_three_arrivals(tmp_path):
    _, (request,), _, _ = replay(Lines().start().listen().accept().receive().receive().receive().send().end(), tmp_path)
    assert (request.calls, request.arrivals, request.sends) == (4, 3, 1)


def test_answer_in_parts_belongs_to_one_request(tmp_path):
    lines = Lines().start().listen().accept().receive().send().call("getpid() = 1").send().receive().send().end()
    _, requests, _, _ = replay(lines, tmp_path)
    assert [(r.calls, r.sends) for r in requests] == [(4, 2), (2, 1)]


def test_connections_of_one_thread_are_told_apart(tmp_path):
    lines = (Lines().start().listen().accept(5).accept(6, peer="127.0.0.1:40001").receive(5).receive(6).send(6).receive(5).send(5).end())
    _, requests, _, _ = replay(lines, tmp_path)
    assert sorted((r.fd, r.calls, r.arrivals) for r in requests) == [(5, 3, 2), (6, 2, 1)]


def test_marked_request_has_its_name(tmp_path):
    lines = (Lines().start().phase("serving").listen().accept().receive().marker("req=abc/begin").call("getpid() = 1").send()
             .marker("req=abc/end").exchange().end())
    _, requests, reasons, _ = replay(lines, tmp_path)
    assert [(r.id == "abc", r.marked, r.calls) for r in requests] == [(True, True, 3), (False, False, 2)] and not reasons


def test_tokens_are_the_sends_after_the_first_token(tmp_path):
    lines = Lines().start().phase("serving").listen().accept().receive().marker("req=a/begin").marker("req=a/first_token")
    for _ in range(3):
        lines.call("futex(0x1, FUTEX_WAKE, 1) = 0").send()
    _, (request,), _, _ = replay(lines.marker("req=a/end").end(), tmp_path)
    assert (request.tokens, request.token_calls) == (3, 6)


def test_pause_begins_a_new_streak(tmp_path):
    lines = Lines().start().listen().accept().exchange().exchange().wait(0.3).exchange().exchange().end()
    _, requests, _, _ = replay(lines, tmp_path)
    assert [r.streak for r in requests] == [0, 1, 0, 1]


def test_another_thread_begins_a_new_streak(tmp_path):
    lines = (Lines().start().call("clone(child_stack=0x1, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 101").listen().accept()
             .exchange().exchange().exchange(tid=101).raw("+++ exited with 0 +++", 101).end())
    _, requests, _, _ = replay(lines, tmp_path)
    assert [r.streak for r in requests] == [0, 1, 0]


def test_thread_that_has_given_its_connection_away_works_for_nobody(tmp_path):
    lines = (Lines().start().call("clone(child_stack=0x1, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 101").listen().accept()
             .exchange().exchange(tid=101).call("epoll_wait(4<anon_inode:[eventpoll]>, [], 64, -1) = 1").exchange(tid=101)
             .raw("+++ exited with 0 +++", 101).end())
    steps, requests, _, _ = replay(lines, tmp_path)
    assert [r.calls for r in requests] == [2, 2, 2]
    assert [step.request for step in steps if step.call.name == "epoll_wait"] == [None]


def test_call_that_the_kernel_repeats_counts_once(tmp_path):
    lines = (Lines().start().listen().accept().receive(result="? ERESTARTSYS (To be restarted if SA_RESTART is set)")
             .raw("--- SIGCHLD {si_signo=SIGCHLD} ---").receive().send().end())
    _, (request,), _, _ = replay(lines, tmp_path)
    assert (request.calls, request.arrivals) == (2, 1)


# --- evidence -----------------------------------------------------------------------------------

WHOLE = Lines().start().listen().accept().exchange().end()


def test_whole_trace_has_no_gaps(tmp_path):
    assert replay(WHOLE, tmp_path)[2] == []


@pytest.mark.parametrize("change, reason", [
    (lambda lines: lines[:-1], "no exit line"),
    (lambda lines: [*lines, "what is this"], "not understood"),
    (lambda lines: [*lines[:3], f"{PID} 1700000000.0 clone(child_stack=NULL, flags=SIGCHLD) = 777 <0.1>", *lines[3:]], "never seen"),
    (lambda lines: [*lines[:3], f"{PID} 1700000000.0 clone(flags=CLONE_UNTRACED|SIGCHLD) = 777 <0.1>", *lines[3:]], "CLONE_UNTRACED"),
    (lambda lines: [*lines[:3], f"{PID} 1700000000.0 syscall_0x1c4(0x1) = 0 <0.1>", *lines[3:]], "does not know"),
    (lambda lines: [*lines[:-1], f"{PID} 1700000000.0 +++ killed by SIGSEGV (core dumped) +++"], "memory"),
    (lambda lines: [*lines[:3], f"[ Process PID={PID} runs in 32 bit mode. ]", *lines[3:]], "another mode"),
    (lambda lines: [*lines[:3], f"{PID} 1700000000.0 sendmmsg(9, [{{msg_hdr={{msg_name=NULL}}, msg_len=1}}, ...], 9, 0) = 9 <0.1>",
                    *lines[3:]], "left out"),
])
def test_what_is_missing_is_said(tmp_path, change, reason):
    lines = Lines()
    lines.lines = change(list(WHOLE.lines))
    reasons = replay(lines, tmp_path)[2]
    assert len(reasons) == 1 and reason in reasons[0]


def test_filter_of_its_own_hides_calls_from_a_recording_by_seccomp(tmp_path):
    lines = Lines().start().call("seccomp(SECCOMP_SET_MODE_FILTER, 0, {len=3, filter=0x1}) = 0").end()
    assert "--no-seccomp-bpf" in replay(lines, tmp_path, seccomp_bpf=True)[2][0]
    assert not replay(lines, tmp_path, seccomp_bpf=False)[2]


def test_recording_that_was_killed_is_no_evidence(tmp_path):
    assert "killed" in replay(WHOLE, tmp_path, recorded=False)[2][0]


def test_plain_strace_output_is_no_evidence(tmp_path):
    path = tmp_path / "plain"
    path.write_text("\n".join(WHOLE.lines) + "\n")
    played = Replay(path)
    assert len([event for event in played if isinstance(event, Step)]) == 8
    assert "no header" in played.reasons()[0]


def test_attached_recording_needs_no_exit_lines(tmp_path):
    lines = Lines().call("getpid() = 1").raw("read(0,  <detached ...>")
    assert not replay(lines, tmp_path, attached=True)[2]


def test_foreign_trace_without_calls_is_an_error(tmp_path):
    (tmp_path / "a").write_text(f"{PID} +++ exited with 0 +++ and more\n{PID} --- SIGCHLD {{}}\n")
    with pytest.raises(TraceError, match="no system calls"):
        list(Replay(tmp_path / "a"))


def test_attached_process_that_did_nothing_proves_nothing(tmp_path):
    from tracing.judge import judge
    from tracing.policy import load
    assert judge(Lines().write(tmp_path / "a", attached=True), [load("sovereign")]).verdict == "INCONCLUSIVE"


def test_forked_child_that_shows_first_has_its_parent_s_descriptors(tmp_path):
    lines = (Lines().start().listen(3).raw("clone(child_stack=NULL, flags=SIGCHLD <unfinished ...>")
             .call(f"getsockname(3<TCP:[127.0.0.1:80]>, {inet('127.0.0.1', 80)}, [128 => 16]) = 0", PID + 1)
             .raw("<... clone resumed>) = 101 <0.1>").end(PID + 1).end())
    steps, _, reasons, _ = replay(lines, tmp_path)
    assert [step.descriptor.listening for step in steps if step.call.name == "getsockname"] == [True] and not reasons


def test_child_that_has_ended_before_its_clone_returns_was_seen(tmp_path):
    lines = (Lines().start().raw("vfork( <unfinished ...>").call("getpid() = 101", 101).end(101)
             .raw("<... vfork resumed>) = 101 <0.1>").end())
    assert not replay(lines, tmp_path)[2]


def test_inherited_sockets_are_in_the_table(tmp_path):
    inherited = (Inherited(PID, 1, "socket", "TCP 10.0.0.2:5 -> 10.0.0.1:443 ESTABLISHED"),)
    _, _, _, played = replay(Lines().start().call("getpid() = 1"), tmp_path, inherited=inherited)
    assert played.descriptors.find(PID, 1).kind == "socket"
