"""Bad vectors, the frames with bad headers: each breaks one rule of spec.md under a matching header checksum.

`mint.py` writes them.
"""

import random
import struct
from dataclasses import replace

from encoder import (
    Frame,
    Table,
    Twist,
    byte_table,
    bytes_frame,
    fit,
    pad,
    planes_frame,
    rank_table,
    zstd_frame,
)
from good_vectors import EXPONENTS, RANKS, draw, heads_table, tensor

Bad = dict[str, tuple[bytes, str, str]]  # file name -> bytes, error kind, reason

UNITS = 100
DATA = tensor("BF16", random.Random(5), draw(random.Random(8), RANKS, UNITS))
HEADS = heads_table(DATA, 12, 100)


def chunk_frame(
    modes: str, table: Table | None = None, twist: Twist | None = None, data: bytes = DATA
) -> Frame:
    """A frame of one bf16 chunk."""
    return planes_frame("BF16", [len(data) // 2], data, modes, table, 10, twist)


RANK = chunk_frame("rank raw", RANKS)
STORED = bytes_frame("U8", [1500], bytes(range(250)) * 6)
ZSTD = bytes_frame("U8", [1500], bytes(1500), zstd_frame)


def entry(body: bytes, base: int = 0, first_chunk: int = 0, padding: bytes = bytes(3)) -> bytes:
    """An entry of the table blob."""
    return pad(struct.pack("<IB", first_chunk, base) + padding + body, 4)


def with_tables(kind: int, *entries: bytes, count: int | None = None, padding: int = 0) -> Frame:
    """A frame with this table blob and one raw chunk, so that only the blob can be wrong."""
    blob = struct.pack("<BBH", kind, padding, len(entries) if count is None else count) + b"".join(entries)
    return replace(chunk_frame("raw raw"), table=blob)


def with_table(table: Table | bytes, kind: int = 1) -> Frame:
    """A frame with one table."""
    return with_tables(kind, entry(table if isinstance(table, bytes) else table.body))


def change(data: bytes, offset: int, *values: int) -> bytes:
    """The bytes with some replaced."""
    return data[:offset] + bytes(values) + data[offset + len(values) :]


def fixed_headers() -> dict[str, tuple[Frame, str, str]]:
    """The fixed part of the header (§5)."""
    corrupt, unsupported = "corrupt", "unsupported"
    return {
        "magic": (replace(RANK, magic=b"NZFQ"), unsupported, "§6: the magic is another"),
        "version_0": (replace(RANK, version=0), unsupported, "§9: version 0 is none"),
        "version_2": (replace(RANK, version=2), unsupported, "§9: a later version"),
        "required_base": (
            replace(RANK, required=1, base=bytes(32)),
            unsupported,
            "§5: deltas are not defined",
        ),
        "required_bit_15": (replace(RANK, required=1 << 15), unsupported, "§5: an unknown required bit"),
        "dtype_0": (replace(RANK, dtype=0), unsupported, "§2: dtype 0 is none"),
        "dtype_255": (replace(RANK, dtype=255), unsupported, "§2: an unknown dtype"),
        "coding_3": (replace(RANK, coding=3), unsupported, "§5: an unknown coding"),
        "planes_of_opaque": (
            planes_frame("I16", [50], DATA[:100], "raw"),
            corrupt,
            "§2: I16 is not cut into planes",
        ),
        "planes_chunk_log2_9": (replace(RANK, chunk_log2=9), corrupt, "§5: chunk_log2 below 10"),
        "planes_chunk_log2_17": (replace(RANK, chunk_log2=17), corrupt, "§5: chunk_log2 above 16 for planes"),
        "stored_chunk_log2_9": (replace(STORED, chunk_log2=9), corrupt, "§5: chunk_log2 below 10"),
        "zstd_chunk_log2_21": (replace(ZSTD, chunk_log2=21), corrupt, "§5: chunk_log2 above 20"),
        "checksum": (replace(RANK, checksum=1), corrupt, "§5: the header checksum does not match"),
    }


def sizes() -> dict[str, tuple[Frame, str]]:
    """Shape, size and frame_size (§5)."""
    return {
        "ndim_33": (replace(RANK, shape=(UNITS, *[1] * 32)), "§5: more than 32 dimensions"),
        "size_beyond_bound": (
            replace(RANK, size=1 << 62, shape=(1 << 61,)),
            "§6: size is more than 2^17 · frame_size",
        ),
        "size_odd": (replace(RANK, size=2 * UNITS - 1), "§5: size is not the shape's"),
        "shape_larger": (replace(RANK, shape=(UNITS + 1,)), "§5: size is not the shape's"),
        "shape_wraps": (
            replace(bytes_frame("U8", [0], b""), shape=(1 << 32, 1 << 32)),
            "§5: the shape's product is 2^64, not 0",
        ),
        "shape_times_bits_wraps": (
            replace(bytes_frame("F64", [0], b""), shape=(1 << 61,)),
            "§5: the product times 64 bits is 2^67, not 0",
        ),
        "shape_half_byte": (
            replace(bytes_frame("F4", [6], b"abc"), shape=(5,)),
            "§5: five elements of four bits are not a number of bytes",
        ),
        "frame_size_below_header": (
            replace(RANK, frame_size=48),
            "§5: the header passes frame_size",
        ),
        "frame_size_smaller": (
            replace(RANK, frame_size=len(RANK.encode()) - 8),
            "§5: frame_size is not the sum of the parts",
        ),
        "frame_size_larger": (
            replace(RANK, tail=bytes(-sum(map(len, RANK.chunks)) % 8 + 8)),
            "§5: eight bytes of padding too many",
        ),
    }


def blobs() -> dict[str, tuple[Frame, str]]:
    """The table blob as a whole (§5)."""
    rank, byte = RANKS.body, fit(EXPONENTS[:5], 12).body  # the entry of the second ends in 2 bytes of padding
    bad = change(rank, 20, 0)
    unpadded = with_tables(2, entry(byte)[:-2])
    return {
        "tables_kind_0": (with_tables(0, entry(rank)), "§5: table kind 0"),
        "tables_kind_4": (with_tables(4, entry(rank)), "§5: table kind 4"),
        "tables_padding": (with_tables(1, entry(rank), padding=1), "§1: padding in the table blob is not 0"),
        "tables_count_0": (with_tables(1), "§5: a blob without entries"),
        **{
            f"tables_count_{count}_of_1": (
                with_tables(1, entry(rank), count=count),
                "§5: count is not the number of entries",
            )
            for count in (0, 2, 65535)
        },
        "tables_first_chunk_1": (with_tables(1, entry(rank, 0, 1)), "§5: no table for chunk 0"),
        "tables_first_chunk_twice": (with_tables(1, entry(rank), entry(rank)), "§5: two tables of chunk 0"),
        "tables_first_chunk_order": (
            with_tables(1, entry(rank), entry(rank, 0, 2), entry(rank, 0, 1)),
            "§5: first_chunk does not ascend",
        ),
        "tables_base_of_rank": (with_tables(1, entry(rank, 1)), "§5: a base without a joint table"),
        "tables_base_of_byte": (with_tables(2, entry(byte, 1)), "§5: a base without a joint table"),
        "tables_base_193": (with_tables(3, entry(byte, 193)), "§4.6: base is more than 192"),
        "tables_entry_padding": (
            with_tables(1, entry(rank, 0, 0, b"\0\0\1")),
            "§1: padding of an entry is not 0",
        ),
        "tables_entry_end": (with_tables(2, entry(byte + b"\1\1")), "§1: padding after a table is not 0"),
        "tables_entry_unpadded": (unpadded, "§5: no padding after the last table"),
        "tables_unused": (with_tables(1, entry(rank), entry(bad, 0, 7)), "§5: an unused table is bad"),
        "tables_longer": (with_tables(1, entry(rank) + bytes(4)), "§5: table_bytes is more than the entries"),
        "tables_shorter": (with_tables(2, entry(byte)[:-4]), "§5: table_bytes is less than the entries"),
        "tables_3_bytes": (replace(RANK, table=RANK.table[:3]), "§5: a table blob of 3 bytes"),
        "tables_of_stored": (replace(STORED, table=RANK.table), "§5: coding stored has no tables"),
        "tables_of_zstd": (replace(ZSTD, table=RANK.table), "§5: coding zstd has no tables"),
        "tables_joint_of_fp16": (
            planes_frame("F16", [UNITS], DATA, "joint six", HEADS),
            "§2: fp16 has no joint mode",
        ),
        "tables_joint_of_fp16_unused": (
            planes_frame("F16", [UNITS], DATA, "raw raw", HEADS),
            "§5: a joint table, but fp16 has no joint mode",
        ),
    }


def rank_tables() -> dict[str, tuple[Frame, str]]:
    """Rank tables (§4.2)."""
    rank, short = RANKS.body, rank_table((3, 2, 1), (200, 55), (16,)).body
    return {
        "rank_table_1_rank": (with_table(rank_table((1,), (255,), ()).body), "§4.2: fewer than 2 ranks"),
        "rank_table_17_ranks": (with_table(change(rank, 0, 17)), "§4.2: more than 16 ranks"),
        "rank_table_main_0": (with_table(rank_table((1, 2), (), (15, 1)).body), "§4.2: no main rank"),
        "rank_table_main_all": (
            with_table(rank_table((1, 2), (254, 1), ()).body),
            "§4.2: main is not less than ranks",
        ),
        "rank_table_padding": (with_table(change(rank, 2, 1)), "§1: padding in the rank table is not 0"),
        "rank_table_symbol_twice": (
            with_table(change(rank, 5, EXPONENTS[0])),
            "§4.2: a symbol appears twice",
        ),
        "rank_table_unused_symbol": (with_table(change(short, 4 + 3, 9)), "§4.2: an unused symbol is not 0"),
        "rank_table_unused_weight": (
            with_table(change(short, 20 + 15, 1)),
            "§4.2: an unused weight is not 0",
        ),
        "rank_table_weight_0": (
            with_table(rank_table((1, 2, 3), (255, 0), (16,)).body),
            "§4.2: the weight of a rank is 0",
        ),
        "rank_table_main_sum": (
            with_table(rank_table((1, 2), (254,), (16,)).body),
            "§4.2: main weights sum to 254",
        ),
        "rank_table_fine_sum": (
            with_table(rank_table((1, 2), (255,), (17,)).body),
            "§4.2: fine weights sum to 17",
        ),
        "rank_table_both_sums": (
            with_table(rank_table((1, 2), (254,), (32,))),
            "§4.2: main weights sum to 254 and fine weights to 32, the frequencies to 2^16",
        ),
        "rank_table_crowded_bucket": (
            with_table(rank_table((1, 2, 3, 4), (1, 1, 253), (16,)).body),
            "§4.2: two ranks start inside bucket 0",
        ),
    }


def byte_tables() -> dict[str, tuple[Frame, str]]:
    """Byte tables (§4.3)."""
    byte = fit(EXPONENTS[:5], 12).body
    full = dict.fromkeys(range(256), 16)
    return {
        "byte_table_11_bits": (
            with_table(byte_table({0: 1024, 1: 1024}, 11).body, 2),
            "§4.3: bits is 11",
        ),
        "byte_table_15_bits": (
            with_table(byte_table(dict.fromkeys(range(16), 2048), 15).body, 2),
            "§4.3: bits is 15",
        ),
        "byte_table_padding": (with_table(change(byte, 1, 1), 2), "§1: padding in the byte table is not 0"),
        "byte_table_1_symbol": (with_table(byte_table({7: 4096}, 12).body, 2), "§4.3: fewer than 2 symbols"),
        "byte_table_count": (
            with_table(change(byte_table(full, 12).body, 4, 254), 2),
            "§4.3: count is not the number of symbols present",
        ),
        "byte_table_frequency_0": (
            with_table(byte_table({1: 2048, 2: 0, 3: 2048}, 12).body, 2),
            "§4.3: a frequency is 0",
        ),
        "byte_table_frequency_4096": (
            with_table(byte_table({1: 4096, 2: 4096}, 13).body, 2),
            "§4.3: a frequency is more than 4095",
        ),
        "byte_table_sum": (
            with_table(byte_table({1: 2048, 2: 2047}, 12).body, 2),
            "§4.3: frequencies sum to 4095",
        ),
        "byte_table_sum_wraps": (
            with_table(byte_table(dict.fromkeys(range(17), 4095) | {17: 17}, 12).body, 2),
            "§4.3: frequencies sum to 2^16 + 4096",
        ),
    }


def truncations() -> Bad:
    """Frames that end too early, or too late (§5)."""
    frame, stored = RANK.encode(), STORED.encode()
    cuts = {
        "nothing": (b"", "no bytes"),
        "magic": (frame[:3], "the bytes end in the magic"),
        "fixed_header": (frame[:39], "the bytes end in the fixed header"),
        "shape": (frame[:44], "the bytes end in the shape"),
        "table": (frame[:70], "the bytes end in the table blob"),
        "index": (stored[:60], "the bytes end in the chunk index"),
        "no_chunks": (stored[:64], "the bytes end before the first chunk"),
        "chunk": (frame[:200], "the bytes end in a chunk"),
        "last_chunk": (stored[:1400], "the bytes end in the last chunk"),
        "tail": (stored[:-1], "the bytes end in the padding after the chunks"),
    }
    bad: Bad = {
        f"truncated_{name}.nzf": (data, "truncated", f"§5: {why}") for name, (data, why) in cuts.items()
    }
    bad["bytes_after_frame.nzf"] = (frame + bytes(8), "corrupt", "§6: bytes after the frame")
    bad["tail_padding.nzf"] = (stored[:-1] + b"\1", "corrupt", "§1: padding after the chunks is not 0")
    return bad


def bad_headers() -> Bad:
    """The bad frames of this file by file name."""
    bad: Bad = {}
    for name, (frame, kind, reason) in fixed_headers().items():
        bad[f"{name}.nzf"] = frame.encode(), kind, reason
    for name, (frame, reason) in (sizes() | blobs() | rank_tables() | byte_tables()).items():
        bad[f"{name}.nzf"] = frame.encode(), "corrupt", reason
    return bad | truncations()
