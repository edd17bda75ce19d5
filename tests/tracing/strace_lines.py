"""What strace 6.1 wrote (on Linux 6.18, -yy), line by line; and long traces of a server, made up of such lines."""

from collections.abc import Iterator

from tracing.parse import DELAYED, INJECTED, NO_RETURN, REISSUED, RESUMING

# Whole calls: (line behind pid and time, name, arguments, result, errno, detail, flags).
WHOLE = [
    ('execve("./t", ["./t"], 0x7fffaa50a030 /* 35 vars */) = 0 <0.000174066>',
     "execve", ['"./t"', '["./t"]', "0x7fffaa50a030 /* 35 vars */"], 0, "", "", 0),
    (r'openat(AT_FDCWD</tmp/d>, "/tmp/d/a> = 3<b\"-\303\251-", O_RDWR|O_CREAT, 0600) = 3</tmp/d/a\76 ='
     r' 3\74b\"-\303\251->'
     " <0.000034000>",
     "openat", ["AT_FDCWD</tmp/d>", r'"/tmp/d/a> = 3<b\"-\303\251-"', "O_RDWR|O_CREAT", "0600"], 3, "",
     r'</tmp/d/a\76 = 3\74b\"-\303\251->', 0),
    (r'write(3</tmp/d/a\76 = 3\74b\"-\303\251->, "x) = 3\"<unfinished ...>\n\301", 25) = 25 <0.000015060>',
     "write", [r'3</tmp/d/a\76 = 3\74b\"-\303\251->', r'"x) = 3\"<unfinished ...>\n\301"', "25"], 25, "", "", 0),
    (r'write(3</tmp/d/a\76 = 3\74b\"-\303\251->(deleted), "y", 1) = 1 <0.000007605>',
     "write", [r'3</tmp/d/a\76 = 3\74b\"-\303\251->(deleted)', '"y"', "1"], 1, "", "", 0),
    (r'listen(4<UNIX-STREAM:[5979,"/tmp/d/s> = 3<b\"]>"]>, 3) = 0 <0.000010441>',
     "listen", [r'4<UNIX-STREAM:[5979,"/tmp/d/s> = 3<b\"]>"]>', "3"], 0, "", "", 0),
    (r'fcntl(4<UNIX-STREAM:[5979,"/tmp/d/s> = 3<b\"]>"]>, F_GETFL) = 0x2 (flags O_RDWR) <0.000006084>',
     "fcntl", [r'4<UNIX-STREAM:[5979,"/tmp/d/s> = 3<b\"]>"]>', "F_GETFL"], 2, "", "(flags O_RDWR)", 0),
    ("umask(022) = 022 <0.000005594>", "umask", ["022"], 18, "", "", 0),
    ("brk(NULL) = 0x55ce6e30d000 <0.000026695>", "brk", ["NULL"], 0x55ce6e30d000, "", "", 0),
    ("pause() = ? ERESTARTNOHAND (To be restarted if no handler) <0.1>",
     "pause", [], None, "ERESTARTNOHAND", "(To be restarted if no handler)", 0),
    ("syscall_0x3e7(0x1, 0x2, 0x3, 0, 0x7f543d8c06d0, 0x7ffddfc65358) = -1 ENOSYS (Function not implemented)"
     " <0.000005783>",
     "syscall_0x3e7", ["0x1", "0x2", "0x3", "0", "0x7f543d8c06d0", "0x7ffddfc65358"], -1, "ENOSYS",
     "(Function not implemented)", 0),
    ("read(3, 0x7ffe, 1) = -1 (errno 530) <0.000005783>", "read", ["3", "0x7ffe", "1"], -1, "(errno 530)", "", 0),
    ('openat(AT_FDCWD, "/dev/null", O_RDWR) = 5</dev/null<char 1:3>> <0.000014282>',
     "openat", ["AT_FDCWD", '"/dev/null"', "O_RDWR"], 5, "", "</dev/null<char 1:3>>", 0),
    ("exit_group(0) = ?", "exit_group", ["0"], None, "", "", NO_RETURN),
    ("kill(11861, SIGKILL <unfinished ...>) = ?", "kill", ["11861", "SIGKILL"], None, "", "", NO_RETURN),
    ("read(3, 0x7ffe7d7c4677, 9) = ? ERESTARTSYS (To be restarted if SA_RESTART is set) <0.030035991>",
     "read", ["3", "0x7ffe7d7c4677", "9"], None, "ERESTARTSYS", "(To be restarted if SA_RESTART is set)", 0),
    ("prctl(PR_GET_NAME, 0x7ffe) = ? <unavailable>", "prctl", ["PR_GET_NAME", "0x7ffe"], None, "", "<unavailable>",
     NO_RETURN),
    ("restart_syscall(<... resuming interrupted read ...>) = ? ERESTART_RESTARTBLOCK (Interrupted by signal)"
     " <0.577040>",
     "restart_syscall", ["<... resuming interrupted read ...>"], None, "ERESTART_RESTARTBLOCK", "(Interrupted by"
     " signal)",
     RESUMING),
    ("getuid() = 77 (INJECTED) <0.000009542>", "getuid", [], 77, "", "(INJECTED)", INJECTED),
    ("getgid() = 0 (DELAYED) <0.001067527>", "getgid", [], 0, "", "(DELAYED)", DELAYED),
    ("geteuid() = -1 EAGAIN (Resource temporarily unavailable) (INJECTED) (DELAYED) <0.000005138>",
     "geteuid", [], -1, "EAGAIN", "(Resource temporarily unavailable) (INJECTED) (DELAYED)", INJECTED | DELAYED),
    ('open("/x (INJECTED)", O_RDONLY) = 3</x (INJECTED)> <0.000005138>',
     "open", ['"/x (INJECTED)"', "O_RDONLY"], 3, "", "</x (INJECTED)>", 0),
    ("capget({version=_LINUX_CAPABILITY_VERSION_3, pid=0}, {effective=1<<CAP_CHOWN|1<<CAP_KILL, inheritable=0}) = 0"
     " <0.0>",
     "capget", ["{version=_LINUX_CAPABILITY_VERSION_3, pid=0}", "{effective=1<<CAP_CHOWN|1<<CAP_KILL, inheritable=0}"],
     0, "", "", 0),
    ("connect(3<UDPv6:[67122]>, {sa_family=AF_INET6, sin6_port=htons(9), sin6_flowinfo=htonl(0),"
     ' inet_pton(AF_INET6, "::ffff:127.0.0.1", &sin6_addr), sin6_scope_id=0}, 28) = -1 ENETUNREACH (Network is'
     ' unreachable)'
     " <0.000165833>",
     "connect", ["3<UDPv6:[67122]>", "{sa_family=AF_INET6, sin6_port=htons(9), sin6_flowinfo=htonl(0),"
                 ' inet_pton(AF_INET6, "::ffff:127.0.0.1", &sin6_addr), sin6_scope_id=0}', "28"],
     -1, "ENETUNREACH", "(Network is unreachable)", 0),
    ('sendto(7<TCPv6:[[::1]:37206->[::1]:39245]>, "y", 1, 0, NULL, 0) = 1 <0.000037873>',
     "sendto", ["7<TCPv6:[[::1]:37206->[::1]:39245]>", '"y"', "1", "0", "NULL", "0"], 1, "", "", 0),
    ('accept4(3<TCP:[127.0.0.1:55033]>, {sa_family=AF_INET, sin_port=htons(57956), sin_addr=inet_addr("127.0.0.1")},'
     " [128 => 16], SOCK_CLOEXEC) = 5<TCP:[127.0.0.1:55033->127.0.0.1:57956]> <0.000012>",
     "accept4", ["3<TCP:[127.0.0.1:55033]>",
                 '{sa_family=AF_INET, sin_port=htons(57956), sin_addr=inet_addr("127.0.0.1")}', "[128 => 16]",
                 "SOCK_CLOEXEC"], 5, "", "<TCP:[127.0.0.1:55033->127.0.0.1:57956]>", 0),
    ('recvmsg(12<UNIX-STREAM:[44973->44969,@"abs]> = 1"]>, {msg_name=0x7ffec9676da0, msg_namelen=110 => 0,'
     ' msg_iov=[{iov_base="f", iov_len=9}], msg_iovlen=1, msg_control=[{cmsg_len=24, cmsg_level=SOL_SOCKET,'
     " cmsg_type=SCM_RIGHTS, cmsg_data=[13</dev/null<char 1:3>>, 14<TCP:[127.0.0.1:55033]>]}], msg_controllen=24,"
     " msg_flags=0}, 0) = 1 <0.000007843>",
     "recvmsg", ['12<UNIX-STREAM:[44973->44969,@"abs]> = 1"]>',
                 '{msg_name=0x7ffec9676da0, msg_namelen=110 => 0, msg_iov=[{iov_base="f", iov_len=9}], msg_iovlen=1,'
                 " msg_control=[{cmsg_len=24, cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS,"
                 " cmsg_data=[13</dev/null<char 1:3>>, 14<TCP:[127.0.0.1:55033]>]}], msg_controllen=24,"
                 " msg_flags=0}", "0"],
     1, "", "", 0),
    ("getsockname(15<NETLINK:[ROUTE:11882]>, {sa_family=AF_NETLINK, nl_pid=11882, nl_groups=00000000}, [12]) = 0"
     " <0.0000051>",
     "getsockname", ["15<NETLINK:[ROUTE:11882]>", "{sa_family=AF_NETLINK, nl_pid=11882, nl_groups=00000000}", "[12]"],
     0, "", "", 0),
    ("socketpair(AF_UNIX, SOCK_DGRAM|SOCK_CLOEXEC, 0, [18<UNIX:[44990->44991]>, 19<UNIX:[44991->44990]>]) = 0"
     " <0.000015313>",
     "socketpair", ["AF_UNIX", "SOCK_DGRAM|SOCK_CLOEXEC", "0", "[18<UNIX:[44990->44991]>, 19<UNIX:[44991->44990]>]"],
     0, "", "", 0),
    ("socket(AF_PACKET, SOCK_RAW|SOCK_CLOEXEC, htons(0 /* ETH_P_??? */)) = 20<socket:[44996]> <0.000013291>",
     "socket", ["AF_PACKET", "SOCK_RAW|SOCK_CLOEXEC", "htons(0 /* ETH_P_??? */)"], 20, "", "<socket:[44996]>", 0),
    ("socket(AF_INET, SOCK_RAW|SOCK_CLOEXEC, IPPROTO_ICMP) = 21<RAW:[45000]> <0.000019361>",
     "socket", ["AF_INET", "SOCK_RAW|SOCK_CLOEXEC", "IPPROTO_ICMP"], 21, "", "<RAW:[45000]>", 0),
    ("pipe2([22<pipe:[45043]>, 23<pipe:[45043]>], O_CLOEXEC) = 0 <0.000018907>",
     "pipe2", ["[22<pipe:[45043]>, 23<pipe:[45043]>]", "O_CLOEXEC"], 0, "", "", 0),
    ("epoll_create1(EPOLL_CLOEXEC) = 25<anon_inode:[eventpoll]> <0.000005812>",
     "epoll_create1", ["EPOLL_CLOEXEC"], 25, "", "<anon_inode:[eventpoll]>", 0),
    ("inotify_init() = 5<anon_inode:inotify> <0.000041777>", "inotify_init", [], 5, "", "<anon_inode:inotify>", 0),
    ("pidfd_open(11882, 0) = 27<pid:11882> <0.000009062>", "pidfd_open", ["11882", "0"], 27, "", "<pid:11882>", 0),
    (r'memfd_create("a]> = 3", MFD_CLOEXEC) = 26</memfd:a]\76 = 3>(deleted) <0.000012327>',
     "memfd_create", ['"a]> = 3"', "MFD_CLOEXEC"], 26, "", r"</memfd:a]\76 = 3>(deleted)", 0),
    ("poll([{fd=8<UDP:[127.0.0.1:40327]>, events=POLLIN}], 1, 10) = 1 ([{fd=8, revents=POLLIN}]) <0.000008374>",
     "poll", ["[{fd=8<UDP:[127.0.0.1:40327]>, events=POLLIN}]", "1", "10"], 1, "", "([{fd=8, revents=POLLIN}])", 0),
    ("poll([{fd=8<UDP:[127.0.0.1:40327]>, events=POLLIN}], 1, 10) = 0 (Timeout) <0.010124850>",
     "poll", ["[{fd=8<UDP:[127.0.0.1:40327]>, events=POLLIN}]", "1", "10"], 0, "", "(Timeout)", 0),
    (r'recvfrom(5<TCP:[127.0.0.1:1->127.0.0.1:2]>, "x) = 3 <unfinished ...>\"\\"..., 99, 0, NULL, NULL) = 23'
     r' <0.000009115>',
     "recvfrom", ["5<TCP:[127.0.0.1:1->127.0.0.1:2]>", r'"x) = 3 <unfinished ...>\"\\"...', "99", "0", "NULL", "NULL"],
     23, "", "", 0),
    ("wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 0}], 0, NULL) = 12288 <0.003396400>",
     "wait4", ["-1", "[{WIFEXITED(s) && WEXITSTATUS(s) == 0}]", "0", "NULL"], 12288, "", "", 0),
    ("getppid()                      = 12368", "getppid", [], 12368, "", "", 0),  # without -a1
]

