"""Files of every kind, damaged at will: never an error but for what is wrong with the disk, and every byte back."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable

import gguf_file
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kind_files import packed, restored
from safetensors_file import Tensor, build, weights

from neuzip.kinds import Kind, find_parts
from neuzip.kinds.part import ViewSource
from neuzip.kinds.torch_file import read_torch

NUMBERS = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def archive_of(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def npy(dtype: str, count: int) -> bytes:
    out = io.BytesIO()
    np.save(out, np.frombuffer(weights("F32", count), dtype))
    return out.getvalue()


def torch_pickle(tensors: dict[str, tuple[str, int]]) -> bytes:
    """The pickle of a dict of tensors in storages (key, count), written opcode by opcode (protocol 2)."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    out = b"\x80\x02}("
    for name, (key, count) in tensors.items():
        number = b"J" + struct.pack("<i", count)
        out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
        out += b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number + b"tQ"
        out += b"K\x00" + number + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    return out + b"u."


def legacy() -> bytes:
    data = weights("F32", 300)
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + system
    return head + torch_pickle({"w": ("k", 300)}) + pickle.dumps(["k"], 2) + struct.pack("<q", 300) + data


def zipped() -> bytes:
    tensors = {"a": ("0", 300), "b": ("1", 100)}
    data = {f"m/data/{key}": weights("F32", count) for key, count in tensors.values()}
    return archive_of(
        {"m/data.pkl": torch_pickle(tensors), "m/byteorder": b"little", **data, "m/version": b"3\n"}
    )


def varint_field(number: int, data: bytes) -> bytes:
    size = len(data)
    return bytes([number << 3 | 2, size & 127 | 128, size >> 7]) + data


def onnx_model() -> bytes:
    """ir_version, and a graph of two initialisers."""
    tensors = [
        b"\x08\xac\x02\x10\x01" + varint_field(8, b"w" * n) + varint_field(9, weights("F32", 300))
        for n in (1, 2)
    ]
    return b"\x08\x07" + varint_field(7, b"".join(varint_field(5, tensor) for tensor in tensors))


SEEDS: dict[str, tuple[Kind, bytes]] = {
    "safetensors": (Kind.SAFETENSORS, build([Tensor("w", "BF16", (600,), weights("BF16", 600))])),
    "zip": (Kind.TORCH, zipped()),
    "legacy": (Kind.TORCH, legacy()),
    "npy": (Kind.NUMPY, npy("<f4", 300)),
    "npz": (Kind.NUMPY, archive_of({"a.npy": npy("<f4", 300), "b/c.npy": npy("<f8", 100)})),
    "deflated": (Kind.NUMPY, archive_of({"a.npy": npy("<f4", 300)}, zipfile.ZIP_DEFLATED)),
    "gguf": (
        Kind.GGUF,
        gguf_file.build(
            [
                gguf_file.Tensor("w", 0, (300,), weights("F32", 300)),
                gguf_file.Tensor("q", 8, (32, 40), weights("U8", 1360)),
            ],
            [gguf_file.pair(b"t", 9, gguf_file.array(8, [gguf_file.string(b"token")] * 9))],
            alignment=64,
        ),
    ),
    "onnx": (Kind.ONNX, onnx_model()),
}

edits = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=9)),
        st.tuples(st.integers(0, 1 << 16), st.sampled_from([struct.pack("<Q", n) for n in NUMBERS])),
        st.tuples(
            st.integers(0, 1 << 16), st.sampled_from([struct.pack("<I", n & 0xFFFFFFFF) for n in NUMBERS])
        ),
    ),
    max_size=4,
)


def check(data: bytes, restore: bool = True) -> Kind:
    """Whatever a file is: parts within it, in order; no larger; every byte back."""
    structure = find_parts(ViewSource(memoryview(data)))
    position = 0
    for part in structure.parts:
        assert position <= part.start <= part.end <= len(data)
        assert part.size % part.record_size == 0
        position = part.end
    assert len({part.name for part in structure.parts}) == len(structure.parts)
    if restore:
        made = packed(data)
        assert restored(made) == data
        assert len(made) <= 1.001 * len(data) + 300
    return structure.kind


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_files_of_their_kind(name: str) -> None:
    kind, data = SEEDS[name]
    assert check(data) == kind
    assert bool(find_parts(ViewSource(memoryview(data))).parts) == (name != "deflated")


@pytest.mark.parametrize("name", SEEDS)
def test_cut_anywhere(name: str) -> None:
    data = SEEDS[name][1]
    for size in range(len(data)):
        check(data[:size], restore=size % 97 == 0)


