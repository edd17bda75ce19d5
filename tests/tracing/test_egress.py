"""What counts as leaving: each way out by a call as strace prints it. (Real programs: test_leaks.)"""

import pytest

from tests.tracing.traces import PID, Inherited, Lines, inet, inet6, unix
from tracing.judge import judge
from tracing.policy import load

pytestmark = pytest.mark.core

TCP = "socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 3<TCP:[7]>"
UDP = "socket(AF_INET, SOCK_DGRAM, IPPROTO_IP) = 3<UDP:[7]>"
UNIX = "socket(AF_UNIX, SOCK_STREAM, 0) = 3<UNIX-STREAM:[7]>"
OUT, HERE = inet("93.184.216.34", 443), inet("127.0.0.1", 3128)
NETLINK_SEND = "{sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}"


def message(address: str) -> str:
    return f"{{msg_name={address}, msg_namelen=16, msg_iov=[{{iov_base=\"\"..., iov_len=1}}], msg_iovlen=1, msg_controllen=0, msg_flags=0}}"


LEAVING = [
    [TCP, f"connect(3<TCP:[7]>, {OUT}, 16) = -1 ENETUNREACH (Network is unreachable)"],
    [TCP, f"connect(3<TCP:[7]>, {OUT}, 16) = ?"],
    [f"connect(9<TCPv6:[7]>, {inet6('2001:db8::1', 443)}, 28) = -1 EINPROGRESS (Operation now in progress)"],
    [f"connect(9<TCPv6:[7]>, {inet6('::ffff:8.8.8.8', 443)}, 28) = 0"],
    [TCP, f"connect(3<TCP:[7]>, {HERE}, 16) = -1 ECONNREFUSED (Connection refused)"],
    [UDP, f'sendto(3<UDP:[7]>, ""..., 1, 0, {OUT}, 16) = 1'],
    [UDP, f"sendmsg(3<UDP:[7]>, {message(OUT)}, 0) = 1"],
    [UDP, f"sendmmsg(3<UDP:[7]>, [{{msg_hdr={message(inet('127.0.0.1', 1))}, msg_len=1}}, {{msg_hdr={message(OUT)}, msg_len=1}}], 2, 0) = 2"],
    [TCP, f'sendto(3<TCP:[7]>, ""..., 1, MSG_FASTOPEN, {OUT}, 16) = 1'],
    ["socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE) = 3<NETLINK:[7]>"],
    [f'sendto(3<NETLINK:[7]>, ""..., 1, 0, {NETLINK_SEND}, 12) = 1'],
    ["socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)) = -1 EPERM (Operation not permitted)"],
    ["socket(AF_VSOCK, SOCK_STREAM, 0) = 3<socket:[7]>"],
    ["socket(AF_INET, SOCK_RAW, IPPROTO_ICMP) = 3<RAW:[7]>"],
    ["socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP) = 3<SCTP:[7]>"],
    ["socket(AF_INET, 0xff /* SOCK_??? */, IPPROTO_IP) = -1 EINVAL (Invalid argument)"],
    [UNIX, f"connect(3<UNIX-STREAM:[7]>, {unix('/run/helper')}, 110) = 0"],
    [UNIX, f"connect(3<UNIX-STREAM:[7]>, {unix('/run/helper')}, 110) = -1 EACCES (Permission denied)"],
    [UNIX, 'connect(3<UNIX-STREAM:[7]>, {sa_family=AF_UNIX, sun_path=@"helper"}, 9) = -1 ECONNREFUSED (Connection refused)'],
    ["socket(AF_UNIX, SOCK_DGRAM, 0) = 3<UNIX-DGRAM:[7]>", f'sendto(3<UNIX-DGRAM:[7]>, ""..., 1, 0, {unix("/dev/log")}, 110) = 1'],
    ["io_uring_setup(8, {flags=0}) = 3<anon_inode:[io_uring]>"],
    ["pidfd_getfd(3<anon_inode:[pidfd]>, 5, 0) = 4<TCP:[1.1.1.1:1->2.2.2.2:2]>"],
    ["process_vm_writev(4242, [{iov_base=\"\"..., iov_len=1}], 1, [{iov_base=0x1, iov_len=1}], 1, 0) = 1"],
    ["ptrace(PTRACE_ATTACH, 4242) = 0"],
    ['openat(AT_FDCWD</>, "/proc/4242/mem", O_RDWR) = 3</proc/4242/mem>'],
    ['openat(AT_FDCWD</>, "/dev/net/tun", O_RDWR) = 3</dev/net/tun<char 10:200>>'],
    ["bpf(BPF_PROG_LOAD, {prog_type=BPF_PROG_TYPE_SOCKET_FILTER}, 128) = 3<anon_inode:bpf-prog>"],
    ['finit_module(3</x.ko>, "", 0) = 0'],
    [UDP, "setsockopt(3<UDP:[7]>, SOL_IP, IP_ADD_MEMBERSHIP, {imr_multiaddr=inet_addr(\"224.0.0.1\")}, 8) = 0"],
    ["socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP) = -1 EACCES (Permission denied)"],
    [UDP, r'setsockopt(3<UDP:[7]>, SOL_IP, IP_OPTIONS, "\203\v\4\300"..., 12) = 0'],
    ['openat(AT_FDCWD</>, "/srv/O_RDONLY/../../dev/kmsg", O_WRONLY) = 3</dev/kmsg<char 1:11>>'],
    ["fsconfig(3<anon_inode:[fscontext]>, FSCONFIG_SET_STRING, \"source\", \"192.0.2.1:/x\", 0) = 0"],
    ['acct("/tmp/x") = 0'], ['ioctl(0</dev/pts/1<char 136:1>>, TIOCSTI, "x") = 0'],
    ["open_by_handle_at(3</>, {handle_bytes=8}, O_WRONLY) = 4</dev/net/tun<char 10:200>>"],
    ['openat(AT_FDCWD</>, "node", O_RDWR) = 3</srv/node<char 10:200>>'],
    ['openat(AT_FDCWD</>, "/dev/kmsg", O_WRONLY) = 3</dev/kmsg<char 1:11>>'],
    ['mount("192.0.2.1", "/mnt", "9p", 0, "trans=tcp") = -1 EPERM (Operation not permitted)'],
    ['request_key("dns_resolver", "host", "", KEY_SPEC_SESSION_KEYRING) = -1 ENOKEY (no)'],
    [*Lines().listen(5, port=3128).lines, UDP, f'sendto(3<UDP:[7]>, ""..., 1, 0, {HERE}, 16) = 1'],
    ["socket(AF_INET, SOCK_DGRAM, IPPROTO_IP) = 5<UDP:[8]>", f"bind(5<UDP:[8]>, {inet('127.0.0.1', 3128)}, 16) = 0",
     "setsockopt(5<UDP:[8]>, SOL_SOCKET, SO_REUSEADDR, [1], 4) = 0", UDP, f'sendto(3<UDP:[7]>, ""..., 1, 0, {HERE}, 16) = 1'],
    ['openat(AT_FDCWD</>, "ttyS0", O_RDWR) = 3</dev/vcs<char 10:200>>'],
    ["socket(AF_INET, SOCK_DGRAM, IPPROTO_IP) = 5<UDP:[8]>", f"bind(5<UDP:[8]>, {inet('127.0.0.1', 3128)}, 16) = 0",
     UDP, f"connect(3<UDP:[7]>, {HERE}, 16) = 0"],
    # a listener of one's own is not what is reached when others share its port, or from another namespace
    [*Lines().listen(5, port=3128).lines, "unshare(CLONE_NEWNET) = 0", TCP, f"connect(3<TCP:[7]>, {HERE}, 16) = 0"],
    [*Lines().listen(5, port=3128).lines, "close(5<TCP:[127.0.0.1:3128]>) = 0", TCP, f"connect(3<TCP:[7]>, {HERE}, 16) = 0"],
]
UNPROVEN = [
    ['openat(AT_FDCWD</>, "/sys/fs/cgroup/release_agent", O_WRONLY) = 3</sys/fs/cgroup/release_agent>'],
    # that one listens oneself is not enough: another may have accepted
    [*Lines().listen(5, port=3128).lines, TCP, f"connect(3<TCP:[7]>, {HERE}, 16) = 0",
     'sendto(3<TCP:[127.0.0.1:9->127.0.0.1:3128]>, ""..., 1, 0, NULL, 0) = 1'],
    [*Lines().listen(5, port=3128).lines, TCP, "setsockopt(5<TCP:[7]>, SOL_SOCKET, SO_REUSEPORT, [1], 4) = 0", f"connect(3<TCP:[7]>, {HERE}, 16) = 0"],
    [TCP, "connect(3<TCP:[7]>, 0x7ffd, 16) = -1 EFAULT (Bad address)"],
    ['sendto(9<TCP:[10.0.0.1:5->10.0.0.2:6]>, ""..., 1, 0, NULL, 0) = 1'],
    ['write(9<TCP:[10.0.0.1:5->10.0.0.2:6]>, ""..., 1) = 1'],
    ["sendfile(9<TCP:[10.0.0.1:5->10.0.0.2:6]>, 4</x>, NULL, 9) = 9"],
    ["recvmsg(9<UNIX-STREAM:[1->2]>, {msg_name=NULL, msg_control=[{cmsg_len=20, cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS, "
     "cmsg_data=[4<TCP:[1.1.1.1:1->2.2.2.2:2]>]}], msg_flags=0}, 0) = 1"],
    ["sendmsg(9<UNIX-STREAM:[1->2]>, {msg_name=NULL, msg_control=[{cmsg_len=20, cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS, "
     "cmsg_data=[4</x>]}], msg_flags=0}, 0) = 1"],
    ['openat(AT_FDCWD</>, "/tmp/x/1", O_WRONLY) = 3<pipe:[99]>'],
    ['openat(AT_FDCWD</>, "/proc/4242/fd/1", O_WRONLY) = 3<pipe:[99]>'],
    ['openat(AT_FDCWD</>, "/dev/ttyS0", O_RDWR) = 3</dev/ttyS0<char 4:64>>'],
    ["io_submit(0x7f0, 1, [{aio_lio_opcode=IOCB_CMD_PWRITE, aio_fildes=9}]) = 1"],
]
STAYING = [
    ["getpid() = 1"],
    [TCP, f"bind(3<TCP:[7]>, {inet('0.0.0.0', 80)}, 16) = 0", "listen(3<TCP:[0.0.0.0:80]>, 5) = 0"],
    [*Lines().listen().accept(5, peer="93.184.216.34:555").lines, 'write(5<TCP:[127.0.0.1:80->93.184.216.34:555]>, ""..., 1) = 1',
     "sendfile(5<TCP:[127.0.0.1:80->93.184.216.34:555]>, 4</x>, NULL, 9) = 9"],
    ["socketpair(AF_UNIX, SOCK_STREAM, 0, [3<UNIX-STREAM:[1->2]>, 4<UNIX-STREAM:[2->1]>]) = 0", 'sendto(3<UNIX-STREAM:[1->2]>, ""..., 1, 0, NULL, 0) = 1'],
    [UNIX, f"connect(3<UNIX-STREAM:[7]>, {unix('/var/run/nscd/socket')}, 110) = -1 ENOENT (No such file or directory)"],
    [*Lines().listen(5, port=3128).lines, TCP, f"connect(3<TCP:[7]>, {HERE}, 16) = 0",
     "accept4(5<TCP:[127.0.0.1:3128]>, NULL, NULL, 0) = 6<TCP:[127.0.0.1:3128->127.0.0.1:9]>",
     'sendto(3<TCP:[127.0.0.1:9->127.0.0.1:3128]>, ""..., 1, 0, NULL, 0) = 1'],
    [UNIX, f"bind(3<UNIX-STREAM:[7]>, {unix('/run/own')}, 110) = 0", 'listen(3<UNIX-STREAM:[7,"/run/own"]>, 5) = 0',
     "socket(AF_UNIX, SOCK_STREAM, 0) = 4<UNIX-STREAM:[8]>", f"connect(4<UNIX-STREAM:[8]>, {unix('/run/own')}, 110) = 0",
     'accept4(3<UNIX-STREAM:[7,"/run/own"]>, NULL, NULL, 0) = 5<UNIX-STREAM:[9->8,"/run/own"]>',
     'sendto(4<UNIX-STREAM:[8->9]>, ""..., 1, 0, NULL, 0) = 1'],
    ["socket(AF_INET, SOCK_DGRAM, IPPROTO_IP) = 5<UDP:[8]>", f"bind(5<UDP:[8]>, {inet('127.0.0.1', 3128)}, 16) = 0", UDP,
     f'sendto(3<UDP:[7]>, ""..., 1, 0, {HERE}, 16) = 1'],
    [UDP, "connect(3<UDP:[7]>, {sa_family=AF_UNSPEC, sa_data=\"\\0\"}, 16) = 0"],
    ['openat(AT_FDCWD</>, "/proc/self/mem", O_RDONLY) = 3</proc/100/mem>'],
    ['openat(AT_FDCWD</>, "/dev/stdout", O_WRONLY) = 3<pipe:[99]>', 'openat(AT_FDCWD</>, "/dev/tty", O_RDWR) = 4</dev/tty<char 5:0>>'],
    ["ptrace(PTRACE_TRACEME) = -1 EPERM (Operation not permitted)"],
    ["clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD) = 200", ("exit_group(0) = ?", 200), ("+++ exited with 0 +++", 200)],
]