EXEC_IN_A_THREAD = """\
4060  1795477143.778541069 rt_sigprocmask(SIG_BLOCK, ~[], [], 8) = 0 <0.000006402>
4060  1795477143.778567959 clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD, exit_signal=0, tls=0x7f543d6c36c0}\
 <unfinished ...>
4061  1795477143.778662373 rseq(0x7f543d6c3fe0, 0x20, 0, 0x53053053) = 0 <0.000006436>
4061  1795477143.778731422 clock_nanosleep(CLOCK_REALTIME, 0, {tv_sec=0, tv_nsec=20000000},  <unfinished ...>
4060  1795477143.778746768 <... clone3 resumed> => {parent_tid=[4061]}, 88) = 4061 <0.000163620>
4060  1795477143.778889953 pause( <unfinished ...>
4061  1795477143.798959589 <... clock_nanosleep resumed>NULL) = 0 <0.020196377>
4061  1795477143.799040631 execve("/bin/true", ["true"], NULL <unfinished ...>
4060  1795477143.799747812 <... pause resumed>) = ?
4060  1795477143.800759042 +++ superseded by execve in pid 4061 +++
4060  1795477143.800801782 <... execve resumed>) = 0 <0.001720780>
4060  1795477143.802369674 exit_group(0) = ?
4060  1795477143.802597425 +++ exited with 0 +++
"""

