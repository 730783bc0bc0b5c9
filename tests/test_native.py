"""``neuzip/_native.py`` against ``csrc/neuzip.h``: signatures, fields, objects made through pointers."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuzip import _abi, _native, _system, frame
from neuzip.codec import Options
from neuzip.errors import CorruptFrame, InvalidArgument, TruncatedInput, UnsupportedFormat
from neuzip.layouts import DTYPES, LAYOUTS

HEADER = (Path(__file__).resolve().parent.parent / "csrc" / "neuzip.h").read_text(encoding="utf-8")
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)

BASE_TYPES = {
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "size_t": ctypes.c_size_t,
}
STRUCTURES = {
    "nz_encode_job": _abi.EncodeJob,
    "nz_decode_job": _abi.DecodeJob,
    "nz_frame": _abi.Frame,
    "nz_encode_frame_job": _abi.EncodeFrameJob,
    "nz_decode_frame_job": _abi.DecodeFrameJob,
    "nz_fixed_linear_job": _abi.FixedLinearJob,
}
POINTERS = (ctypes.c_void_p, ctypes.c_char_p)


@pytest.mark.parametrize("structure", [_abi.EncodeFrameJob, _abi.DecodeFrameJob])
def test_packed_fields_are_those_of_the_structure(structure: Any) -> None:
    values = range(1, 1 + len(structure._fields_))
    data = _abi.packed(structure).pack(*values)
    assert len(data) == ctypes.sizeof(structure)
    found = structure.from_buffer_copy(data)
    assert [getattr(found, name) for name, _ in structure._fields_] == list(values)


def matches(declared: str, found: Any) -> bool:
    """Whether a ctypes type stands for a C type, spaces removed."""
    name = re.sub(r"\bconst\b", "", declared).strip()
    if array := re.fullmatch(r"(\w+)\[(\d+)\]", name):
        return issubclass(found, ctypes.Array) and (found._type_, found._length_) == (
            BASE_TYPES[array[1]],
            int(array[2]),
        )
    if name == "nz_parallel":  # a function's address
        return found is ctypes.c_void_p
    if not name.endswith("*"):
        return found is (None if name == "void" else BASE_TYPES[name])
    pointed = name.removesuffix("*").strip()
    if pointed in STRUCTURES:
        return found is ctypes.POINTER(STRUCTURES[pointed])
    if pointed == "char":
        return found is ctypes.c_char_p
    assert pointed in ("void", "uint8_t", *BASE_TYPES)
    return found in POINTERS


def declaration(text: str) -> tuple[str, str]:
    """Type and name of a parameter, field or function."""
    found = re.fullmatch(r"(.*?[\s*])(\w+)(\[\d+\])?", text.strip(), re.DOTALL)
    assert found, text
    return " ".join(found.group(1).split()) + (found.group(3) or ""), found.group(2)


def functions() -> dict[str, tuple[str, list[str]]]:
    """Result and parameter types of every function declared."""
    found = {}
    for declared, parameters in re.findall(r"NZ_API\s+([^;{}()]*?)\(([^)]*)\)\s*;", CODE):
        result, name = declaration(declared)
        types = [] if parameters.strip() == "void" else [declaration(p)[0] for p in parameters.split(",")]
        found[name] = result, types
    return found


def fields(structure: str) -> list[tuple[str, str]]:
    found = re.search(rf"typedef struct {{([^}}]*)}} {structure};", CODE)
    assert found
    return [declaration(line) for line in found.group(1).split(";") if line.strip()]


def values(enumeration: str) -> dict[str, int]:
    found = re.search(rf"typedef enum {{([^}}]*)}} {enumeration};", CODE)
    assert found
    return {name: int(value) for name, value in re.findall(r"(\w+) = (-?\d+)", found.group(1))}


def define(name: str) -> int:
    found = re.search(rf"#define {name} ([\d *()]+)$", HEADER, re.MULTILINE)
    assert found
    product = 1
    for factor in found.group(1).strip("()").split("*"):
        product *= int(factor)
    return product


def test_every_function_has_its_signature() -> None:
    declared = functions()
    assert set(declared) == set(_abi.SIGNATURES)
    assert CODE.count("NZ_API ") - HEADER.count("#define NZ_API") == len(declared)
    for name, (result, types) in declared.items():
        found_result, found_types = _abi.SIGNATURES[name]
        assert matches(result, found_result), name
        assert len(types) == len(found_types), name
        for declared_type, found in zip(types, found_types, strict=True):
            assert matches(declared_type, found), (name, declared_type, found)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_field_has_its_place_and_type(structure: str) -> None:
    declared, found = fields(structure), STRUCTURES[structure]._fields_
    assert [name for _, name in declared] == [name for name, *_ in found]
    for (declared_type, name), (_, found_type, *_) in zip(declared, found, strict=True):
        assert matches(declared_type, found_type), name
    assert CODE.count("typedef struct") == len(STRUCTURES)


def test_constants() -> None:
    assert define("NZ_ABI_VERSION") == _abi.ABI_VERSION == _native._LIBRARY.nz_abi_version()
    assert define("NZ_TABLE_CAPACITY") == _abi.TABLE_CAPACITY
    assert define("NZ_MAX_SEGMENTS") == _abi.MAX_SEGMENTS
    assert define("NZ_SEGMENT_COUNTS") == _abi.SEGMENT_COUNTS
    assert define("NZ_SMALL") == _abi.SMALL
    assert define("NZ_TEAM") == _abi.TEAM
    faults = values("nz_header_fault")
    assert [name.removeprefix("NZ_").removeprefix("HEADER_") for name in faults] == [
        fault.name for fault in _abi.HeaderFault
    ]
    assert list(faults.values()) == list(_abi.HeaderFault)
    isas = values("nz_isa")
    assert isas.pop("NZ_ISA_COUNT") == len(isas) == len(_native.isa_names())
    assert _native.isa_names() == [name.removeprefix("NZ_").lower() for name in isas]


def test_every_status_is_an_error() -> None:
    statuses = values("nz_status")
    assert statuses.pop("NZ_OK") == 0
    expected = {
        "NZ_CORRUPT": CorruptFrame,
        "NZ_TRUNCATED": TruncatedInput,
        "NZ_ARGUMENT": InvalidArgument,
        "NZ_UNSUPPORTED": UnsupportedFormat,
    }
    assert set(statuses) == {*expected, "NZ_MEMORY"}
    for name, error in expected.items():
        job = _abi.DecodeJob(status=statuses[name], bad_chunk=3)
        found = _native.job_error(job)
        assert type(found) is error
        assert found.chunk == (3 if error is CorruptFrame else None)
    with pytest.raises(MemoryError):
        _native.job_error(_abi.EncodeJob(status=statuses["NZ_MEMORY"]))
    assert _native.job_error(_abi.EncodeJob()) is None


def test_layout_ids_are_those_of_the_library() -> None:
    for layout in LAYOUTS.values():
        assert (_native.chunk_bound(layout.id, 16) > 0) == layout.planes
        if layout.planes:
            assert _native.chunk_bound(layout.id, 12) > layout.width << 12
    for layout_id, chunk_log2 in ((99, 16), (-1, 16), (1, 9), (1, 17)):
        assert _native.chunk_bound(layout_id, chunk_log2) == 0


def test_isa_select() -> None:
    best = _native.isa_current()
    available = [name for name in _native.isa_names() if _native.isa_available(name)]
    assert "scalar" in available and best in available
    try:
        for name in _native.isa_names():
            if name in available:
                _native.isa_select(name)
                assert _native.isa_current() == name
            else:
                before = _native.isa_current()
                with pytest.raises(InvalidArgument, match="not available"):
                    _native.isa_select(name)
                assert _native.isa_current() == before
        with pytest.raises(InvalidArgument, match="unknown instruction set 'mmx'"):
            _native.isa_select("mmx")
    finally:
        _native.isa_select(None)
    assert _native.isa_current() == best
    assert not _native.isa_available("mmx")


@pytest.mark.parametrize(
    "arguments", [(0, 0, 16), (99, 0, 16), (1, 2, 16), (1, -1, 16), (1, 0, 9), (1, 0, 17)]
)
def test_plan_refuses_wrong_arguments(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidArgument):
        _native.plan(*arguments, np.zeros(4096, np.uint8), 2048)


def test_checksum_is_xxh3() -> None:
    xxhash = pytest.importorskip("xxhash")
    data = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    for size in (0, 1, 3, 8, 16, 17, 128, 129, 240, 241, 1024, 5000):
        assert _native.checksum64(data[:size]) == xxhash.xxh3_64_intdigest(data[:size].tobytes())


# --- buffers ---


def test_as_bytes_copies_nothing() -> None:
    array = np.arange(6, dtype=np.uint16).reshape(2, 3)
    view = _native.as_bytes(array)
    assert view.nbytes == 12 and _system.address(view) == array.ctypes.data
    flat = np.zeros(5, np.uint8)
    _native.as_bytes(flat)[4] = 7
    assert flat[4] == 7
    assert _native.as_bytes(np.zeros(3, np.complex64)).nbytes == 24
    for empty in (b"", bytearray(), memoryview(b""), np.zeros((0, 3), np.float32)):
        assert _native.as_bytes(empty).nbytes == 0
    assert _native.as_bytes(b"abc").readonly
    assert not _native.as_bytes(bytearray(3)).readonly


@pytest.mark.parametrize("buffer", [np.zeros((4, 4))[:, 1], np.zeros(8)[::2], memoryview(bytes(8))[::2]])
def test_as_bytes_refuses_what_is_not_contiguous(buffer: Any) -> None:
    with pytest.raises(InvalidArgument):
        _native.as_bytes(buffer)


# --- BytesBuilder ---


@pytest.mark.parametrize("capacity", [0, 2, 3, 100, 1 << 20])
def test_builder_makes_plain_bytes(capacity: int) -> None:
    builder = _system.BytesBuilder(capacity)
    content = bytes(range(1, 256)) * (capacity // 255 + 1)
    size = max(capacity // 2, 2)
    builder.write(0, content[:1])
    builder.write(1, bytearray(content[1:size]))
    made = builder.finish(size)
    assert type(made) is bytes and len(made) == size
    assert made == content[:size] and hash(made) == hash(content[:size])
    plain = bytes(bytearray(size))
    assert sys.getrefcount(made) == sys.getrefcount(plain)
    # C sees a terminating zero, as in all bytes.
    assert ctypes.string_at(ctypes.c_char_p(made)) == made
    del builder
    assert made == content[:size]


def test_builders_share_nothing() -> None:
    made = []
    for value in range(100):
        builder = _system.BytesBuilder(2)
        builder.write(0, bytes([value, value]))
        made.append(builder.finish(2))
    assert made == [bytes([value, value]) for value in range(100)]


def test_a_builder_that_cannot_be() -> None:
    with pytest.raises((MemoryError, OverflowError)):
        _system.BytesBuilder(sys.maxsize - 100)
    gc.collect()


def test_builders_free_what_they_hold() -> None:
    """Finished and dropped or never finished: nothing stays."""
    tracemalloc.start()
    try:
        for finish in (True, False):
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(500):
                builder = _system.BytesBuilder(1 << 20)
                if finish:
                    assert len(builder.finish(1 << 19)) == 1 << 19
                del builder
            after, peak = tracemalloc.get_traced_memory()
            assert after - before < 1 << 18
            assert peak - before < 8 << 20
    finally:
        tracemalloc.stop()


def test_frames_leave_nothing_behind() -> None:
    data = np.random.default_rng(0).normal(0, 0.02, 1000).astype("<f4").tobytes()
    options = Options(threads=1)

    def once() -> None:
        packed = frame.encode(data, DTYPES["F32"], (1000,), options)
        out = bytearray(len(data))
        frame.decode(packed, out, options)
        damaged = bytearray(packed)
        damaged[-9] ^= 1
        with pytest.raises(CorruptFrame):
            frame.decode(damaged, out, options)

    for _ in range(10):
        once()
    gc.collect()
    blocks = sys.getallocatedblocks()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(1000):
            once()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000
    assert sys.getallocatedblocks() - blocks < 2000


def test_frames_have_one_reference() -> None:
    packed = frame.encode(bytes(1000), DTYPES["U8"], (1000,))
    plain = bytes(bytearray(1000))
    assert sys.getrefcount(packed) == sys.getrefcount(plain)


def test_others_may_set_the_types_of_shared_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As fsspec does, which transformers and peft import."""
    monkeypatch.setattr(ctypes.pythonapi.PyBytes_FromStringAndSize, "restype", ctypes.py_object)
    monkeypatch.setattr(
        ctypes.pythonapi.PyBytes_FromStringAndSize, "argtypes", (ctypes.c_char_p, ctypes.c_ssize_t)
    )
    data = bytes(range(256)) * 4
    out = bytearray(len(data))
    frame.decode(frame.encode(data, DTYPES["BF16"], (512,)), out)
    assert out == data


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "ABI_VERSION", 99)
    monkeypatch.setitem(_native.SIGNATURES, "nz_of_another_version", (None, []))
    with pytest.raises(ImportError, match=f"has ABI version {_abi.ABI_VERSION}, expected 99"):
        _native._load()
