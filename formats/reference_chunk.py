"""First half of the reference decoder: tables and chunks (spec.md §2 to §4). `reference.py` is the second.

Written from spec.md alone, slow on purpose, sharing no code with neuzip; `§N` cites its sections.
"""

import math
import struct
from dataclasses import dataclass

STORED, PLANES, ZSTD = range(3)  # §5, `coding`
RAW, CONSTANT, RANK, BYTE, LOCAL, JOINT, SIX = range(7)  # §4, `mode`
LANES = 32  # §4.1
LOW = 1 << 16  # §4.1, the least value of a state
PAYLOAD_BYTES = 2 * LANES  # §4.5


class Refused(Exception):
    """The bytes are not what spec.md allows (§1)."""


class Corrupt(Refused):
    """The bytes contradict the specification or a checksum."""


class Truncated(Refused):
    """The bytes end too early."""


class Unsupported(Refused):
    """The bytes belong to a later version, or use what version 1 does not define (§9)."""


@dataclass(frozen=True)
class Layout:
    """How a unit is cut into planes (§2)."""

    id: int
    name: str
    width: int
    rotate: bool
    joint: bool
    planes: bool


@dataclass(frozen=True)
class Table:
    """A frequency table (§4.1): `symbol_of[slot]`, and of each symbol its frequency and start."""

    bits: int
    symbol_of: list[int]
    frequency: dict[int, int]
    start: dict[int, int]


@dataclass(frozen=True)
class Entry:
    """An entry of the table blob (§5): the table of the chunks from `first_chunk` up to the next entry's."""

    first_chunk: int
    base: int
    table: Table


@dataclass(frozen=True)
class Tables:
    """The table blob of a frame (§5); kind 0 stands for no blob."""

    kind: int
    entries: list[Entry]

    def of_chunk(self, number: int) -> Entry | None:
        return max(
            (entry for entry in self.entries if entry.first_chunk <= number),
            key=lambda entry: entry.first_chunk,
            default=None,
        )


@dataclass(frozen=True)
class Record:
    """A plane record (§4)."""

    mode: int
    param: int
    patches: int
    words: int