RESTARTED = """\
11858 1795478091.688095540 read(3<pipe:[44928]>, 0x7ffe7d7c4677, 9) = ? ERESTARTSYS (To be restarted if SA_RESTART is\
 set)\
 <0.030035991>
11858 1795478091.718167761 --- SIGALRM {si_signo=SIGALRM, si_code=SI_KERNEL} ---
11858 1795478091.718204715 write(2</dev/null<char 1:3>>, "h", 1) = 1 <0.000005391>
11858 1795478091.718250600 write(4<pipe:[44928]>, "x", 1) = 1 <0.000006933>
11858 1795478091.718274256 rt_sigreturn({mask=[]}) = 0 <0.000005252>
11858 1795478091.718297463 read(3<pipe:[44928]>, "x", 9) = 1 <0.000004885>
11858 1795478091.718297463 read(3<pipe:[44928]>, "", 9) = 0 <0.000004885>
"""

NOT_RESTARTED = """\
11858 1795478091.718354920 read(3<pipe:[44928]>, 0x7ffe7d7c4677, 9) = ? ERESTARTSYS (To be restarted if SA_RESTART is\
 set)\
 <0.030036496>
11858 1795478091.748426172 --- SIGALRM {si_signo=SIGALRM, si_code=SI_KERNEL} ---
11858 1795478091.748448360 write(2</dev/null<char 1:3>>, "h", 1) = 1 <0.000005213>
11858 1795478091.748502290 rt_sigreturn({mask=[]}) = -1 EINTR (Interrupted system call) <0.000005367>
11858 1795478091.748526084 read(3<pipe:[44928]>, "x", 9) = 1 <0.000004920>
"""

