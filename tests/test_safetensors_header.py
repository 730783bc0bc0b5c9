"""Malformed safetensors files: each is refused with a typed error."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from safetensors_file import build, model, with_header

from neuzip.container import Container
from neuzip.errors import CorruptFrame, NeuzipError, TruncatedInput, UnsupportedFormat

ENTRY = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def one(**changes: Any) -> bytes:
    return json.dumps({"a": ENTRY | changes}).encode()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", CorruptFrame),
        (b"[]", CorruptFrame),
        (b"null", CorruptFrame),
        (b'{"a"', CorruptFrame),
        (b"\xff{}", CorruptFrame),
        (b"\xef\xbb\xbf{}", CorruptFrame),
        (b"[" * 100_000, CorruptFrame),
        (b'{"a":' * 100_000, CorruptFrame),
        (b'{"a":' + b"9" * 5000 + b"}", CorruptFrame),
        (b'{"a":3}', CorruptFrame),
        (one(dtype=None), CorruptFrame),
        (one(dtype=["U8"]), CorruptFrame),
        (one(dtype="U9"), UnsupportedFormat),
        (one(dtype="C128", shape=[0], data_offsets=[0, 0]), UnsupportedFormat),
        (one(shape=4), CorruptFrame),
        (one(shape=[4.0]), CorruptFrame),
        (one(shape=[-4]), CorruptFrame),
        (one(shape=[True, 4]), CorruptFrame),
        (one(shape=["4"]), CorruptFrame),
        (one(shape=[5]), CorruptFrame),
        (one(shape=[1 << 64]), CorruptFrame),
        (one(shape=[1 << 32, 1 << 32]), CorruptFrame),
        (one(shape=[(1 << 63) - 1] * 100_000), CorruptFrame),
        (one(shape=[float("nan")]), CorruptFrame),
        (one(dtype="F4", shape=[7]), CorruptFrame),
        (one(data_offsets=[0]), CorruptFrame),
        (one(data_offsets=[0, 4, 4]), CorruptFrame),
        (one(data_offsets=[4, 0]), CorruptFrame),
        (one(data_offsets=[1, 5]), CorruptFrame),
        (one(data_offsets=[0, 3], shape=[3]), CorruptFrame),
        (one(data_offsets=[0, 5], shape=[5]), TruncatedInput),
        (one(data_offsets=[0, 1 << 62], shape=[1 << 62]), TruncatedInput),
        (b'{"a":' + json.dumps(ENTRY).encode() + b',"a":' + json.dumps(ENTRY).encode() + b"}", CorruptFrame),
        (b'{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', CorruptFrame),
        (
            b'{"__metadata__":null,"a":{"x":1,"y":2,"z":3},"a":' + json.dumps(ENTRY).encode() + b"}",
            CorruptFrame,
        ),
        (b'{"__metadata__":{"a":"b","a":"b"},"a":' + json.dumps(ENTRY).encode() + b"}", CorruptFrame),
        (b'{"\\ud800":' + json.dumps(ENTRY).encode() + b"}", CorruptFrame),
        (json.dumps({"__metadata__": {"a": 1}, "a": ENTRY}).encode(), CorruptFrame),
        (json.dumps({"__metadata__": [], "a": ENTRY}).encode(), CorruptFrame),
        (b'{"__metadata__":{"x":"\\udc00"},"a":' + json.dumps(ENTRY).encode() + b"}", CorruptFrame),
        (json.dumps({"a": ENTRY, "b": ENTRY}).encode(), CorruptFrame),
        (json.dumps({"a": ENTRY, "b": ENTRY | {"data_offsets": [3, 7]}}).encode(), CorruptFrame),
        (json.dumps({"a": ENTRY, "b": ENTRY | {"data_offsets": [6, 10]}}).encode(), CorruptFrame),
    ],
)
def test_malformed_headers(text: bytes, error: type[NeuzipError]) -> None:
    with pytest.raises(error) as caught:
        Container.parse(memoryview(with_header(text, b"data")), None)
    assert type(caught.value) is error
    assert len(str(caught.value)) < 2000


def test_malformed_files() -> None:
    original = build(model(["BF16"]))
    with pytest.raises(CorruptFrame, match="follow"):
        Container.parse(memoryview(original + b"\0"))
    with pytest.raises(TruncatedInput):
        Container.parse(memoryview(original[:-1]))
    with pytest.raises(CorruptFrame, match="not a safetensors file"):
        Container.parse(memoryview(b"\x7fELF\x02\x01\x01\x00" * 100))
    with pytest.raises(CorruptFrame, match="a Git LFS pointer"):
        Container.parse(
            memoryview(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
        )
    with pytest.raises(CorruptFrame, match="an archive"):
        Container.parse(memoryview(b"NZAR\x01\x02" + bytes(100)))
    with pytest.raises(TruncatedInput):
        Container.parse(memoryview(struct.pack("<Q", 100) + b"{}"))
    for length in range(8):
        with pytest.raises(TruncatedInput):
            Container.parse(memoryview(bytes(length)))


def test_errors_name_the_tensor() -> None:
    with pytest.raises(CorruptFrame) as caught:
        Container.parse(memoryview(with_header(one(shape=[5]), b"data")))
    assert caught.value.tensor == "a"
