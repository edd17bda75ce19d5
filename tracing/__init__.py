"""A verdict on what a server does, from what strace saw it do.

The rule to keep: PASS is never wrong. Whatever could hide a system call from us makes the verdict INCONCLUSIVE.
"""