STOPPED = """\
11858 1795478091.748708954 clock_nanosleep(CLOCK_REALTIME, 0, {tv_sec=0, tv_nsec=150000000},  <unfinished ...>
11859 1795478091.780051751 clock_nanosleep(CLOCK_REALTIME, 0, {tv_sec=0, tv_nsec=30000000},  <unfinished ...>
11858 1795478091.780073360 <... clock_nanosleep resumed>NULL) = ? ERESTART_RESTARTBLOCK (Interrupted by signal)\
 <0.031350857>
11858 1795478091.780122362 --- SIGSTOP {si_signo=SIGSTOP, si_code=SI_USER, si_pid=11859, si_uid=0} ---
11858 1795478091.780140806 --- stopped by SIGSTOP ---
11859 1795478091.810243195 <... clock_nanosleep resumed>NULL) = 0 <0.030169322>
11858 1795478091.810460455 --- SIGCONT {si_signo=SIGCONT, si_code=SI_USER, si_pid=11859, si_uid=0} ---
11858 1795478091.810489031 restart_syscall(<... resuming interrupted clock_nanosleep ...> <unfinished ...>
11859 1795478091.810672139 +++ exited with 0 +++
11858 1795478091.810679867 <... restart_syscall resumed>) = ? ERESTART_RESTARTBLOCK (Interrupted by signal)\
 <0.000186272>
11858 1795478091.810688735 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_stime=1 /* 0.01 s */} ---
11858 1795478091.810700460 restart_syscall(<... resuming interrupted restart_syscall ...>) = 0 <0.088121990>
"""

