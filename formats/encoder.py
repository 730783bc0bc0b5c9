"""A small, slow encoder of spec.md that can use every feature of the format on demand. `mint.py` draws on it.

It chooses nothing: the caller names every plane's mode. It shares no code with neuzip; `§N` cites spec.md.
"""

import base64
import functools
import hashlib
import json
import struct
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

MODES = {"raw": 0, "constant": 1, "rank": 2, "byte": 3, "local": 4, "joint": 5, "six": 6}  # §4
CODINGS = {"stored": 0, "planes": 1, "zstd": 2}  # §5
LANES = 32  # §4.1
LOW = 1 << 16  # §4.1, the least value of a state

Records = list[list[int]]  # mode, param, patches, words of each plane (§4)
Sections = list[bytes]  # of each plane
Twist = Callable[[Records, Sections], None]  # changes a chunk before it is put together, to make it a bad one


@dataclass(frozen=True)
class Type:
    """A dtype of floats.toml with the fields of its layout that an encoder needs (§2)."""

    code: int
    bits: int
    width: int
    rotate: bool


@functools.cache
def types() -> dict[str, Type]:
    rows = tomllib.loads(Path(__file__).with_name("floats.toml").read_text(encoding="utf-8"))
    layouts = {row["name"]: row for row in rows["layout"]}
    return {
        row["name"]: Type(
            row["code"], row["bits"], layouts[row["layout"]]["width"], layouts[row["layout"]]["rotate"]
        )
        for row in rows["dtype"]
    }


def pad(data: bytes, multiple: int) -> bytes:
    return data + bytes(-len(data) % multiple)


# --- Tables: §4.2, §4.3, §5 ---


@dataclass(frozen=True)
class Table:
    """A frequency table: the symbols in the order of their starts, and the serialised table (§4.2, §4.3)."""

    bits: int
    frequency: dict[int, int]
    body: bytes
    kind: int
    base: int = 0

    @functools.cached_property
    def start(self) -> dict[int, int]:
        start, total = {}, 0
        for symbol, frequency in self.frequency.items():
            start[symbol] = total
            total += frequency
        return start


def rank_table(symbols: Sequence[int], main: Sequence[int], fine: Sequence[int]) -> Table:
    """A table of len(main) main ranks and len(fine) fine ranks with these weights (§4.2)."""
    weights = [256 * weight for weight in main] + [16 * weight for weight in fine]
    body = struct.pack("BBxx16s16s", len(weights), len(main), bytes(symbols), bytes([*main, *fine]))
    return Table(16, dict(zip(symbols, weights, strict=True)), body, 1)


def byte_table(frequency: dict[int, int], bits: int, kind: int = 2, base: int = 0) -> Table:
    frequency = dict(sorted(frequency.items()))
    present = sum(1 << symbol for symbol in frequency).to_bytes(32, "little")
    counts = struct.pack(f"<{len(frequency)}H", *frequency.values())
    return Table(bits, frequency, struct.pack("<BxH", bits, len(frequency)) + present + counts, kind, base)


