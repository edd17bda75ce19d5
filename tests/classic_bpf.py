"""Classic BPF, interpreted: the reference for filters that are compiled.

https://docs.kernel.org/networking/filter.html, seccomp(2)
"""


def run(code: list[tuple[int, int, int, int]], arch: int, number: int, args: list[int]) -> int:
    """Classic BPF as the kernel runs it over struct seccomp_data; unknown instructions are KeyErrors."""
    data = b"".join((number.to_bytes(4, "little"), arch.to_bytes(4, "little"), bytes(8),
                     *(arg.to_bytes(8, "little") for arg in args)))
    at, a = 0, 0
    while True:
        op, if_true, if_false, k = code[at]
        assert 0 <= if_true <= 255 and 0 <= if_false <= 255 and 0 <= k < 2 ** 32
        at += 1
        if op == 0x06:
            return k
        if op == 0x20:
            assert k % 4 == 0 and k + 4 <= len(data)
            a = int.from_bytes(data[k:k + 4], "little")
        elif op == 0x54:
            a &= k
        elif op == 0x05:
            at += k
        else:
            at += if_true if {0x15: a == k, 0x25: a > k, 0x35: a >= k}[op] else if_false
