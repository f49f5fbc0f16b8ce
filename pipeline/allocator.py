"""glibc's allocator told to keep what it has: activations of hundreds of megabytes are the same size in every batch.

By default glibc takes each large block from the kernel and gives it back when it is freed, so that every forward pass
touches fresh pages: thousands of page faults per batch, a third of the time on small networks. Kept, the memory is that
of one batch's activations for each thread that computes, and not more.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # malloc.h
_KEEP = 2**30


@cache
def keep_memory() -> bool:
    """Tell the C library's allocator of this process to keep freed memory; the first call does it.

    Returns:
        whether it is glibc's, and did. Other systems' allocators stay as they are.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it
        mallopt = library.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _KEEP, _TOP_PAD: 64 << 20, _ARENA_MAX: 1}
    return all(mallopt(option, value) == 1 for option, value in wanted.items())