def fit(symbols: Sequence[int], bits: int, kind: int = 2, base: int = 0) -> Table:
    """A byte table for these symbols (§4.3); symbols that do not occur join if there must be more of them."""
    counts = Counter(symbols)
    for symbol in range(256):
        if len(counts) * 4095 >= 1 << bits and len(counts) >= 2:
            break
        counts[symbol] += 0
    total = max(1, len(symbols))
    frequency = {s: min(4095, max(1, (count << bits) // total)) for s, count in counts.items()}
    while (missing := (1 << bits) - sum(frequency.values())) != 0:
        room = {s: 4095 - f if missing > 0 else f - 1 for s, f in frequency.items()}
        chosen = max(sorted(room), key=lambda s: min(room[s], frequency[s]))
        frequency[chosen] += max(-room[chosen], min(room[chosen], missing))
    return byte_table(frequency, bits, kind, base)


Tables = Sequence[tuple[int, Table]]  # a frame's tables, each with the first chunk it is for


def table_blob(tables: Tables) -> bytes:
    """The table blob of a frame (§5)."""
    blob = struct.pack("<BxH", tables[0][1].kind, len(tables)) if tables else b""
    for first_chunk, table in tables:
        blob += struct.pack("<IB3x", first_chunk, table.base) + pad(table.body, 4)
    return blob


# --- Chunks: §4 ---


def encode_stream(symbols: Sequence[int], table: Table, payload: Sequence[int]) -> tuple[bytes, int]:
    """The stream of these symbols without patches, and its number of words (§4.1)."""
    states = [LOW | value for value in payload]
    words: list[int] = []
    for i in reversed(range(len(symbols))):
        frequency, x = table.frequency[symbols[i]], states[i % LANES]
        if x >= frequency << (32 - table.bits):
            words.append(x & 0xFFFF)
            x >>= 16
        states[i % LANES] = (x // frequency << table.bits) + table.start[symbols[i]] + x % frequency
    return struct.pack(f"<32I{len(words)}H", *states, *reversed(words)), len(words)


def pack_six(plane: bytes) -> bytes:
    packed = bytearray()
    for offset in range(0, len(plane), 128):
        q = [value & 63 for value in plane[offset : offset + 128].ljust(128, b"\0")]
        packed += bytes(q[j] | (q[96 + j] & 3) << 6 for j in range(32))
        packed += bytes(q[32 + j] | (q[96 + j] >> 2 & 3) << 6 for j in range(32))
        packed += bytes(q[64 + j] | (q[96 + j] >> 4) << 6 for j in range(32))
    return bytes(packed)


def split(data: bytes, dtype: Type) -> list[bytes]:
    """The planes of original bytes (§3)."""
    units = bytearray()
    for offset in range(0, len(data), dtype.width):
        unit = int.from_bytes(data[offset : offset + dtype.width], "little")
        if dtype.rotate:
            below = 8 * dtype.width - 16
            h = unit >> below
            unit = ((h << 1 | h >> 15) & 0xFFFF) << below | unit & ((1 << below) - 1)
        units += unit.to_bytes(dtype.width, "big")
    return [bytes(units[plane :: dtype.width]) for plane in range(dtype.width)]


def join(planes: Sequence[bytes], dtype: Type) -> bytes:
    """The inverse of split."""
    data = bytearray()
    for values in zip(*planes, strict=True):
        unit = int.from_bytes(bytes(values), "big")
        if dtype.rotate:
            below = 8 * dtype.width - 16
            h = unit >> below
            unit = (h >> 1 | (h & 1) << 15) << below | unit & ((1 << below) - 1)
        data += unit.to_bytes(dtype.width, "little")
    return bytes(data)


def encode_chunk(
    data: bytes, dtype: Type, modes: str, table: Table | None, twist: Twist | None = None
) -> bytes:
    """One chunk. `modes` names each plane's mode, plane 0 first, as in "rank raw"; "local:13:4" asks for a
    table of 13 bits that leaves symbols seen less than 4 times to patches."""
    planes = split(data, dtype)
    records: Records = []
    sections: Sections = []
    payload = [0] * LANES
    for plane, name in reversed(list(enumerate(modes.split()))):  # plane 0 last: it takes the payload
        record, section = encode_plane(planes, plane, name, table, payload)
        if (
            plane == 1
            and record[0] in (MODES["raw"], MODES["six"])
            and modes.startswith(("rank", "byte", "joint"))
            and len(section) >= 64
        ):  # §4.5
            payload = list(struct.unpack("<32H", section[-64:]))
            section = section[:-64]
        records.insert(0, record)
        sections.insert(0, section)
    if twist:
        twist(records, sections)
    chunk = b"".join(struct.pack("<BBHI", *record) for record in records)
    for section in reversed(sections):
        chunk = pad(chunk, 4) + section
    return pad(chunk, 4)


def encode_plane(
    planes: list[bytes], plane: int, name: str, table: Table | None, payload: Sequence[int]
) -> tuple[list[int], bytes]:
    """The record and the section of a plane."""
    name, *options = name.split(":")
    mode, symbols = MODES[name], list(planes[plane])
    if mode == MODES["raw"]:
        return [mode, 0, 0, 0], planes[plane]
    if mode == MODES["constant"]:
        return [mode, symbols[0], 0, 0], b""
    if mode == MODES["six"]:
        return [mode, 0, 0, 0], pack_six(planes[plane])
    prefix, value_format = b"", "<HB"
    if mode == MODES["local"]:
        bits, least = [*map(int, options), 1][:2]
        seen = Counter(symbols)
        table = fit([symbol for symbol in symbols if seen[symbol] >= least], bits)
        prefix = pad(table.body, 4)
    assert table is not None
    values = symbols.copy()
    if mode == MODES["joint"]:
        value_format = "<HH"
        values = [head << 2 | low >> 6 for head, low in zip(planes[0], planes[1], strict=True)]
        symbols = [value - 4 * table.base for value in values]
    patched = [i for i, symbol in enumerate(symbols) if symbol not in table.frequency]
    substitute = max(table.frequency, key=table.frequency.__getitem__)
    for i in patched:
        symbols[i] = substitute
    stream, words = encode_stream(symbols, table, payload)
    patches = b"".join(struct.pack(value_format, i, values[i]) for i in patched)
    return [mode, 0, len(patched), words], prefix + stream + patches


# --- Frames: §5 ---


@dataclass(frozen=True)
class Frame:
    """The parts of a frame. Fields left None are computed; `dataclasses.replace` makes a frame that lies."""

    dtype: int
    shape: tuple[int, ...]
    coding: int
    chunk_log2: int
    table: bytes  # the blob
    chunks: tuple[bytes, ...]
    checks: tuple[int, ...]
    size: int
    level: int = 0
    magic: bytes = b"NZFR"
    version: int = 1
    required: int = 0
    base: bytes = b""
    ndim: int | None = None
    table_bytes: int | None = None
    lengths: tuple[int, ...] | None = None
    frame_size: int | None = None
    tail: bytes | None = None
    checksum: int | None = None

    def encode(self) -> bytes:
        lengths = self.lengths or [len(chunk) for chunk in self.chunks]
        body = struct.pack(f"<{len(self.shape)}Q", *self.shape) + self.base + self.table
        body += b"".join(struct.pack("<II", *pair) for pair in zip(lengths, self.checks, strict=True))
        chunks = b"".join(self.chunks)
        end = 40 + len(body) + len(chunks)
        tail = bytes(-end % 8) if self.tail is None else self.tail
        fixed = self.magic + struct.pack(
            "<BBBBHBBIQQ",
            *(self.version, self.dtype, self.coding, self.chunk_log2, self.required),
            *(len(self.shape) if self.ndim is None else self.ndim, self.level),
            len(self.table) if self.table_bytes is None else self.table_bytes,
            self.size,
            end + len(tail) if self.frame_size is None else self.frame_size,
        )
        checksum = (
            xxhash.xxh3_64_intdigest(fixed + bytes(8) + body) if self.checksum is None else self.checksum
        )
        return fixed + struct.pack("<Q", checksum) + body + chunks + tail


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[offset : offset + size] for offset in range(0, len(data), size)]


def planes_frame(
    name: str,
    shape: Sequence[int],
    data: bytes,
    modes: str | Sequence[str],
    table: Table | Tables | None = None,
    chunk_log2: int = 10,
    twist: Twist | None = None,
) -> Frame:
    """A frame of coding *planes*; `modes` as in encode_chunk, one for all chunks or one for each."""
    dtype = types()[name]
    parts = cut(data, dtype.width << chunk_log2)
    each = [modes] * len(parts) if isinstance(modes, str) else modes
    tables = [(0, table)] if isinstance(table, Table) else table or []
    chunks = []
    for number, (part, mode) in enumerate(zip(parts, each, strict=True)):
        own = [entry for first_chunk, entry in tables if first_chunk <= number]
        chunks.append(encode_chunk(part, dtype, mode, own[-1] if own else None, twist))
    checks = tuple(xxhash.xxh3_64_intdigest(part) & 0xFFFFFFFF for part in parts)
    coding, blob = CODINGS["planes"], table_blob(tables)
    return Frame(dtype.code, tuple(shape), coding, chunk_log2, blob, tuple(chunks), checks, len(data))


def bytes_frame(
    name: str,
    shape: Sequence[int],
    data: bytes,
    pack: Callable[[bytes], bytes] | None = None,
    chunk_log2: int = 10,
) -> Frame:
    """A frame of coding *stored*, or *zstd* if `pack` is given: it makes each chunk of its original bytes."""
    parts = cut(data, 1 << chunk_log2)
    chunks = tuple(pack(part) if pack else part for part in parts)
    checks = tuple(xxhash.xxh3_64_intdigest(part) & 0xFFFFFFFF for part in parts)
    coding = CODINGS["zstd" if pack else "stored"]
    return Frame(types()[name].code, tuple(shape), coding, chunk_log2, b"", chunks, checks, len(data))


def zstd_frame(content: bytes, announce: bool = True) -> bytes:
    """A zstd frame of run-length and raw blocks (RFC 8878), the same with every release of zstd."""
    # A single segment with a content size of 4 bytes, or a window of 1 MiB and no content size.
    header = b"\xa0" + struct.pack("<I", len(content)) if announce else b"\x00\x50"
    blocks = cut(content, 1 << 17)
    coded = b""
    for number, block in enumerate(blocks):
        run = len(set(block)) == 1
        coded += (len(block) << 3 | run << 1 | (number == len(blocks) - 1)).to_bytes(3, "little")
        coded += block[:1] if run else block
    return b"\x28\xb5\x2f\xfd" + header + coded


# --- Containers: §7 ---

Tensors = dict[str, tuple[str, Sequence[int], bytes]]  # name -> dtype, shape, bytes


def safetensors(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    """A safetensors file with the tensors in this order."""
    rows: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        rows[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def checksums(parts: list[bytes], size: int = 1 << 20) -> str:
    """Base64 of the checksum32 of every `size` bytes of each part."""
    runs = [run for part in parts for run in cut(part, size)]
    return base64.b64encode(
        b"".join(struct.pack("<I", xxhash.xxh3_64_intdigest(run) & 0xFFFFFFFF) for run in runs)
    ).decode()


def container(original: bytes, tensors: Tensors, frames: dict[str, bytes], **changes: str) -> bytes:
    """The container of a safetensors file. `changes` replace metadata, `_` in the keys standing for `.`."""
    length = int.from_bytes(original[:8], "little")
    text = original[8 : 8 + length]
    metadata = json.loads(text).get("__metadata__", {}) | {
        "neuzip.version": "1",
        "neuzip.header": base64.b64encode(zstd_frame(text)).decode(),
        "neuzip.size": str(len(original)),
        "neuzip.sha256": hashlib.sha256(original).hexdigest(),
        "neuzip.checksums": checksums([data for name, (_, _, data) in tensors.items() if name not in frames]),
    }
    metadata |= {key.replace("_", "."): value for key, value in changes.items()}
    packed = {name: ("U8", [len(frame)], frame) for name, frame in frames.items()}
    return safetensors({name: packed.get(name, row) for name, row in tensors.items()}, metadata)


def kept(original: bytes, old: str, new: str, spaces: int = 3, **changes: str) -> bytes:
    """A safetensors file as a container of version 2 (§7.1).

    The first `old` of its header is replaced by `new`, which has @ for the insertion. `changes` replace metadata.
    """
    length = 8 + int.from_bytes(original[:8], "little")
    text, data = original[8:length], original[length:]
    metadata = {
        "neuzip.version": "2",
        "neuzip.size": str(len(original)),
        "neuzip.sha256": hashlib.sha256(original).hexdigest(),
        "neuzip.checksums": checksums([data], 1 << 14),
    } | {key.replace("_", "."): value for key, value in changes.items()}
    insertion = json.dumps(metadata, separators=(",", ":"))[1:-1] + " " * spaces
    header = text.replace(old.encode(), new.replace("@", insertion).encode(), 1)
    return struct.pack("<Q", len(header)) + header + data