def trace(calls: list, path, phase: str = "", **changed):
    lines = Lines().start()
    if phase:
        lines.phase(phase)
    for call in calls:
        if isinstance(call, tuple):
            lines.raw(*call)
        elif call.startswith(f"{PID} "):
            lines.lines.append(call)
        else:
            lines.call(call)
    if phase:
        lines.phase("serving").call("getpid() = 1")
    return lines.end().write(path / "a.trace", **changed)


def names(cases: list) -> list[str]:
    return [f"{i}-{case[-1][0:20]}" if isinstance(case[-1], str) else str(i) for i, case in enumerate(cases)]


@pytest.mark.parametrize("calls", LEAVING, ids=names(LEAVING))
def test_way_out_fails(tmp_path, calls):
    judgement = judge(trace(calls, tmp_path), [load("sovereign")])
    assert judgement.verdict == "FAIL" and judgement.outcomes[0].offences


@pytest.mark.parametrize("calls", UNPROVEN, ids=names(UNPROVEN))
def test_what_may_leave_is_inconclusive(tmp_path, calls):
    assert judge(trace(calls, tmp_path), [load("sovereign")]).verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("calls", STAYING, ids=names(STAYING))
def test_what_stays_passes(tmp_path, calls):
    judgement = judge(trace(calls, tmp_path), [load("sovereign")])
    assert (judgement.verdict, judgement.reasons) == ("PASS", ())


