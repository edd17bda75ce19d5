"""The table of descriptors follows the calls; annotations only confirm it."""

import pytest

from tests.tracing.traces import PID, Lines, inet
from tracing.fds import ACCEPTED, INHERITED, OPENED, PAIRED, PASSED, Descriptors
from tracing.parse import Call, Parser

pytestmark = pytest.mark.core


def follow(lines: Lines) -> Descriptors:
    """The table after these lines, all of one process."""
    parser, table = Parser(), Descriptors()
    for line in lines.lines:
        event = parser.feed(line)
        if isinstance(event, Call):
            table.apply(event)
    return table


@pytest.mark.parametrize("result, peer", [
    ("0", "10.0.0.1:443"), ("-1 EINPROGRESS (Operation now in progress)", "10.0.0.1:443"), ("?", "10.0.0.1:443"),
    ("-1 ECONNREFUSED (Connection refused)", "None")])
def test_socket_has_a_peer_unless_connecting_failed_for_certain(result, peer):
    table = follow(Lines().call("socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 3<TCP:[7]>")
                   .call(f"connect(3<TCP:[7]>, {inet('10.0.0.1', 443)}, 16) = {result}"))
    socket = table.find(PID, 3)
    assert (socket.origin, socket.family, str(socket.peer)) == (OPENED, "AF_INET", peer)


def test_connect_that_fails_leaves_the_peer_that_was():
    table = follow(Lines().call("socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3<TCP:[7]>")
                   .call(f"connect(3<TCP:[7]>, {inet('10.0.0.1', 443)}, 16) = 0")
                   .call(f"connect(3<TCP:[7]>, {inet('127.0.0.1', 80)}, 16) = -1 EISCONN (no)")
                   .call("connect(3<TCP:[7]>, {sa_family=AF_UNSPEC}, 16) = -1 EINVAL (no)"))
    assert str(table.find(PID, 3).peer) == "10.0.0.1:443"


def test_dup_and_fcntl_share_what_they_stand_for():
    table = follow(Lines().call("socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3<TCP:[7]>").call("dup(3<TCP:[7]>) = 4<TCP:[7]>")
                   .call("fcntl(4<TCP:[7]>, F_DUPFD_CLOEXEC, 10) = 10<TCP:[7]>").call("dup2(3<TCP:[7]>, 1) = 1<TCP:[7]>")
                   .call(f"connect(10<TCP:[7]>, {inet('10.0.0.1', 443)}, 16) = 0"))
    assert {str(table.find(PID, fd).peer) for fd in (1, 3, 4, 10)} == {"10.0.0.1:443"}


def test_forked_process_has_a_copy_of_the_table():
    table = follow(Lines().call('openat(AT_FDCWD</>, "/etc/x", O_RDONLY) = 3</etc/x>'))
    table.begin(200, PID)
    table.tables[PID].entries.clear()
    assert table.find(200, 3).name == "/etc/x"


def test_child_that_is_being_made_may_have_what_its_parent_closes():
    lines = Lines().call('openat(AT_FDCWD</>, "/etc/x", O_RDONLY) = 3</etc/x>').call("close(3</etc/x>) = 0")
    table, parser = Descriptors(creating=lambda: True), Parser()
    for line in lines.lines:
        table.apply(parser.feed(line))
    table.begin(200, PID)
    assert table.find(PID, 3) is None and table.find(200, 3).name == "/etc/x"


def test_close_removes_and_close_range_too():
    lines = Lines()
    for fd in (3, 4, 5, 6):
        lines.call(f'openat(AT_FDCWD</>, "/x", O_RDONLY) = {fd}</x>')
    table = follow(lines.call("close(3</x>) = 0").call("close_range(5, 4294967295, 0) = 0"))
    assert list(table.tables[PID].entries) == [4]


def test_close_that_returns_late_does_not_close_its_number_s_next_owner():
    lines = (Lines().call('openat(AT_FDCWD</>, "/x", O_RDONLY) = 3</x>').raw("close(3</x> <unfinished ...>")
             .accept(3, tid=PID + 1).raw("<... close resumed>) = 0 <0.000001000>"))
    parser, table = Parser(), Descriptors()
    for line in lines.lines:
        event = parser.feed(line)
        if isinstance(event, Call):
            table.apply(event._replace(pid=PID))
    assert table.find(PID, 3).origin == ACCEPTED


