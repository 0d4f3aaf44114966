"""What computes: in which precision, on which device, on how many threads of a CPU."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lib.common.errors import UserError

PRECISIONS = "fp32", "bf16", "fp32 compiled", "bf16 compiled"

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


@dataclass(frozen=True)
class Engine:
    """What a network is trained and looked at with.

    `precision`, one of PRECISIONS, is what layers compute in where autocast lets them, and whether the network is
    compiled.
    """

    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set up what is global in torch for the block, and leave threads and random state as they were.

        Raises UserError for a device that is not here.
        """
        kind, _, number = self.device.partition(":")
        if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
            raise UserError(
                f"device={self.device} is not here: this torch sees {torch.cuda.device_count()} GPUs. Use "
                "device='cpu', or another number."
            )
        threads = torch.get_num_threads()
        try:
            with torch.random.fork_rng(devices=[] if self.device == "cpu" else [self.device]):
                set_up_cpu(self.threads)
                yield
        finally:
            torch.set_num_threads(threads)

    def autocast(self) -> torch.autocast:
        """The context in which this engine's precision is computed in."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.precision.startswith("bf16"))