KILLED = """\
12348 1795478129.130790327 read(3<pipe:[46654]>,  <unfinished ...>
12350 1795478129.130919128 pselect6(4, [3<pipe:[46654]>], NULL, NULL, {tv_sec=98, tv_nsec=893294757}, NULL\
 <unfinished ...>
12350 1795478129.426482471 <... pselect6 resumed> <unfinished ...>) = ?
12348 1795478129.426566194 <... read resumed> <unfinished ...>) = ?
12350 1795478129.427912082 +++ killed by SIGKILL +++
12348 1795478129.427947197 +++ killed by SIGKILL +++
"""

DETACHED_FROM = """\
12350 1795478128.522340708 pselect6(4, [3<pipe:[46654]>], NULL, NULL, {tv_sec=99, tv_nsec=500408875}, NULL\
 <unfinished ...>
12348 1795478128.522474079 read(3<pipe:[46654]>,  <unfinished ...>
12347 1795478128.522495360 clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, {tv_sec=2616, tv_nsec=399049844}, NULL) =\
 0 <0.1>
12347 1795478129.091389867 clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, {tv_sec=2617, tv_nsec=15971863}, \
 <detached ...>
"""

ON_STDERR = """\
execve("/usr/bin/sh", ["sh", "-c", "/bin/true; /bin/true | cat; exit"...], 0x7ffd78ef9078 /* 35 vars */) = 0
vfork(strace: Process 12288 attached
 <unfinished ...>
[pid 12288] execve("/bin/true", ["/bin/true"], 0x55986692aa30 /* 35 vars */ <unfinished ...>
[pid 12287] <... vfork resumed>)        = 12288
[pid 12287] wait4(-1,  <unfinished ...>
[pid 12288] <... execve resumed>)       = 0
[pid 12288] exit_group(0)               = ?
[pid 12288] +++ exited with 0 +++
<... wait4 resumed>[{WIFEXITED(s) && WEXITSTATUS(s) == 0}], 0, NULL) = 12288
--- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=12288, si_uid=0, si_status=0, si_utime=0, si_stime=0} ---
clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLDstrace: Process 12289 attached
, child_tidptr=0x7f563597ba10) = 12289
[pid 12289] exit_group(0)               = ?
[pid 12289] +++ exited with 0 +++
exit_group(3)                           = ?
+++ exited with 3 +++
"""

