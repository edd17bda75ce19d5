"""One line of strace without the data that the traced program moved; what things are called stays.

The rule to keep: when in doubt, redact. Only strings of the calls in `NAMES` are known to be names; a call that is not
in the table, or a line that is no call, loses all its strings, except addresses and the annotations of descriptors.
"""

import re
from itertools import islice

from tracing.parse import PREFIX
from tracing.syntax import ANNOTATION

ALL = 99
NAMES = {  # call: how many of its strings, from the first, are names (paths, programs and their arguments)
    **dict.fromkeys((
        "access acct chdir chmod chown chroot creat delete_module execve execveat faccessat faccessat2 fanotify_mark"
        " fchmodat fchmodat2 fchownat fspick fstatat64 futimesat getcwd inotify_add_watch lchown link linkat lstat"
        " lstat64 memfd_create mkdir mkdirat mknod mknodat move_mount mq_open mq_unlink name_to_handle_at newfstatat"
        " oldlstat oldstat open open_tree openat openat2 pivot_root quotactl readlink readlinkat rename renameat"
        " renameat2 rmdir stat stat64 statfs statfs64 statx swapoff swapon symlink symlinkat truncate truncate64"
        " umount umount2 unlink unlinkat uselib utime utimensat utimes").split(), ALL),
    **dict.fromkeys("getxattr lgetxattr lremovexattr lsetxattr removexattr setxattr".split(), 2),
    "mount": 3,  # the fourth may hold a password
    **dict.fromkeys("fgetxattr fremovexattr fsetxattr listxattr llistxattr fsopen".split(), 1),
}
ADDRESSES = ("sun_path=", "sun_path=@", "inet_addr(", "inet_pton(AF_INET, ", "inet_pton(AF_INET6, ", "if_nametoindex(")
REDACTED = '""...'

_CALL = re.compile(rf"{PREFIX}(?:([a-z_]\w*)\(|<\.\.\. (\w+) resumed>)", re.ASCII)
_TOKEN = re.compile(rf'"(?:[^"\\]++|\\.)*+(?:"(?:\.\.\.)?|\\?$)|{ANNOTATION}', re.ASCII)  # a torn string has no end


def redact(line: str) -> str:
    """The line as it may be stored."""
    if '"' not in line:
        return line
    call = _CALL.match(line)
    n_names = NAMES.get(call[3] or call[4], 0) if call else 0
    if n_names == ALL:
        return line
    if n_names and call and call[3]:  # in the second half of a call it is not known which string is the first
        end = _end_of_string(line, n_names)
        return line[:end] + _TOKEN.sub(_redacted, line[end:])
    return _TOKEN.sub(_redacted, line)


def _redacted(token: re.Match) -> str:
    if token[0][0] == "<" or token.string.endswith(ADDRESSES, 0, token.start()):
        return token[0]
    return REDACTED


def _end_of_string(line: str, n: int) -> int:
    """Where the n-th string ends, or the line."""
    ends = (token.end() for token in _TOKEN.finditer(line) if token[0][0] == '"')
    return next(islice(ends, n - 1, None), len(line))