def test_connecting_while_loading_is_allowed_and_noted(tmp_path):
    calls = [TCP, f"connect(3<TCP:[7]>, {OUT}, 16) = 0", "close(3<TCP:[7]>) = 0"]
    judgement = judge(trace(calls, tmp_path, phase="load"), [load("sovereign")])
    assert judgement.verdict == "PASS" and "93.184.216.34:443" in judgement.notes[0]


def test_connection_from_loading_that_is_still_open_is_inconclusive(tmp_path):
    calls = [TCP, f"connect(3<TCP:[7]>, {OUT}, 16) = 0"]
    judgement = judge(trace(calls, tmp_path, phase="load"), [load("sovereign")])
    assert judgement.verdict == "INCONCLUSIVE" and "93.184.216.34:443" in judgement.outcomes[0].detail


@pytest.mark.parametrize("calls", [
    ["io_uring_setup(8, {flags=IORING_SETUP_SQPOLL}) = 3<anon_inode:[io_uring]>", "close(3<anon_inode:[io_uring]>) = 0"],
    ["socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE) = 3<NETLINK:[7]>"],
    ['openat(AT_FDCWD</>, "/dev/net/tun", O_RDWR) = 3</dev/net/tun<char 10:200>>'],
    ["pidfd_getfd(3<anon_inode:[pidfd]>, 5, 0) = 4<TCP:[1.1.1.1:1->2.2.2.2:2]>"],
])
def test_what_lasts_from_loading_into_serving_is_inconclusive(tmp_path, calls):
    assert judge(trace(calls, tmp_path, phase="load"), [load("sovereign")]).verdict == "INCONCLUSIVE"


