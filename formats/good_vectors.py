"""The good vectors: every feature of spec.md at least once, in small tensors. `mint.py` writes them."""

import base64
import random
import struct
from collections.abc import Sequence
from dataclasses import replace

from encoder import (
    Frame,
    Table,
    Tables,
    Tensors,
    byte_table,
    bytes_frame,
    container,
    fit,
    join,
    kept,
    planes_frame,
    rank_table,
    safetensors,
    types,
    zstd_frame,
)

# 0 … 127 as u64, by zstd 1.5.7 at level 19: a compressed block with sequences.
NUMBERS_PACKED = base64.b64decode(
    "KLUv/WAAA4UEAHIIIQ4QIL4GgH0H2Fdpack2Bf///9/AsKCQgHBgUEAwIBAAcLfX6XN5HP52t9lrdRp9NpfJY3EY/PV2uVttFnu1"
    "VqlTaRT6dDaZS2USeTQWiUNhEPjz9Xg7XQ53s9VoM1kM9nK1WCtVCnUylUgjUQj08XQ4G00Gc7FUKBNJBPJwNBgLRQJx+H9kAeAP"
    "BAC5Ag=="
)

Pair = tuple[bytes, bytes]  # encoded, original bytes
Vectors = dict[str, Pair]  # by file name

# Exponents of weights like those of real models: most in a few binades below 1.
MAIN = (104, 64, 40, 24, 12, 4, 4, 3)  # sum 255; starts clear of each other's buckets (§4.2)
FINE = (5, 3, 2, 2, 1, 1, 1, 1)  # sum 16
EXPONENTS = (122, 121, 123, 120, 119, 118, 124, 117, 116, 115, 125, 114, 113, 112, 126, 0)
RANKS = rank_table(EXPONENTS, MAIN, FINE)
# The starts 101, 158, 199, 222, 235, 244, 250 lie inside seven different buckets of four.
ODD_RANKS = rank_table(range(100, 116), (101, 57, 41, 23, 13, 9, 6, 5), (9, 1, 1, 1, 1, 1, 1, 1))
MANY_MAIN = rank_table(range(16), (64, 48, 32, 24, 20, 16, 12, 12, 8, 4, 4, 4, 4, 2, 1), (16,))
ONE_MAIN = rank_table(range(255, 239, -1), (255,), (2, *[1] * 14))
TWO_RANKS = rank_table((0, 127), (255,), (16,))


def draw(rng: random.Random, table: Table, count: int) -> bytes:
    """Symbols with the table's own distribution."""
    return bytes(rng.choices(list(table.frequency), list(table.frequency.values()), k=count))


def tensor(name: str, rng: random.Random, exponents: bytes, *rest: bytes) -> bytes:
    """Original bytes with this plane 0, these next planes and noise in the others."""
    dtype = types()[name]
    noise = [rng.randbytes(len(exponents)) for _ in range(dtype.width - 1 - len(rest))]
    return join([exponents, *rest, *noise], dtype)


def heads_table(data: bytes, bits: int, base: int) -> Table:
    """A joint table of the heads of bf16 units that `base` reaches (§4.6)."""
    units = [unit << 1 & 0xFFFF for (unit,) in struct.iter_unpack("<H", data)]
    symbols = [(unit >> 6) - 4 * base for unit in units]
    return fit([symbol for symbol in symbols if 0 <= symbol < 256], bits, 3, base)


