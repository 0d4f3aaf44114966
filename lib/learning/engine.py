"""Make PyTorch fast and repeatable on a CPU: pinned threads, and a heap that keeps its pages."""

import ctypes

import torch

# glibc's mallopt parameters (malloc.h). By default every large tensor is mapped afresh and handed
# back when freed, so each step pays for page faults anew; the three settings keep the memory.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def set_up_cpu(threads: int) -> None:
    """Pin the number of threads (results differ between counts) and keep freed memory."""
    torch.set_num_threads(threads)
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # not glibc: slower, same numbers
    # As far as two runs side by side stay below 2 GB of memory.
    libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(_M_TRIM_THRESHOLD, 256 << 20)
    libc.mallopt(_M_TOP_PAD, 16 << 20)
