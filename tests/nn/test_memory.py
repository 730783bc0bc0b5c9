"""What is dense, and when: counted by weak references to dense weight storages."""

from __future__ import annotations

import gc

import pytest
import torch
from models import batch, make
from torch.multiprocessing.reductions import StorageWeakRef

from neuzip.nn import CompressedTensor, compress_model
from neuzip.nn import ops as nn_ops
from neuzip.nn.weight import Weight


class Dense:
    """Counts dense copies of weights that are alive, apart from the one reused buffer."""

    def __init__(self, monkeypatch) -> None:
        self.references: list[StorageWeakRef] = []
        self.peak = 0
        original = Weight.dense

        def counted(weight, out=None):
            result = original(weight, out)
            self.references.append(StorageWeakRef(result.untyped_storage()))
            self.peak = max(self.peak, self.alive())
            return result

        monkeypatch.setattr(Weight, "dense", counted)

    def alive(self) -> int:
        self.references = [r for r in self.references if not r.expired()]
        return len(self.references)


@pytest.fixture
def dense(monkeypatch) -> Dense:
    return Dense(monkeypatch)


def test_nothing_dense_is_alive_after_forward_or_backward(dense):
    model = compress_model(make(layers=4, tied=True))
    loss = model(batch(0))
    gc.collect()
    assert dense.alive() == 0
    loss.backward()
    assert dense.alive() == 0
    assert dense.peak <= 1


def test_the_count_sees_dense_weights_that_are_kept(dense):
    model = compress_model(make(layers=4))
    held = [p.dense() for p in model.parameters() if isinstance(p, CompressedTensor)]
    assert dense.alive() == len(held) > 8


def test_the_buffer_is_one_piece(monkeypatch):
    sizes = []
    original = nn_ops.scratch

    def counted(shape, dtype, device="cpu"):
        result = original(shape, dtype, device)
        sizes.append(result.nbytes)
        return result

    monkeypatch.setattr(nn_ops, "scratch", counted)
    model = compress_model(make(vocab=4096), piece_bytes=1 << 15)
    model(batch(0, vocab=4096)).backward()
    largest = max(p.nbytes for p in model.parameters())
    assert largest > 1 << 18
    assert max(s for s in sizes) <= 1 << 19  # an embedding's block is a few chunks
    linear = [s for s in sizes if s <= 1 << 15]
    assert len(linear) > 16


def test_a_frozen_weight_does_not_keep_its_input():
    weight = CompressedTensor.compress(torch.randn(64, 64).bfloat16())
    x = torch.randn(8, 64).bfloat16().requires_grad_()
    hidden = x * 2
    reference = StorageWeakRef(hidden.untyped_storage())
    y = torch.nn.functional.linear(hidden, weight)
    del hidden
    assert reference.expired()
    y.float().sum().backward()
    assert x.grad is not None