BLOCKS = {"exec in a thread": EXEC_IN_A_THREAD, "restarted": RESTARTED, "not restarted": NOT_RESTARTED,
          "stopped": STOPPED, "killed": KILLED, "detached": DETACHED_FROM, "on stderr": ON_STDERR}
REISSUES = {"restarted": [("read", REISSUED)], "not restarted": [],
            "stopped": [("restart_syscall", REISSUED), ("restart_syscall", REISSUED)]}

# What one thread that serves a connection and one that accepts write, in turn; {c} is the connection.
_SERVED = (
    '{p}  {t} recvfrom({c}, "{payload}"..., 65536, 0, NULL, NULL) = 214 <0.000008123>',
    "{q}  {t} accept4(3<TCP:[127.0.0.1:8000]>,  <unfinished ...>",
    '{p}  {t} sendto({c}, "{payload}"..., 312, MSG_NOSIGNAL, NULL, 0) = 312 <0.000018123>',
    "{q}  {t} <... accept4 resumed>{{sa_family=AF_INET, sin_port=htons(40312), sin_addr=inet_addr(\"127.0.0.1\")}},"
    " [128 => 16], SOCK_CLOEXEC) = {c} <0.000112345>",
    '{p}  {t} openat(AT_FDCWD</srv>, "/usr/lib/python3.11/site-packages/numpy/core/x.py", O_RDONLY|O_CLOEXEC)'
    " = 3</usr/lib/python3.11/x.py> <0.000018123>",
    '{p}  {t} openat(AT_FDCWD</srv>, "/usr/lib/python3.11/x.so", O_RDONLY|O_CLOEXEC) = -1 ENOENT (No such file or'
    ' directory)'
    " <0.000018123>",
    "{p}  {t} close(3</usr/lib/python3.11/x.py>) = 0 <0.000018123>",
    "{p}  {t} futex(0x7f543d6c3990, FUTEX_WAKE_PRIVATE, 1) = 1 <0.000018123>",
)
_REQUEST = r'POST /v1/predict HTTP/1.1\r\nHost: localhost:8000\r\nContent-Length: 55\r\n\r\n{\"inputs\":[[5.1,3.5,1.4'


def server_trace(n_lines: int, payload: str = "") -> Iterator[str]:
    """Of ten threads and a thousand connections: three lines of four are whole calls, half of the calls are"
    " annotated."""
    for line in range(n_lines):
        turn = line // len(_SERVED)
        ns = 1_700_000_000_000_000_000 + line * 12_345
        yield _SERVED[line % len(_SERVED)].format(
            p=4000 + turn % 5, q=5000 + turn % 5, t=f"{ns // 10**9}.{ns % 10**9:09}", payload=payload,
            c=f"16<TCP:[127.0.0.1:8000->127.0.0.1:{40000 + turn % 1000}]>")


def raw_server_trace(n_lines: int) -> Iterator[str]:
    """As strace writes it, before payloads are redacted."""
    return server_trace(n_lines, _REQUEST)