class Cursor:
    """Takes bytes from front to back and refuses to pass the end."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        self.position = 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.position : self.position + count]
        if len(taken) != count:
            raise Corrupt(f"{self.what}: {count} bytes wanted at {self.position}, which passes the end")
        self.position += count
        return taken

    def integers(self, width: int, count: int) -> list[int]:
        """`count` unsigned little-endian integers of `width` bytes (§1)."""
        return [int.from_bytes(self.take(width), "little") for _ in range(count)]

    def padding(self, count: int) -> None:
        if any(self.take(count)):
            raise Corrupt(f"{self.what}: padding before {self.position} is not zero (§1)")

    def align(self, multiple: int) -> None:
        self.padding(-self.position % multiple)

    def finish(self) -> None:
        if self.position != len(self.data):
            raise Corrupt(f"{self.what}: {len(self.data) - self.position} bytes left over")


# --- Tables: §4.2, §4.3, §5 ---


def make_table(bits: int, frequencies: list[tuple[int, int]]) -> Table:
    """A table of (symbol, frequency) in the order of their starts."""
    start: dict[int, int] = {}
    symbol_of: list[int] = []
    for symbol, frequency in frequencies:
        start[symbol] = len(symbol_of)
        symbol_of += [symbol] * frequency
    if len(symbol_of) != 1 << bits:
        raise Corrupt(f"table: frequencies sum to {len(symbol_of)}, not 2^{bits} (§4.1)")
    return Table(bits, symbol_of, dict(frequencies), start)


def read_rank_table(cursor: Cursor) -> Table:
    ranks, main = cursor.integers(1, 2)
    cursor.padding(2)
    symbols, weights = list(cursor.take(16)), list(cursor.take(16))
    if not (2 <= ranks <= 16 and 1 <= main <= 15 and main < ranks):
        raise Corrupt(f"rank table: {ranks} ranks, {main} of them main (§4.2)")
    if any(symbols[ranks:]) or any(weights[ranks:]):
        raise Corrupt("rank table: an unused entry is not 0 (§4.2)")
    symbols, weights = symbols[:ranks], weights[:ranks]
    if len(set(symbols)) != ranks:
        raise Corrupt("rank table: a symbol appears twice (§4.2)")
    if 0 in weights:
        raise Corrupt("rank table: a weight is 0 (§4.2)")
    if sum(weights[:main]) != 255 or sum(weights[main:]) != 16:
        raise Corrupt("rank table: main weights do not sum to 255, or fine weights to 16 (§4.2)")
    factors = [256] * main + [16] * (ranks - main)
    frequencies = [factor * weight for factor, weight in zip(factors, weights, strict=True)]
    table = make_table(16, list(zip(symbols, frequencies, strict=True)))
    inside = [table.start[symbol] // 1024 for symbol in symbols[1:] if table.start[symbol] % 1024]
    crowded = {bucket for bucket in inside if inside.count(bucket) > 1} - {63}
    if crowded:
        raise Corrupt(f"rank table: two ranks start inside bucket {min(crowded)} (§4.2)")
    return table


def read_byte_table(cursor: Cursor) -> Table:
    (bits,) = cursor.integers(1, 1)
    cursor.padding(1)
    (count,) = cursor.integers(2, 1)
    present = int.from_bytes(cursor.take(32), "little")
    if bits not in (12, 13, 14) or not 2 <= count <= 256:
        raise Corrupt(f"byte table: {bits} bits, {count} symbols (§4.3)")
    if present.bit_count() != count:
        raise Corrupt(f"byte table: {present.bit_count()} symbols are present, {count} announced (§4.3)")
    frequencies = cursor.integers(2, count)
    if not all(1 <= frequency <= 4095 for frequency in frequencies):
        raise Corrupt("byte table: a frequency is not in 1 … 4095 (§4.3)")
    symbols = [symbol for symbol in range(256) if present >> symbol & 1]
    return make_table(bits, list(zip(symbols, frequencies, strict=True)))


def read_tables(blob: bytes, coding: int, layout: Layout) -> Tables:
    """The table blob of a frame (§5)."""
    if not blob:
        return Tables(0, [])
    if coding != PLANES:
        raise Corrupt("a table blob in a frame without planes (§5)")
    cursor = Cursor(blob, "table blob")
    (kind,) = cursor.integers(1, 1)
    cursor.padding(1)
    (count,) = cursor.integers(2, 1)
    if kind not in (1, 2, 3) or count == 0:
        raise Corrupt(f"{count} tables of kind {kind} (§5)")
    if kind == 3 and not layout.joint:
        raise Corrupt(f"joint table for layout {layout.name} (§2)")
    entries: list[Entry] = []
    for _ in range(count):
        (first_chunk,), (base,) = cursor.integers(4, 1), cursor.integers(1, 1)
        cursor.padding(3)
        if not (first_chunk > entries[-1].first_chunk if entries else first_chunk == 0):
            raise Corrupt(f"a table of chunk {first_chunk} after {len(entries)} tables (§5)")
        if base > (192 if kind == 3 else 0):
            raise Corrupt(f"base {base} in a table of kind {kind} (§4.6, §5)")
        entries.append(
            Entry(first_chunk, base, read_rank_table(cursor) if kind == 1 else read_byte_table(cursor))
        )
        cursor.align(4)
    cursor.finish()
    return Tables(kind, entries)


# --- Chunks: §4 ---


def allowed_modes(plane: int, layout: Layout, kind: int) -> set[int]:
    """The modes that §4 allows in a plane and §5 beside tables of a kind. Joint and six come in pairs."""
    modes = {RAW, CONSTANT, LOCAL}
    if plane == 0 and kind:
        modes.add({1: RANK, 2: BYTE, 3: JOINT}[kind])
    if plane == 1 and layout.joint and kind == 3:
        modes.add(SIX)
    return modes


def check_records(records: list[Record], layout: Layout, kind: int) -> None:
    for plane, record in enumerate(records):
        if record.mode not in allowed_modes(plane, layout, kind):
            raise Corrupt(f"plane {plane}: mode {record.mode} is not allowed (§4, §5)")
        if record.mode not in (RANK, BYTE, LOCAL, JOINT) and (record.patches or record.words):
            raise Corrupt(f"plane {plane}: patches or words without a stream (§4)")
        if record.mode != CONSTANT and record.param:
            raise Corrupt(f"plane {plane}: param {record.param} in mode {record.mode} (§4)")
    if (records[0].mode == JOINT) != (len(records) > 1 and records[1].mode == SIX):
        raise Corrupt("modes joint and six go together (§4)")


def has_payload(records: list[Record], m: int) -> bool:
    """Whether the stream of plane 0 carries the end of plane 1's section (§4.5)."""
    return (
        records[0].mode in (RANK, BYTE, JOINT)
        and len(records) > 1
        and records[1].mode in (RAW, SIX)
        and plain_size(records[1].mode, m) >= PAYLOAD_BYTES
    )


def plain_size(mode: int, m: int) -> int:
    """Bytes of a whole section without a stream."""
    return {RAW: m, CONSTANT: 0, SIX: 96 * math.ceil(m / 128)}[mode]


