"""Weights are coded on the threads of torch's operators, and in a forked child on others."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from neuzip.nn.team import torch_options

PROGRAM = """
import os, signal
import torch
from neuzip.nn import CompressedLinear

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
plain = torch.nn.Linear(1024, 1024, bias=False)
x = torch.randn(64, 1024)
expected = plain(x)
before = threads()
packed = CompressedLinear.from_linear(plain)
assert torch.equal(packed(x), expected)
print("made", threads() - before)
child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that hangs is to fail
    # No operator of torch, which would wait for threads that are not there: bytes are compared.
    same = packed.weight.dense().numpy().tobytes() == plain.weight.detach().numpy().tobytes()
    os._exit(0 if same and threads() == 2 else 1)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("count", [1, 2])
def test_as_many_threads_as_torch(count: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        options = torch_options("max", 12)
    finally:
        torch.set_num_threads(before)
    assert (options.level, options.thread_count, options.chunk_log2) == ("max", count, 12)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how many threads there are")
def test_no_threads_beside_torchs() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n") == ["made 0", "child 0", ""], done.stderr
