"""NumPy's structs are those of csrc/cuda/launch.h."""

from __future__ import annotations

import re

import numpy as np
import pytest

from neuzip.cuda import jobs, sources

HEADER = (sources.directory() / "launch.h").read_text(encoding="utf-8")
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
STRUCTS = {
    "NzChunk": jobs.CHUNK,
    "NzJob": jobs.JOB,
    "NzSegment": jobs.SEGMENT,
    "NzPlanes": jobs.PLANES,
    "NzMatvec": jobs.MATVEC,
}
SIZES = {"uint64_t": "<u8", "uint32_t": "<u4"}


def c_fields(name: str) -> list[tuple[str, np.dtype]]:
    body = re.search(rf"typedef struct {{([^}}]*)}} {name};", CODE)
    assert body is not None
    fields = []
    for kind, pointer, field in re.findall(r"(\w+)\s+(\*?)(\w+);", body[1]):
        fields.append((field, np.dtype("<u8") if pointer else STRUCTS.get(kind) or np.dtype(SIZES[kind])))
    return fields


@pytest.mark.parametrize("name", STRUCTS)
def test_struct(name: str) -> None:
    dtype = STRUCTS[name]
    assert [(field, dtype[field]) for field in dtype.names or ()] == c_fields(name)
    # NumPy packs; a C compiler would not, were a field not aligned.
    assert all(dtype.fields[field][1] % min(8, dtype[field].itemsize) == 0 for field in dtype.names or ())
    assert dtype.itemsize % 8 == 0


def test_numbers() -> None:
    defined = dict(re.findall(r"#define (NZ_\w+)\s+\\?\s*(\d+)", CODE))
    assert int(defined["NZ_WARPS"]) == jobs.WARPS
    assert int(defined["NZ_SEGMENT_COUNTS"]) == jobs.SEGMENT_COUNTS
    assert int(defined["NZ_MATVEC_BATCH"]) == jobs.MATVEC_BATCH
    assert int(defined["NZ_MATVEC_CHUNK_LOG2"]) == jobs.MATVEC_CHUNK_LOG2
    faults = {int(number) for _, number in re.findall(r"(NZ_FAULT_\w+) = (\d+)", CODE)}
    assert faults == {0, *jobs.FAULTS}


def test_room_of_a_slot() -> None:
    macro = re.search(r"#define NZ_SLOT_BYTES\(width, chunk_log2\) (.*)", CODE)
    assert macro is not None
    expression = macro[1].replace("(uint64_t)", "")
    for width, log2 in ((1, 10), (2, 16), (8, 12)):
        assert eval(expression, {"width": width, "chunk_log2": log2}) == jobs.slot_bytes(width, log2)
