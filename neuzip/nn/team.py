"""The threads that weights are coded in: those of torch's own operators.

After an operator OpenMP's threads spin for some milliseconds, to be there for the next one. A thread of another kind
waits for a core meanwhile, which takes longer than decoding a weight.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from neuzip import _native
from neuzip.codec import Options


def torch_options(level: str = Options.level, chunk_log2: int = Options.chunk_log2) -> Options:
    """As many threads as torch's operators use, and the same ones where they are OpenMP's."""
    return _options(level, torch.get_num_threads(), chunk_log2)


@cache  # a token's products ask at every layer
def _options(level: str, threads: int, chunk_log2: int) -> Options:
    return Options(level, threads, chunk_log2, team=_has_team())


@cache
def _has_team() -> bool:
    parallel = openmp_parallel()
    _native.set_team(parallel)
    return parallel is not None


def openmp_parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch uses: GNU's function, which Intel's and LLVM's have
    as well on Linux. None if there is none.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not torch._C.has_openmp or not hasattr(os, "RTLD_NOLOAD"):
        return None
    try:
        # Functions are looked for in the libraries that it was linked with: the process may hold other runtimes.
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(loaded.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