def decode_stream(cursor: Cursor, words_count: int, m: int, table: Table) -> tuple[list[int], list[int]]:
    """The m symbols of a stream, before patches, and the final states of its lanes (§4.1)."""
    states = cursor.integers(4, LANES)
    words = iter(cursor.integers(2, words_count))
    if min(states) < LOW:
        raise Corrupt("an initial state is below 2^16 (§4.1)")
    symbols = []
    for i in range(m):
        x = states[i % LANES]
        slot = x % (1 << table.bits)
        symbol = table.symbol_of[slot]
        x = table.frequency[symbol] * (x >> table.bits) + slot - table.start[symbol]
        if x < LOW:
            word = next(words, None)
            if word is None:
                raise Corrupt("a stream takes more words than it has (§4.1)")
            x = x << 16 | word
        states[i % LANES] = x
        symbols.append(symbol)
    if next(words, None) is not None:
        raise Corrupt("a stream takes fewer words than it has (§4.1)")
    return symbols, states


def apply_patches(cursor: Cursor, record: Record, symbols: list[int]) -> None:
    """Puts right the symbols that have no frequency (§4.4)."""
    previous = -1
    for _ in range(record.patches):
        (position,) = cursor.integers(2, 1)
        (value,) = cursor.integers(2 if record.mode == JOINT else 1, 1)
        if not previous < position < len(symbols):
            raise Corrupt(f"patch at {position} after {previous} of {len(symbols)} (§4.4)")
        if value > 1023:
            raise Corrupt(f"patch with the value {value} (§4.4)")
        symbols[position] = value
        previous = position


def unpack_six(section: bytes, m: int) -> list[int]:
    values = []
    for offset in range(0, len(section), 96):
        first, second, third = (section[offset + k : offset + k + 32] for k in (0, 32, 64))
        values += [byte & 63 for byte in first + second + third]
        values += [a >> 6 | b >> 6 << 2 | c >> 6 << 4 for a, b, c in zip(first, second, third, strict=True)]
    if any(values[m:]):
        raise Corrupt("mode six: bits of missing units are not 0 (§4.6)")
    return values[:m]


def decode_chunk(chunk: bytes, m: int, layout: Layout, kind: int, entry: Entry | None) -> bytes:
    """The original bytes of a chunk of m units (§4). `kind`: of the frame's tables; `entry`: the chunk's."""
    cursor = Cursor(chunk, "chunk")
    records = []
    for _ in range(layout.width):
        (mode, param), (patches,), (words,) = (
            cursor.integers(1, 2),
            cursor.integers(2, 1),
            cursor.integers(4, 1),
        )
        records.append(Record(mode, param, patches, words))
    check_records(records, layout, kind)
    payload = has_payload(records, m)

    sections: dict[int, bytes] = {}  # of the planes without a stream
    streams: dict[int, list[int]] = {}  # of the others: plane bytes, or heads
    for plane in reversed(range(layout.width)):
        record = records[plane]
        cursor.align(4)
        if record.mode in (RAW, CONSTANT, SIX):
            elsewhere = PAYLOAD_BYTES if plane == 1 and payload else 0
            sections[plane] = cursor.take(plain_size(record.mode, m) - elsewhere)
            continue
        if record.mode == LOCAL:
            table = read_byte_table(cursor)
            cursor.align(4)
        else:
            assert entry is not None  # allowed_modes saw to it
            table = entry.table
        symbols, states = decode_stream(cursor, record.words, m, table)
        if record.mode == JOINT:
            assert entry is not None
            symbols = [4 * entry.base + symbol for symbol in symbols]
        apply_patches(cursor, record, symbols)
        streams[plane] = symbols
        if plane == 0 and payload:
            sections[1] += read_payload(states)
        elif any(x != LOW for x in states):
            raise Corrupt("a stream ends in other states than 2^16 (§4.1)")
    cursor.align(4)
    cursor.finish()
    return join_planes(records, sections, streams, m, layout)


def read_payload(states: list[int]) -> bytes:
    """The payload of a stream's final states (§4.5)."""
    if any(x >> 16 != 1 for x in states):
        raise Corrupt("a stream ends in other states than 2^16 | payload (§4.1)")
    return struct.pack("<32H", *(x & 0xFFFF for x in states))


def join_planes(
    records: list[Record], sections: dict[int, bytes], streams: dict[int, list[int]], m: int, layout: Layout
) -> bytes:
    """Undoes §3."""
    planes: list[list[int]] = []
    for plane, record in enumerate(records):
        if record.mode == CONSTANT:
            planes.append([record.param] * m)
        elif record.mode == RAW:
            planes.append(list(sections[plane]))
        elif record.mode == JOINT:
            planes.append([head >> 2 for head in streams[plane]])
        elif record.mode == SIX:
            low = unpack_six(sections[plane], m)
            planes.append([(head & 3) << 6 | q for head, q in zip(streams[0], low, strict=True)])
        else:
            planes.append(streams[plane])
    data = bytearray()
    for unit in zip(*planes, strict=True):
        x = int.from_bytes(bytes(unit), "big")
        if layout.rotate:
            below = 8 * layout.width - 16
            h = x >> below
            h = h >> 1 | (h & 1) << 15  # the inverse of rotl16
            x = h << below | x & ((1 << below) - 1)
        data += x.to_bytes(layout.width, "little")
    return bytes(data)