def test_netlink_socket_that_was_closed_while_loading_is_noted(tmp_path):
    calls = ["socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE) = 3<NETLINK:[7]>", "close(3<NETLINK:[7]>) = 0"]
    judgement = judge(trace(calls, tmp_path, phase="load"), [load("sovereign")])
    assert judgement.verdict == "PASS" and "AF_NETLINK" in judgement.notes[0]


def test_socket_of_a_process_whose_leader_has_ended_is_still_open(tmp_path):
    lines = (Lines().start().phase("load").call(TCP).call(f"connect(3<TCP:[7]>, {OUT}, 16) = 0")
             .call("clone(child_stack=0x1, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 101").raw("exit(0) = ?")
             .raw("+++ exited with 0 +++").marker("phase=serving", tid=101).call("getpid() = 1", 101).end(101))
    assert judge(lines.write(tmp_path / "a"), [load("sovereign")]).verdict == "INCONCLUSIVE"


def test_socket_that_is_passed_on_after_going_out_is_inconclusive(tmp_path):
    rights = "{msg_name=NULL, msg_control=[{cmsg_len=20, cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS, cmsg_data=[3<TCP:[7]>]}], msg_flags=0}"
    lines = (Lines().start().phase("load").call("socketpair(AF_UNIX, SOCK_STREAM, 0, [8<UNIX-STREAM:[1->2]>, 9<UNIX-STREAM:[2->1]>]) = 0")
             .call(TCP).call(f"connect(3<TCP:[7]>, {OUT}, 16) = 0").call(f"sendmsg(8<UNIX-STREAM:[1->2]>, {rights}, 0) = 1")
             .call("close(3<TCP:[7]>) = 0").phase("serving").call(f"recvmsg(9<UNIX-STREAM:[2->1]>, {rights}, 0) = 1").end())
    assert judge(lines.write(tmp_path / "a"), [load("sovereign")]).verdict == "INCONCLUSIVE"


