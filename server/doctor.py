"""`python -m server doctor`: what works on this machine, what does not, and how to get it."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable

from server import sandbox

# (what, whether it is there, what it gives, how to get it)
Check = tuple[str, Callable[[], bool], str, str]


def main() -> int:
    """Print one line a check → exit status: 0 when the native path works, 1 when only the Python path does."""
    native = sys.platform == "linux" and _found("numba")
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()},"
          f" {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores")
    for what, works, gives, how in checks():
        print(f"  {'active ' if works() else 'missing'}  {what}: {gives}" + ("" if works() else f" ({how})"))
    if native:
        from kernels.compiled import cache_dir
        from pathlib import Path
        folder = cache_dir(Path(__file__).resolve().parent)
        print(f"  compiled code is kept in {folder}")
    print("requests are served by native code" if native else "requests are served by Python (as with --no-native)")
    return 0 if native else 1


def checks() -> list[Check]:
    return [
        ("Linux", lambda: sys.platform == "linux", "event loops in native code",
         "elsewhere the server runs as with --no-native"),
        ("AVX2", _has_avx2, "vector instructions", "without it the kernels run as portable vector code"),
        ("numba", lambda: _found("numba"), "compiled kernels and hot path", "pip install numba"),
        ("gguf", lambda: _found("gguf"), "python -m kernels quantize, kernels.export", "pip install 'testigo[gguf]'"),
        ("seccomp", lambda: not sandbox.unsupported(), "python -m server --sandbox",
         "Linux 4.14 or newer, 64-bit x86 or ARM"),
        ("strace", lambda: shutil.which("strace") is not None, "system calls can be counted", "apt-get install strace"),
    ]


def _found(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _has_avx2() -> bool:
    if platform.machine() not in ("x86_64", "AMD64") or not _found("llvmlite"):
        return False
    import llvmlite.binding
    return bool(llvmlite.binding.get_host_cpu_features().get("avx2"))