def test_execve_closes_what_is_marked_so():
    table = follow(Lines().call('openat(AT_FDCWD</>, "/a", O_RDONLY|O_CLOEXEC) = 3</a>')
                   .call('openat(AT_FDCWD</>, "/b", O_RDONLY) = 4</b>').call("fcntl(4</b>, F_SETFD, FD_CLOEXEC) = 0")
                   .call('openat(AT_FDCWD</>, "/c", O_RDONLY) = 5</c>').start())
    assert list(table.tables[PID].entries) == [5]


def test_socketpair_and_pipe_make_two():
    table = follow(Lines().call("socketpair(AF_UNIX, SOCK_STREAM, 0, [3<UNIX-STREAM:[1->2]>, 4<UNIX-STREAM:[2->1]>]) = 0")
                   .call("pipe2([5<pipe:[9]>, 6<pipe:[9]>], O_CLOEXEC) = 0"))
    assert [table.find(PID, fd).origin for fd in (3, 4)] == [PAIRED, PAIRED]
    assert [table.find(PID, fd).kind for fd in (5, 6)] == ["pipe", "pipe"]


def test_passed_descriptors_are_known_by_what_carried_them():
    rights = "msg_control=[{cmsg_len=20, cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS, cmsg_data=[7<UDP:[3]>, 8</x]y>]}]"
    table = follow(Lines().call("socketpair(AF_UNIX, SOCK_STREAM, 0, [3<UNIX-STREAM:[1->2]>, 4<UNIX-STREAM:[2->1]>]) = 0")
                   .call(f"recvmsg(4<UNIX-STREAM:[2->1]>, {{msg_name=NULL, {rights}, msg_flags=0}}, 0) = 1")
                   .call(f"recvmsg(9<UNIX-STREAM:[5->6]>, {{msg_name=NULL, {rights.replace('7', '17')}, msg_flags=0}}, 0) = 1"))
    assert (table.find(PID, 7).origin, table.find(PID, 7).others, table.find(PID, 8).name) == (PASSED, False, "/x]y")
    assert (table.find(PID, 17).origin, table.find(PID, 17).others) == (PASSED, True)


def test_listening_socket_knows_the_port_that_the_kernel_chose():
    lines = Lines().listen(3, "0.0.0.0", 0)
    (socket,) = follow(lines.call(f"getsockname(3<TCP:[0.0.0.0:0]>, {inet('0.0.0.0', 5000)}, [128 => 16]) = 0")).sockets()
    assert (socket.listening, str(socket.local)) == (True, "0.0.0.0:5000")


def test_peer_that_no_call_gave_contradicts():
    table = follow(Lines().call("socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3<TCP:[7]>")
                   .call('sendto(3<TCP:[10.0.0.2:5->10.0.0.1:443]>, ""..., 1, 0, NULL, 0) = 1'))
    assert table.n_contradictions == 1 and "10.0.0.1:443" in table.contradictions[0]


def test_stale_annotation_of_a_connected_udp_socket_is_no_contradiction():
    table = follow(Lines().call("socket(AF_INET, SOCK_DGRAM, IPPROTO_IP) = 3<UDP:[7]>")
                   .call(f"connect(3<UDP:[7]>, {inet('127.0.0.1', 53)}, 16) = 0")
                   .call('sendto(3<UDP:[127.0.0.1:9]>, ""..., 1, 0, NULL, 0) = 1'))
    assert not table.n_contradictions and str(table.find(PID, 3).peer) == "127.0.0.1:53"


def test_file_where_a_socket_was_contradicts():
    table = follow(Lines().call("socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3<TCP:[7]>").call("read(3</etc/x>, \"\"..., 9) = 9"))
    assert table.n_contradictions == 1


def test_what_is_first_seen_in_use_came_from_before():
    table = Descriptors()
    table.inherited_kind = INHERITED
    parser = Parser()
    table.apply(parser.feed(Lines().call("read(3<TCP:[127.0.0.1:80->127.0.0.1:9]>, \"\"..., 9) = 9").lines[0]))
    assert (table.find(PID, 3).kind, table.find(PID, 3).origin) == ("socket", INHERITED)
