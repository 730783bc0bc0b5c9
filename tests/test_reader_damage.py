"""What reading does with files that are damaged or forged."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import neuzip
import neuzip.numpy as nn
from neuzip.container import Container, Entry
from neuzip.container_metadata import complete_metadata, container_metadata
from neuzip.errors import CorruptFrame, NeuzipError, TruncatedInput
from neuzip.layouts import DTYPES
from neuzip.safetensors_header import LENGTH, format_header, parse_header

ROWS, COLUMNS = 700, 1000  # 11 chunks of 65536 units
WEIGHT = np.random.default_rng(0).normal(0, 0.02, (ROWS, COLUMNS)).astype(np.float32)
SMALL = {"a": WEIGHT[:4], "b": np.arange(900)}


def test_damage_is_found_where_it_is_read(tmp_path: Path) -> None:
    content = bytearray(nn.save({"weight": WEIGHT, **SMALL}))
    with Container.parse(memoryview(bytes(content))) as container:
        header = container.frame_header("weight")
        start = container.header.data_start + container.header.entries["weight"].start
    content[start + int(header.offsets[6]) + 500] ^= 1
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with neuzip.safe_open(path, "np") as file:
        view = file.get_slice("weight")
        assert np.array_equal(view[:300], WEIGHT[:300])
        for use in (lambda: view[400:420], lambda: file.get_tensor("weight"), file.get_tensors):
            with pytest.raises(CorruptFrame) as caught:
                use()
            assert (caught.value.file, caught.value.tensor, caught.value.chunk) == (str(path), "weight", 6)


def test_no_truncation_crashes() -> None:
    content = nn.save(SMALL)
    for size in range(0, len(content), 17):
        with pytest.raises((CorruptFrame, TruncatedInput)):
            nn.load(content[:size])


def test_a_flipped_bit_is_an_error_or_changes_nothing() -> None:
    content = nn.save(SMALL, {"note": "x"})
    for position in range(0, len(content), 17):
        spoilt = bytearray(content)
        spoilt[position] ^= 1 << position % 8
        try:
            loaded = nn.load(spoilt)
        except NeuzipError:
            continue
        assert [array.tobytes() for array in loaded.values()] == [SMALL["b"].tobytes(), SMALL["a"].tobytes()]


def forged(path: Path, shape: tuple[int, ...], data: bytes) -> None:
    """A container whose original header says F32 of a shape, whatever its frame says."""
    size = 4 * math.prod(shape)
    original = parse_header(format_header({}, [Entry("a", DTYPES["F32"], shape, 0, size)]))
    text = format_header(
        complete_metadata(container_metadata(original), "0" * 64, b""),
        [Entry("a", DTYPES["U8"], (len(data),), 0, len(data))],
    )
    path.write_bytes(LENGTH.pack(len(text)) + text + data)


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (COLUMNS, ROWS), (ROWS * COLUMNS,), (1 << 50, 16), (0,)])
def test_the_original_header_and_the_frame_must_agree(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "forged.safetensors"
    forged(path, shape, nn.compress(WEIGHT))
    pytest.importorskip("torch")
    for framework in ("np", "pt"):
        with neuzip.safe_open(path, framework) as file:
            reads = (
                file.get_tensors,
                lambda file=file: file.get_slice("a")[:],
                lambda file=file: file.get_slice("a")[:7],
            )
            for read in reads:
                if shape == (ROWS, COLUMNS):
                    read()
                    continue
                with pytest.raises(CorruptFrame) as caught:
                    read()
                assert (caught.value.file, caught.value.tensor) == (str(path), "a")


@pytest.mark.parametrize("name", ["frame_shape", "frame_dtype", "frame_corrupt"])
def test_frames_of_another_type_are_refused_where_many_are_read(name: str) -> None:
    path = Path(__file__).parents[1] / "formats" / "vectors" / "bad" / f"container_{name}.nz.safetensors"
    with neuzip.safe_open(path, "np") as file, pytest.raises(CorruptFrame) as caught:
        file.get_tensors()
    assert caught.value.tensor == "scale"
