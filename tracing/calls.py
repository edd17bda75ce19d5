"""The names of system calls, and strace's classes of them.

Source: strace's own tables (src/linux/*/syscallent*.h), x86-64 and the 64-bit architectures with generic numbers.
"""

from collections.abc import Iterable

CLASSES = {name: frozenset(calls.split()) for name, calls in {
    "%clock": """
        adjtimex clock_adjtime clock_getres clock_gettime clock_settime gettimeofday settimeofday time""",
    "%creds": """
        capget capset getegid geteuid getgid getgroups getresgid getresuid getuid prctl setfsgid setfsuid setgid
        setgroups setregid setresgid setresuid setreuid setuid""",
    "%desc": """
        bpf cachestat close copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait
        epoll_pwait2 epoll_wait eventfd eventfd2 execveat faccessat faccessat2 fadvise64 fallocate fanotify_init
        fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr file_getattr
        file_setattr finit_module flistxattr flock fremovexattr fsconfig fsetxattr fsmount fsopen fspick fstat
        fstatfs fsync ftruncate futimesat getdents getdents64 getxattrat inotify_add_watch inotify_init
        inotify_init1 inotify_rm_watch io_uring_enter io_uring_register io_uring_setup ioctl kexec_file_load
        landlock_add_rule landlock_create_ruleset landlock_restrict_self linkat listxattrat lseek memfd_create
        memfd_secret mkdirat mknodat mmap mount_setattr move_mount mq_getsetattr mq_notify mq_open
        mq_timedreceive mq_timedsend name_to_handle_at newfstatat open open_by_handle_at open_tree
        open_tree_attr openat openat2 perf_event_open pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2 poll
        ppoll pread64 preadv preadv2 process_madvise process_mrelease pselect6 pwrite64 pwritev pwritev2
        quotactl_fd read readahead readlinkat readv removexattrat renameat renameat2 select sendfile setns
        setxattrat signalfd signalfd4 splice statx symlinkat sync_file_range syncfs tee timerfd_create
        timerfd_gettime timerfd_settime unlinkat userfaultfd utimensat vmsplice write writev""",
    "%file": """
        access acct chdir chmod chown chroot creat execve execveat faccessat faccessat2 fanotify_mark fchmodat
        fchmodat2 fchownat file_getattr file_setattr fsconfig fspick futimesat getcwd getxattr getxattrat
        inotify_add_watch lchown lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr lsetxattr
        lstat mkdir mkdirat mknod mknodat mount mount_setattr move_mount name_to_handle_at newfstatat open
        open_tree open_tree_attr openat openat2 pivot_root quotactl readlink readlinkat removexattr
        removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat statfs statx swapoff swapon
        symlink symlinkat truncate umount2 unlink unlinkat uselib utime utimensat utimes""",
    "%ipc": """
        msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget""",
    "%memory": """
        brk get_mempolicy io_destroy io_setup io_uring_register madvise map_shadow_stack mbind migrate_pages
        mincore mlock mlock2 mlockall mmap move_pages mprotect mremap mseal msync munlock munlockall munmap
        pkey_mprotect remap_file_pages set_mempolicy set_mempolicy_home_node shmat shmdt""",
    "%net": """
        accept accept4 bind connect getpeername getpmsg getsockname getsockopt listen putpmsg recvfrom recvmmsg
        recvmsg sendfile sendmmsg sendmsg sendto setsockopt shutdown socket socketpair""",
    "%process": """
        clone clone3 execve execveat exit exit_group fork kill pidfd_send_signal rt_sigqueueinfo
        rt_tgsigqueueinfo tgkill tkill vfork wait4 waitid""",
    "%signal": """
        io_uring_enter kill pause pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
        rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4 tgkill tkill""",
}.items()}
OTHERS = frozenset("""
    _sysctl add_key afs_syscall alarm arch_prctl clock_nanosleep close_range create_module delete_module
    epoll_ctl_old epoll_wait_old futex futex_requeue futex_wait futex_waitv futex_wake get_kernel_syms
    get_robust_list get_thread_area getcpu getitimer getpgid getpgrp getpid getppid getpriority getrandom getrlimit
    getrusage getsid gettid init_module io_cancel io_getevents io_pgetevents io_submit ioperm iopl ioprio_get
    ioprio_set kcmp kexec_load keyctl listmount listns lookup_dcookie lsm_get_self_attr lsm_list_modules
    lsm_set_self_attr membarrier modify_ldt mq_unlink nanosleep nfsservctl personality pkey_alloc pkey_free
    prlimit64 process_vm_readv process_vm_writev ptrace query_module reboot request_key restart_syscall rseq
    rseq_slice_yield sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield seccomp security set_robust_list set_thread_area set_tid_address setdomainname sethostname setitimer
    setpgid setpriority setrlimit setsid statmount sync sysfs sysinfo syslog timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime times tuxcall umask uname unshare uretprobe ustat vhangup vserver
""".split())
ALIASES = {"%network": "%net"}
NAMES = OTHERS.union(*CLASSES.values())


def expand(names: Iterable[str]) -> frozenset[str]:
    """Calls and classes ("connect", "%net", "all") → the calls. Raises ValueError, naming it, for what is neither."""
    calls: set[str] = set()
    for name in names:
        if name == "all":
            calls |= NAMES
        elif name.startswith("%"):
            if ALIASES.get(name, name) not in CLASSES:
                raise ValueError(f"{name} is no class of calls; expected one of {', '.join(CLASSES)}")
            calls |= CLASSES[ALIASES.get(name, name)]
        elif name not in NAMES:
            raise ValueError(f"{name} is no system call")
        else:
            calls.add(name)
    return frozenset(calls)


# Calls that newer architectures never had: there strace knows none of that name, and nothing is missing.
LEGACY = frozenset("access creat dup2 fork open pipe vfork".split())


def missing(traced: Iterable[str], needed: Iterable[str]) -> list[str]:
    """The calls of `needed` that a recording with strace's `-e trace=` set of `traced` does not hold.

    "?name" says that this strace does not know the call: it was not recorded.
    """
    given = set(traced)
    if "all" in given:
        return []
    held = expand(name for name in given if name.startswith("%") or name in NAMES)
    absent = {name for name in LEGACY if f"?{name}" in given}
    return sorted(set(needed) - held - absent)