def bf16_frame(
    data: bytes, modes: str | Sequence[str], tables: Table | Tables | None = None, log2: int = 10
) -> Pair:
    """A frame of these bf16 units, and the units."""
    return planes_frame("BF16", [len(data) // 2], data, modes, tables, log2).encode(), data


def bf16_rank() -> Vectors:
    """bfloat16 with rank tables: sizes around the lanes and the payload (§4.5), patches, several tables."""
    rng = random.Random(1)

    def ranks(table: Table, count: int) -> bytes:
        return tensor("BF16", rng, draw(rng, table, count))

    vectors = {
        "rank": bf16_frame(ranks(RANKS, 2500), "rank raw", RANKS),  # last chunk: 452, no multiple of 32
        "rank_local": bf16_frame(ranks(RANKS, 1100), "rank local:13:2", RANKS),  # no payload
        "rank_patches": bf16_frame(
            tensor("BF16", rng, draw(rng, ODD_RANKS, 700) + rng.randbytes(30)), "rank raw", ODD_RANKS
        ),
        "rank_all_patches": bf16_frame(tensor("BF16", rng, bytes([1]) * 70), "rank raw", ODD_RANKS),
        "rank_many_main": bf16_frame(ranks(MANY_MAIN, 1090), "rank raw", MANY_MAIN),
        "rank_one_main": bf16_frame(ranks(ONE_MAIN, 1090), "rank raw", ONE_MAIN),
        "rank_two": bf16_frame(ranks(TWO_RANKS, 1090), "rank raw", TWO_RANKS),
        "rank_chunk_log2_13": bf16_frame(ranks(RANKS, 4300), "rank raw", RANKS, 13),
    }
    # From 64 units on there is a payload; of 64 units it is all of plane 1.
    for count in 1, 31, 32, 33, 63, 64, 65:
        vectors[f"rank_{count}_units"] = bf16_frame(ranks(RANKS, count), "rank raw", RANKS)
    mixed = ["rank raw", "raw raw", "constant raw", "local:12 local:12", "rank local:14:3", "rank raw"]
    data = tensor("BF16", rng, draw(rng, RANKS, 2048) + bytes(1024) + draw(rng, RANKS, 2048 + 90))
    vectors["modes_mixed"] = bf16_frame(data, mixed, RANKS)
    return vectors


def bf16_byte() -> Vectors:
    """bfloat16 with byte tables, the frame's and the chunk's, and without tables."""
    rng = random.Random(2)
    exponents = draw(rng, RANKS, 520)
    data = tensor("BF16", rng, exponents)
    vectors = {}
    for bits in 12, 13, 14:
        vectors[f"byte{bits}"] = bf16_frame(data, "byte raw", fit(exponents, bits))
        vectors[f"byte{bits}_patches"] = bf16_frame(data, "byte raw", fit(exponents[:150], bits))
        vectors[f"local{bits}"] = bf16_frame(data, f"local:{bits} raw")
        vectors[f"local{bits}_patches"] = bf16_frame(data, f"local:{bits}:5 local:{bits}:4")
    tables = [
        (0, fit(b"\1\2\3", 12)),
        (1, fit(exponents, 14)),
        (2, fit(b"\1\2", 12)),
    ]  # lengths that need padding
    three = tensor("BF16", rng, bytes(rng.choices((1, 2, 3), k=1024)) + draw(rng, RANKS, 1024) + b"\1\2" * 50)
    skewed = bytes(1000) + b"\x7f" + bytes(23)
    return vectors | {
        "byte_three_tables": bf16_frame(three, "byte raw", tables),
        # Frequencies 4095 and 1: hardly any words
        "byte_skewed": bf16_frame(tensor("BF16", rng, skewed), "byte raw", byte_table({0: 4095, 127: 1}, 12)),
        "byte_256_symbols": bf16_frame(rng.randbytes(2048), "byte raw", fit(range(256), 14)),
        "byte_60_units": bf16_frame(tensor("BF16", rng, exponents[:60]), "byte raw", fit(exponents, 12)),
        "zeros": bf16_frame(bytes(4200), "constant constant"),
        "constant_exponent": bf16_frame(tensor("BF16", rng, bytes([127]) * 100), "constant local:12"),
        "raw": bf16_frame(rng.randbytes(2 * 1027), "raw raw"),
        "local_two": bf16_frame(
            join([bytes([9]) * 99 + b"\x08", bytes(100)], types()["BF16"]), "local:14 local:12"
        ),
    }


def bf16_joint() -> Vectors:
    """bfloat16 with joint tables: blocks of mode six, payload, patches, several tables."""
    rng = random.Random(3)

    def ranks(count: int) -> bytes:
        return tensor("BF16", rng, draw(rng, RANKS, count))

    data = ranks(520)
    vectors = {}
    for bits in 12, 13, 14:
        vectors[f"joint{bits}"] = bf16_frame(data, "joint six", heads_table(data, bits, 100))
        vectors[f"joint{bits}_patches"] = bf16_frame(data, "joint six", heads_table(data[:400], bits, 90))
    for count in 1, 127, 128, 129:
        vectors[f"joint_{count}_units"] = bf16_frame(ranks(count), "joint six", heads_table(data, 12, 100))
    bases = b"".join(tensor("BF16", rng, bytes([exponent]) * 100) for exponent in (0, 63, 192, 255))
    low = tensor("BF16", rng, bytes(range(64)) * 10)
    high = tensor("BF16", rng, bytes(range(192, 256)) * 10)
    tables = [(0, heads_table(data, 12, 100)), (1, heads_table(data, 14, 99))]
    return vectors | {
        "joint_base_0": bf16_frame(low + bases, "joint six", heads_table(low, 14, 0)),
        "joint_base_192": bf16_frame(high + bases, "joint six", heads_table(high, 14, 192)),
        "joint_two_tables": bf16_frame(ranks(1100), "joint six", tables),
        "joint_modes_mixed": bf16_frame(data * 3, ["joint six", "raw local:12"], heads_table(data, 13, 100)),
        "joint_chunk_log2_13": bf16_frame(ranks(4300), "joint six", heads_table(data, 13, 100), 13),
    }


def specials(name: str) -> bytes:
    """Zeros, infinities, NaNs with payloads, subnormals and extremes of both signs."""
    bits = 8 * types()[name].width
    mantissa = {"F16": 10, "BF16": 7, "F32": 23, "F64": 52}[name]
    infinity = ((1 << (bits - 1 - mantissa)) - 1) << mantissa
    quiet = infinity | 1 << (mantissa - 1)
    positive = [0, 1, infinity, infinity | 1, quiet, quiet | 1, infinity - 1, infinity | (1 << mantissa) - 1]
    values = [value | sign << (bits - 1) for value in positive for sign in (0, 1)]
    return b"".join(value.to_bytes(bits // 8, "little") for value in values)


def frame_of(
    name: str, data: bytes, modes: str, tables: Table | Tables | None = None, level: int = 0
) -> Pair:
    """A frame of a vector of this dtype, and its bytes."""
    shape = [8 * len(data) // types()[name].bits]
    return replace(planes_frame(name, shape, data, modes, tables), level=level).encode(), data


def wide() -> Vectors:
    """The other layouts of more than one byte a unit, and what floats have that integers have not."""
    rng = random.Random(4)

    def data_of(name: str, count: int, *rest: bytes) -> bytes:
        return tensor(name, rng, draw(rng, RANKS, count), *rest)

    vectors = {}
    for name in "F16", "BF16", "F32", "F64":
        low = " raw" * (types()[name].width - 1)
        vectors[f"specials_{name.lower()}"] = frame_of(name, specials(name), "local:12:2" + low)
        vectors[f"specials_{name.lower()}_rank"] = frame_of(name, specials(name) * 5, "rank" + low, RANKS)
    special_heads = heads_table(specials("BF16"), 12, 192)
    vectors["specials_bf16_joint"] = frame_of("BF16", specials("BF16") * 5, "joint six", special_heads)
    heads = heads_table(data_of("BF16", 300), 13, 105)
    of_bf16 = data_of("F32", 300, rng.randbytes(300), bytes(300), bytes(300))
    mixed = "byte raw local:13 local:12 raw local:14 raw raw"
    return vectors | {
        "fp16_rank": frame_of("F16", data_of("F16", 1300), "rank raw", RANKS),
        "fp16_byte": frame_of("F16", data_of("F16", 1100), "byte local:13", fit(EXPONENTS, 13)),
        "fp32_rank": frame_of("F32", data_of("F32", 300), "rank raw raw raw", RANKS),
        "fp32_of_bf16": frame_of("F32", of_bf16, "rank raw constant constant", RANKS),
        "fp32_local": frame_of("F32", data_of("F32", 333), "local:12 local:13 local:14 local:12:3"),
        "fp32_joint": frame_of("F32", data_of("F32", 300), "joint six raw local:12", heads, 1),
        "fp64_rank": frame_of("F64", data_of("F64", 300), "rank" + 7 * " raw", RANKS),
        "fp64_mixed": frame_of("F64", data_of("F64", 200), mixed, fit(EXPONENTS, 14)),
        "c64_rank": frame_of("C64", data_of("C64", 300), "rank raw raw raw", RANKS),
        "c128_byte": frame_of("C128", data_of("C128", 130), "byte" + 7 * " raw", fit(EXPONENTS, 12)),
    }


def narrow() -> Vectors:
    """Dtypes of one byte a unit."""
    rng = random.Random(7)
    vectors = {}
    for name in "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F4", "U8", "I8":
        exponents = draw(rng, RANKS, 300)
        vectors[f"{name.lower()}_rank"] = frame_of(name, exponents, "rank", RANKS)
        patched = rng.randbytes(60) + exponents + b"\1"
        vectors[f"{name.lower()}_byte"] = frame_of(name, patched, "byte", fit(EXPONENTS, 12))
    four = b"".join(draw(rng, table, 1024) for table in (RANKS, ODD_RANKS, ODD_RANKS, MANY_MAIN))
    tables = [(0, RANKS), (1, ODD_RANKS), (3, MANY_MAIN), (9, TWO_RANKS)]  # the last is never used
    # A chunk of 2^16 units, with patches at its middle and its end: position 65535 (§4.4)
    full = bytearray(draw(rng, fit(bytes(100) + b"\1\2\3\4\5\6\7", 12), 65536))
    full[-1] = full[32768] = 255
    frame = planes_frame("U8", [256, 256], bytes(full), "byte", fit(full[:65535:5], 13), 16)
    return vectors | {
        "f8_e4m3_raw": frame_of("F8_E4M3", rng.randbytes(1050), "raw"),
        "f8_e4m3_all_bytes": frame_of("F8_E4M3", bytes(range(256)), "local:14"),
        "f4_constant": frame_of("F4", bytes([0x21]) * 3000, "constant"),
        "f8_e5m2_four_tables": frame_of("F8_E5M2", four, "rank", tables),
        "u8_full_chunk": (frame.encode(), bytes(full)),
    }


def headers() -> Vectors:
    """Shapes, dtypes and codings."""
    rng = random.Random(5)
    vectors: Vectors = {}

    def add(label: str, frame: Frame, data: bytes) -> None:
        vectors[label] = frame.encode(), data

    for name, dtype in types().items():
        data = rng.randbytes(dtype.bits)
        add(f"stored_{name.lower()}", bytes_frame(name, [2, 4], data), data)
        zeros = bytes(64 * dtype.bits // 8)
        add(f"zstd_{name.lower()}", bytes_frame(name, [2, 4, 8], zeros, zstd_frame), zeros)
    scalar = struct.pack("<H", 0x3F80)
    add("shape_scalar", planes_frame("BF16", [], scalar, "raw constant"), scalar)
    add("shape_scalar_stored", bytes_frame("F64", [], bytes(8)), bytes(8))
    add(
        "shape_32_dimensions",
        planes_frame("BF16", [1] * 31 + [40], scalar * 40, "constant constant"),
        scalar * 40,
    )
    add("shape_empty_planes", planes_frame("BF16", [0], b"", "raw raw"), b"")
    add("shape_empty_table", planes_frame("F32", [3, 0, 5], b"", "raw raw", RANKS), b"")
    add("shape_empty_stored", bytes_frame("I64", [7, 0], b""), b"")
    add("shape_empty_zstd", bytes_frame("F6_E2M3", [0, 0], b"", zstd_frame), b"")
    long = rng.randbytes(1024) + bytes(1024) + rng.randbytes(77)
    add("stored_chunks", bytes_frame("BOOL", [len(long)], long), long)
    # Chunks that do not shrink are the original bytes, recognised by their length
    packed = bytes_frame("U8", [len(long)], long, lambda part: part if any(part) else zstd_frame(part))
    add("zstd_chunks", packed, long)
    numbers = struct.pack("<128Q", *range(128))
    add("zstd_compressed_block", bytes_frame("U64", [128], numbers, lambda _: NUMBERS_PACKED), numbers)
    sevens = bytes([7]) * (1 << 12)
    add("zstd_chunk_log2_20", bytes_frame("I16", [1 << 11], sevens, zstd_frame, 20), sevens)
    odd = rng.randbytes(2100)
    add("stored_chunk_log2_11", bytes_frame("F6_E3M2", [2800], odd, None, 11), odd)
    return vectors


def containers() -> Vectors:
    """A safetensors file with compressed and uncompressed tensors."""
    rng = random.Random(6)
    tensors, frames = small_checkpoint(rng)
    original = safetensors(tensors, {"format": "pt", "note": "naïve"})
    bare = safetensors({name: tensors[name] for name in ("mask", "none")}, {})
    return {
        "container": (container(original, tensors, frames), original),
        "container_plain": (container(bare, {name: tensors[name] for name in ("mask", "none")}, {}), bare),
        "container_no_tensors": (container(safetensors({}, {}), {}, {}), safetensors({}, {})),
    }


def kept_files() -> Vectors:
    """Containers of version 2: wherever a header has its metadata, and whatever they are (§7.1)."""
    rng = random.Random(6)
    tensors, _ = small_checkpoint(rng)
    original = safetensors(tensors, {"format": "pt", "note": "naïve"})
    long = safetensors({"noise": ("U8", [40000], rng.randbytes(40000)), "odd": ("U8", [7], bytes(7))}, {})
    bare = safetensors({name: tensors[name] for name in ("mask", "none")}, {})
    entries = ",".join(
        f'"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{start},{start + 1}]}}'
        for name, start in (("b", 1), ("a", 0))
    )
    by_hand = '{ "__metadata__" : {"by": "hand"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    behind = ',"__metadata_\\u005f": {"neuzip.x":"\\"}"}}'
    rows = {
        "blanks": (by_hand, '{"by"', '{@,"by"'),
        "empty": ('{"__metadata__":{},' + entries + "}", "{}", "{@}"),
        "empty_blanks": ("{" + entries + ', "__metadata__": {\n }}  ', "{\n }", "{\n @}"),
        "nothing": (" { } ", "{", '{"__metadata__":{@}'),
        "null": ('{"__metadata__": null, ' + entries + "}", "null", "{@}"),
        "behind": (" \n{" + entries + behind, '{"neuzip.x', '{@,"neuzip.x'),
    }
    none = '{"__metadata__":{@},'
    vectors = {
        "container_kept": (kept(bare, "{", none), bare),
        "container_kept_metadata": (kept(original, '{"format"', '{@,"format"', 0), original),
        "container_kept_blocks": (kept(long, "{", none, 5), long),
    }
    for name, (text, old, new) in rows.items():
        file = struct.pack("<Q", len(text)) + text.encode() + b"\1\2" * ("data_offsets" in text)
        vectors[f"container_kept_{name}"] = kept(file, old, new), file
    return vectors


def small_checkpoint(rng: random.Random) -> tuple[Tensors, dict[str, bytes]]:
    """Tensors, and frames of some of them."""
    weight = tensor("BF16", rng, draw(rng, RANKS, 1200))
    scale = tensor("F32", rng, draw(rng, RANKS, 64))
    steps = bytes(range(0, 256, 2)) * 8
    tensors: Tensors = {
        "weight": ("BF16", [30, 40], weight),
        "scale": ("F32", [64], scale),
        "steps": ("I64", [128], steps),
        "none": ("F16", [0, 3], b""),
        "mask": ("U8", [5], b"\1\0\1\1\0"),
        "flag": ("BOOL", [], b"\1"),
    }
    frames = {
        "weight": planes_frame("BF16", [30, 40], weight, "rank raw", RANKS).encode(),
        "scale": planes_frame("F32", [64], scale, "rank raw raw raw", RANKS).encode(),
        "none": bytes_frame("F16", [0, 3], b"").encode(),
    }
    return tensors, frames


def good() -> Vectors:
    """All good vectors by file name."""
    bf16 = [
        {f"bf16_{name}": pair for name, pair in part.items()}
        for part in (bf16_rank(), bf16_byte(), bf16_joint())
    ]
    frames = {
        f"{name}.nzf": pair for part in (*bf16, wide(), narrow(), headers()) for name, pair in part.items()
    }
    return frames | {f"{name}.nz.safetensors": pair for name, pair in (containers() | kept_files()).items()}