@pytest.mark.parametrize("name", SEEDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_at_will(name: str, data: st.DataObject) -> None:
    seed = bytearray(SEEDS[name][1])
    for position, value in data.draw(edits):
        # Half of the edits hit what describes the tensors: the first bytes and the last.
        at = (position >> 2) % (len(seed), 400, 100, len(seed))[position & 3]
        at = len(seed) - at if position & 3 == 2 else at
        if data.draw(st.booleans()):
            seed[at : at + len(value)] = value
        else:
            seed[at:at] = value
    check(bytes(seed))


@given(
    st.sampled_from([b"\x80\x02", b"\x08", b"GGUF\x03\x00\x00\x00", b"\x93NUMPY\x01\x00", b"PK\x03\x04"]),
    st.binary(max_size=400),
)
@settings(max_examples=100, deadline=None)
def test_anything_behind_a_magic(magic: bytes, rest: bytes) -> None:
    check(magic + rest, restore=False)


def hostile_pickles() -> dict[str, bytes]:
    count = 1 << 13
    key = b"X" + struct.pack("<I", 1 << 10) + b"k" * (1 << 10)
    return {
        "nested_lists": b"](" + b"]" * count + b"a" * 9 + b".",
        "nested_tuples": b"N" + b"\x85" * count + b".",
        "nested_calls": b"N" + b"2R" * count + b".",
        "nested_dicts": b"}" + b"K\x00}" * count + b"s" * count + b".",
        "many_lists": b"](" + b"]" * count + b"e.",
        "long_names": b"}(" + key + b"](" + b"]" * count + b"eu.",
        "marks": b"(" * count + b".",
        "memo": b"N" + b"\x94" * count + b".",
        "grown": b"]\x94" + b"(h\x00h\x00e" * 1000 + b".",
        "cycle": b"]\x94h\x00a.",
        "long_text": b"X\xff\xff\xff\xffabc.",
        "long_bytes": b"\x8e" + struct.pack("<Q", (1 << 64) - 1) + b".",
        "huge_number": b"\x8b\xff\xff\xff\x7f.",
        "digits": b"L" + b"9" * 100_000 + b"L\n.",
        "endless_line": b"c" + b"x" * 100_000,
        "execution": b"cos\nsystem\n(X\x04\x00\x00\x00exittR.",
        "extension": b"\x82\x01.",
    }


@pytest.mark.parametrize("name", hostile_pickles())
def test_hostile_pickles(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In both layouts: no call, no deep recursion, memory in proportion to the file."""
    body = b"\x80\x02" + hostile_pickles()[name]
    whole = legacy()
    at = whole.index(b"\x80\x02}(X")
    for data in archive_of({"m/data.pkl": body, "m/data/0": bytes(4)}), whole[:at] + body:
        tracemalloc.start()
        kind = check(data, restore=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert kind in (Kind.TORCH, Kind.OTHER)
        assert peak < 300 * len(data) + (1 << 20)
    assert capfd.readouterr() == ("", "")


def test_deep_files_name_what_is_not_too_deep() -> None:
    tensors = torch_pickle({"w": ("0", 300)})[2:-1]
    body = b"\x80\x02](" + tensors + b"]" * 5000 + b"a" * 4999 + b"e."
    found = find_parts(
        ViewSource(memoryview(archive_of({"m/data.pkl": body, "m/data/0": weights("F32", 300)})))
    )
    assert [part.name for part in found.parts] == ["0.w"]


def test_a_zip_file_of_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    data = zipped()
    assert read_torch(ViewSource(memoryview(data))) is not None
    monkeypatch.setattr("neuzip.kinds.zip_directory._MEMBER_LIMIT", 4)
    assert check(data) == Kind.OTHER


def test_a_pickle_of_too_many_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in zipped(), legacy():
        assert check(data) == Kind.TORCH
        with monkeypatch.context() as patch:
            patch.setattr("neuzip.kinds.pickles._UNIT_LIMIT", 60)
            assert check(data) == Kind.OTHER


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "appended": lambda data: data + bytes(1000),
    "prefixed": lambda data: b"\0" + data,
    "twice": lambda data: data + data,
    "zeros": lambda data: data[:200] + bytes(len(data) - 200),
}


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("how", CORRUPTIONS)
def test_other_accidents(name: str, how: str) -> None:
    check(CORRUPTIONS[how](SEEDS[name][1]))