def test_connect_that_goes_on_while_serving_is_inconclusive(tmp_path):
    lines = (Lines().start().phase("load").call(TCP)
             .call("clone(child_stack=0x1, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 101")
             .raw(f"connect(3<TCP:[7]>, {OUT}, 16 <unfinished ...>", 101).phase("serving").call("getpid() = 1")
             .raw("<... connect resumed>) = 0 <1.0>", 101).raw("+++ exited with 0 +++", 101).end())
    assert judge(lines.write(tmp_path / "a"), [load("sovereign")]).verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("detail, kind", [
    ("TCP 10.0.0.2:5 -> 10.0.0.1:443 ESTABLISHED", "socket"), ("anon_inode:[io_uring]", "anon"), ("/dev/net/tun", "file"), ("/dev/ttyS0", "file")])
def test_what_was_open_before_the_trace_is_inconclusive(tmp_path, detail, kind):
    path = trace(["getpid() = 1"], tmp_path, inherited=(Inherited(PID, 1, kind, detail),))
    assert judge(path, [load("sovereign")]).verdict == "INCONCLUSIVE"


def test_listening_socket_from_before_is_no_way_out(tmp_path):
    path = trace(["getpid() = 1"], tmp_path, inherited=(Inherited(PID, 3, "socket", "TCP 127.0.0.1:80 LISTEN"),))
    assert judge(path, [load("sovereign")]).verdict == "PASS"


def test_exposure_is_reported_and_not_judged(tmp_path):
    path = trace([TCP, f"bind(3<TCP:[7]>, {inet('0.0.0.0', 80)}, 16) = 0", "listen(3<TCP:[0.0.0.0:80]>, 5) = 0"], tmp_path)
    judgement = judge(path, [load("sovereign")])
    assert (judgement.verdict, judgement.exposed) == ("PASS", ("0.0.0.0:80 (SOCK_STREAM)",))


def test_helper_that_the_policy_names_may_be_reached(tmp_path):
    from tracing.policy import read
    own = read('name = "x"\nprofile = "sovereign"\n[[assert]]\nname = "a"\ncheck = "egress"\nnamed = ["127.0.0.1:3128", "unix:/run/*"]', "x")
    assert judge(trace([TCP, f"connect(3<TCP:[7]>, {HERE}, 16) = 0"], tmp_path), [own]).verdict == "PASS"
    assert judge(trace([UNIX, f"connect(3<UNIX-STREAM:[7]>, {unix('/run/helper')}, 110) = 0"], tmp_path), [own]).verdict == "PASS"
    assert judge(trace([TCP, f"connect(3<TCP:[7]>, {OUT}, 16) = 0"], tmp_path), [own]).verdict == "FAIL"


def test_recording_without_the_needed_calls_is_inconclusive(tmp_path):
    judgement = judge(trace(["getpid() = 1"], tmp_path, traced=("%net",)), [load("sovereign")])
    assert judgement.verdict == "INCONCLUSIVE" and "leaves out" in judgement.outcomes[0].detail
