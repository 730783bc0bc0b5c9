"""GGUF files: their tensors found, their blocks split, every byte restored, and files that lie."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf_file as by_hand
import numpy as np
import pytest
from gguf_file import Tensor, array, pair, string
from kind_files import found, packed, restored
from safetensors_file import weights

from neuzip.archive import Archive
from neuzip.errors import NeuzipError
from neuzip.kinds import Kind, find_parts
from neuzip.kinds.gguf_file import _BLOCKS, _PLAIN, read_gguf
from neuzip.kinds.part import ViewSource, field_size
from neuzip.layouts import DTYPES

gguf = pytest.importorskip("gguf")
NOISE = np.random.default_rng(3).bytes(1 << 20)
# What ggml has for computing only: no file has them, and the package's size of Q8_1 is not ggml's.
TRANSIENT = {"Q8_1"}


def block_size(kind: int) -> int:
    return sum(DTYPES[dtype].bits * count // 8 for dtype, count in _BLOCKS[kind][2])


def test_types_are_those_of_the_gguf_package() -> None:
    sizes = {kind.name: (int(kind), *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    ours = {name: (kind, 1, DTYPES[name].bits // 8) for kind, name in _PLAIN.items()}
    ours |= {name: (kind, elements, block_size(kind)) for kind, (name, elements, _) in _BLOCKS.items()}
    assert ours == {name: size for name, size in sizes.items() if name not in TRANSIENT}


def quantised(path: Path, kind: str, rows: int = 64) -> list[str]:
    """A file made by the package: a matrix of the type, one it cannot have, and metadata of every kind."""
    out = gguf.GGUFWriter(path, "bert")
    out.add_array("tokenizer.ggml.tokens", ["ü", "", "a b"] * 500)
    out.add_array("numbers", [1, 2, 3])
    out.add_float32("f", 0.5)
    out.add_bool("b", True)
    type_ = gguf.GGMLQuantizationType[kind]
    matrix = np.random.default_rng(0).normal(0, 0.02, (rows, 512)).astype(np.float32)
    out.add_tensor("blk.0/attn q.weight", gguf.quants.quantize(matrix, type_), raw_dtype=type_)
    out.add_tensor("ids", np.arange(77, dtype=np.int64))
    out.add_tensor("norm", matrix[0])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return ["blk.0/attn q.weight", "ids", "norm"]


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0", "MXFP4"]
)
def test_files_of_the_package(tmp_path: Path, kind: str) -> None:
    names = quantised(tmp_path / "m.gguf", kind)
    data = (tmp_path / "m.gguf").read_bytes()
    parts = {part.name: part for part in read_gguf(ViewSource(memoryview(data)))}
    assert list(parts) == names
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        part = parts[tensor.name]
        assert (part.start, part.size) == (int(tensor.data_offset), int(tensor.n_bytes))
        assert (part.type, part.shape) == (tensor.tensor_type.name, tuple(tensor.shape[::-1].tolist()))
    made = packed(data)
    assert restored(made) == data
    assert len(made) < 0.99 * len(data)


@pytest.mark.parametrize(("kind", "ratio"), [("Q8_0", 0.97), ("Q4_0", 0.95), ("Q4_1", 0.95)])
def test_scales_and_codes_are_coded_apart(tmp_path: Path, kind: str, ratio: float) -> None:
    quantised(tmp_path / "m.gguf", kind, rows=400)
    data = (tmp_path / "m.gguf").read_bytes()
    made = packed(data)
    archive = Archive.parse(memoryview(made))
    assert archive.kind == Kind.GGUF
    (segment,) = (s for s in archive.segments if s.name == "blk.0/attn q.weight")
    headers = [header for _, header in archive.frames(segment)]
    fields = next(fields for name, _, fields in _BLOCKS.values() if name == kind)
    assert [(header.dtype.name, header.shape[1]) for header in headers] == list(fields)
    assert len(made) < ratio * len(data)


# Root of the rounding's mean square over that of the weights; bytes over the file's, .002 above those measured.
WEIGHTS = {
    "Q2_K": (0.34, 0.919),
    "Q3_K": (0.19, 0.983),
    "Q4_K": (0.08, 0.966),
    "Q5_K": (0.04, 0.994),
    "Q6_K": (0.02, 0.969),
    "IQ1_S": (0.46, 0.995),
    "IQ1_M": (0.44, 0.991),
    "IQ2_XXS": (0.37, 0.983),
    "IQ2_XS": (0.32, 0.985),
    "IQ2_S": (0.27, 0.983),
    "IQ3_XXS": (0.2, 0.988),
    "IQ3_S": (0.14, 0.991),
    "IQ4_NL": (0.09, 0.935),
    "IQ4_XS": (0.09, 0.945),
    "NVFP4": (0.11, 0.915),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_rounded_weights(kind: str) -> None:
    from quantisers import QUANTISERS

    error, ratio = WEIGHTS[kind]
    matrix = np.random.default_rng(0).normal(0, 0.02, (1000, 512)).astype(np.float32)
    matrix *= np.random.default_rng(1).lognormal(0, 0.5, (1000, 1)).astype(np.float32)
    type_ = gguf.GGMLQuantizationType[kind]
    blocks = QUANTISERS[kind](matrix)
    left = gguf.quants.dequantize(blocks.reshape(1000, -1), type_) - matrix
    assert np.sqrt(np.mean(left**2) / np.mean(matrix**2)) < error
    data = by_hand.build([Tensor("w", int(type_), (512, 1000), blocks.tobytes())])
    assert found(data) == {"w": (kind, (1000, 512))}
    made = packed(data)
    assert restored(made) == data
    assert len(made) < ratio * len(data)


@pytest.mark.parametrize("kind", [*_PLAIN, *_BLOCKS, 99])
@pytest.mark.parametrize("alignment", [32, 8, 64])
def test_noise_of_every_type_costs_nearly_nothing(kind: int, alignment: int) -> None:
    size = block_size(kind) if kind in _BLOCKS else DTYPES[_PLAIN[kind]].bits // 8 if kind in _PLAIN else 5
    elements = _BLOCKS[kind][1] if kind in _BLOCKS else 1
    tensors = [
        Tensor(f"t{count}", kind, (elements, count), NOISE[: size * count]) for count in (1, 3, 700, 0, 11)
    ]
    data = by_hand.build(tensors, alignment=alignment)
    if kind != 99:
        assert [shape for _, shape in found(data).values()] == [(n, elements) for n in (1, 3, 700, 0, 11)]
    made = packed(data)
    assert restored(made) == data
    assert len(made) <= 1.001 * len(data) + 200


def test_shapes_of_no_and_many_dimensions() -> None:
    tensors = [
        Tensor("scalar", 0, (), NOISE[:4]),
        Tensor("", 30, (2, 3, 4, 5), weights("BF16", 120)),
        Tensor("ü.weight/1", 1, (50,), weights("F16", 50)),
    ]
    assert found(by_hand.build(tensors)) == {
        "scalar": ("F32", ()),
        "": ("BF16", (5, 4, 3, 2)),
        "ü.weight/1": ("F16", (50,)),
    }
    assert found(by_hand.build(tensors, version=2)) == found(by_hand.build(tensors))


GOOD = Tensor("w", 8, (32, 300), NOISE[:10_200])
NESTED = array(9, [array(9, [array(8, [string(b"x")])]), array(9, [])])
HUGE = 1 << 60

LIES = {
    "version_1": by_hand.build([GOOD], version=1),
    "big_endian": by_hand.build([GOOD], version=3 << 24),
    "tensors": by_hand.build([GOOD], counts=(HUGE, 0)),
    "pairs": by_hand.build([GOOD], counts=(1, HUGE)),
    "strings": by_hand.build([GOOD], [pair(b"a", 9, array(8, [], HUGE))]),
    "numbers": by_hand.build([GOOD], [pair(b"a", 9, array(4, [], HUGE))]),
    "string": by_hand.build([GOOD], [pair(b"a", 8, struct.pack("<Q", HUGE))]),
    "key": by_hand.build([GOOD], [struct.pack("<Q", (1 << 64) - 8)]),
    "type": by_hand.build([GOOD], [pair(b"a", 13, b"")]),
    "alignment": by_hand.build([GOOD], [pair(b"general.alignment", 4, bytes(4))]),
    "nested": by_hand.build([GOOD], [pair(b"a", 9, array(9, [], 1) * 100_000)]),
    "name": by_hand.build([GOOD]).replace(string(b"w"), string(b"w" * (1 << 17))),
    "dimensions": by_hand.build([Tensor("w", 0, (1,) * 1000, b"")]),
}


@pytest.mark.parametrize("name", LIES)
def test_files_that_lie_are_files_of_no_kind(name: str) -> None:
    data = LIES[name]
    with pytest.raises(NeuzipError):
        read_gguf(ViewSource(memoryview(data)))
    tracemalloc.start()
    structure = find_parts(ViewSource(memoryview(data)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert structure.kind == Kind.OTHER
    assert peak < 2 << 20
    assert restored(packed(data)) == data


def test_tensors_that_are_not_in_the_file_are_left_out() -> None:
    shapes = [(32, HUGE), (1 << 63,) * 8, (33, 1), (32, 301)]
    for shape in shapes:
        data = by_hand.build([GOOD, Tensor("lost", 8, shape, b"")])
        assert found(data) == {"w": ("Q8_0", (300, 32))}, shape
        assert restored(packed(data)) == data


def test_arrays_of_arrays_are_passed() -> None:
    data = by_hand.build([GOOD], [pair(b"a", 9, NESTED), pair(b"n", 9, array(6, [b"1234"] * 9))])
    assert found(data) == {"w": ("Q8_0", (300, 32))}


def test_fields_fill_their_blocks() -> None:
    for part in read_gguf(ViewSource(memoryview(by_hand.build([GOOD])))):
        assert part.record_size == sum(map(field_size, part.fields)) == 34
