"""torch.compile and inference modes."""

from __future__ import annotations

import pytest
import torch
from models import batch, make, same_bits
from torch.multiprocessing.reductions import StorageWeakRef

from neuzip.nn import compress_model
from neuzip.nn.weight import Weight


def test_compiled_equals_eager_on_the_compressed_model():
    torch._dynamo.reset()
    model, dense = compress_model(make(layers=1)), make(layers=1)
    compiled = torch.compile(model, backend="aot_eager")
    loss = compiled(batch(0))
    assert same_bits(loss, torch.compile(dense, backend="aot_eager")(batch(0)))
    loss.backward()
    assert model.head.weight.grad is not None


def test_compiled_forward_saves_no_dense_weight(monkeypatch):
    torch._dynamo.reset()
    references = []
    original = Weight.dense

    def counted(weight, out=None):
        result = original(weight, out)
        references.append(StorageWeakRef(result.untyped_storage()))
        return result

    monkeypatch.setattr(Weight, "dense", counted)
    model = compress_model(make(layers=2))
    loss = torch.compile(model, backend="aot_eager")(batch(0))
    assert not any(not reference.expired() for reference in references)
    loss.backward()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_inference_equals_dense(mode):
    model, dense = compress_model(make()), make()
    with mode():
        assert same_bits(model.logits(batch(0)), dense.logits(batch(0)))
        # One token at a time is another kernel: compared with the same.
        assert same_bits(model.logits(batch(0)[:1, :1]), dense.logits(batch(0)[:1, :1]))
