"""The C library's allocator, made ready for serving.

glibc's malloc opens two files when it first needs what they say: the list of cores, when there are more than eight
arenas, and /proc/sys/vm/overcommit_memory, when it first gives memory of a thread's arena back. Both would happen
while requests are served.

The rule to keep: after `settle` no allocation opens a file, and the limits are those that glibc itself would choose.

Source: arena.c and malloc.c of glibc; mallopt(3).
"""

import ctypes
import os
import threading

M_ARENA_MAX = -8
ARENAS_A_CORE = 8  # NARENAS_FROM_NCORES, where a long has 64 bits
BLOCK_BYTES = 120_000  # less than M_MMAP_THRESHOLD ever is: from the arena
BLOCKS = 512  # together nearly a heap, and more than any threshold below which nothing is given back


def settle() -> None:
    """Have malloc do now what it would do later; does nothing where the C library is not glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    if "MALLOC_ARENA_MAX" not in os.environ and "arena_max" not in os.environ.get("GLIBC_TUNABLES", ""):
        libc.mallopt(M_ARENA_MAX, ARENAS_A_CORE * (os.cpu_count() or 1))
    thread = threading.Thread(target=_shrink_heap, args=(libc,))  # the main thread's arena is no heap
    thread.start()
    thread.join()


def _shrink_heap(libc: ctypes.CDLL) -> None:
    """Take nearly a whole heap and give it back; its pages are not touched."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    for block in reversed([libc.malloc(BLOCK_BYTES) for _ in range(BLOCKS)]):
        libc.free(block)
