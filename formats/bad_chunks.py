"""The bad vectors whose chunks are bad: each breaks one rule of spec.md under checksums that match.

`mint.py` writes them.
"""

import struct
from dataclasses import replace

import xxhash
from bad_headers import DATA, HEADS, RANK, STORED, UNITS, ZSTD, Bad, change, chunk_frame
from encoder import (
    Frame,
    Records,
    Sections,
    Twist,
    bytes_frame,
    fit,
    planes_frame,
    split,
    table_blob,
    types,
    zstd_frame,
)
from good_vectors import RANKS

PLANE, PLANE_1 = split(DATA, types()["BF16"])


def set_record(plane: int, field: int, value: int) -> Twist:
    """Replaces mode (0), param (1), patches (2) or words (3) of a plane's record."""

    def twist(records: Records, sections: Sections) -> None:
        records[plane][field] = value

    return twist


def modes() -> dict[str, tuple[Frame, str]]:
    """Modes of plane records (§4)."""
    byte, based = fit(PLANE, 12), replace(HEADS, base=0)
    return {
        "mode_7": (chunk_frame("raw raw", RANKS, set_record(0, 0, 7)), "§4: mode 7"),
        "mode_rank_without_table": (replace(RANK, table=b""), "§5: mode rank without a table"),
        "mode_byte_without_table": (
            replace(chunk_frame("byte raw", byte), table=b""),
            "§5: mode byte without a table",
        ),
        "mode_byte_of_rank_table": (
            chunk_frame("rank raw", RANKS, set_record(0, 0, 3)),
            "§5: mode byte beside a rank table",
        ),
        "mode_rank_of_byte_table": (
            chunk_frame("byte raw", byte, set_record(0, 0, 2)),
            "§5: mode rank beside a byte table",
        ),
        "mode_joint_of_byte_table": (
            replace(chunk_frame("joint six", HEADS), table=change(table_blob([(0, based)]), 0, 2)),
            "§5: mode joint beside a byte table",
        ),
        "mode_byte_of_joint_table": (
            replace(chunk_frame("byte raw", byte), table=change(table_blob([(0, byte)]), 0, 3)),
            "§5: mode byte beside a joint table",
        ),
        "mode_rank_of_plane_1": (chunk_frame("raw rank", RANKS), "§4: mode rank in plane 1"),
        "mode_byte_of_plane_1": (chunk_frame("raw byte", byte), "§4: mode byte in plane 1"),
        "mode_joint_of_plane_1": (
            chunk_frame("raw byte", HEADS, set_record(1, 0, 5)),
            "§4: mode joint in plane 1",
        ),
        "mode_six_of_plane_0": (chunk_frame("six raw", HEADS), "§4: mode six in plane 0"),
        "mode_joint_without_six": (chunk_frame("joint raw", HEADS), "§4: mode joint, but plane 1 is raw"),
        "mode_six_without_joint": (chunk_frame("raw six", HEADS), "§4: mode six, but plane 0 is raw"),
        "mode_six_of_plane_2": (
            planes_frame("F32", [UNITS // 2], DATA, "joint six six raw", HEADS),
            "§4: mode six in plane 2",
        ),
    }


def record_fields() -> dict[str, tuple[Frame, str]]:
    """The other fields of plane records (§4, §4.5)."""
    byte, zeros = fit(PLANE, 12), bytes(2 * UNITS)
    return {
        "param_of_raw": (chunk_frame("raw raw", None, set_record(1, 1, 1)), "§4: param of mode raw is 1"),
        "param_of_rank": (chunk_frame("rank raw", RANKS, set_record(0, 1, 1)), "§4: param of mode rank is 1"),
        "param_of_byte": (chunk_frame("byte raw", byte, set_record(0, 1, 1)), "§4: param of mode byte is 1"),
        "param_of_local": (
            chunk_frame("local:12 raw", None, set_record(0, 1, 1)),
            "§4: param of mode local is 1",
        ),
        "param_of_joint": (
            chunk_frame("joint six", HEADS, set_record(0, 1, 1)),
            "§4: param of mode joint is 1",
        ),
        "param_of_six": (chunk_frame("joint six", HEADS, set_record(1, 1, 1)), "§4: param of mode six is 1"),
        "patches_of_raw": (chunk_frame("raw raw", None, set_record(0, 2, 1)), "§4: patches without a stream"),
        "patches_of_constant": (
            chunk_frame("constant raw", None, set_record(0, 2, 1), zeros),
            "§4: patches without a stream",
        ),
        "words_of_raw": (chunk_frame("raw raw", None, set_record(1, 3, 1)), "§4: words without a stream"),
        "words_of_six": (chunk_frame("joint six", HEADS, set_record(1, 3, 1)), "§4: words without a stream"),
    }


def sections() -> dict[str, tuple[Frame, str]]:
    """Sections, padding, and the chunk as a whole (§4, §4.6)."""

    def resize(frame: Frame, data: bytes) -> Frame:
        return replace(frame, chunks=(data,))

    chunk = RANK.chunks[0]
    raw = planes_frame("BF16", [UNITS + 1], DATA + b"\0\0", "raw raw")
    padded = raw.chunks[0]  # 16 bytes of records, 101 bytes, 3 of padding, 101 bytes, 3 of padding
    half = chunk_frame("raw constant", None, None, bytes(2 * UNITS))
    local = planes_frame("BF16", [20], bytes([1, 0, 2, 0, 3, 0, 3, 0]) * 5, "constant local:12")
    table_end = 16 + 36 + 2 * 3  # three symbols: 2 bytes of padding follow
    five = planes_frame("BF16", [5, 1024], bytes(2 * 5120), "constant constant")
    wrong_third = (*five.checks[:2], five.checks[2] ^ 1, *five.checks[3:])
    two = planes_frame("U8", [1124], bytes(range(250)) * 4 + bytes(124), ["raw", "constant"])
    swapped = len(two.chunks[1]), len(two.chunks[0])
    return {
        "chunk_empty": (resize(RANK, b""), "§6: a chunk without plane records"),
        "chunk_short_records": (resize(RANK, chunk[:12]), "§6: plane records pass their chunk"),
        "chunk_shorter": (resize(RANK, chunk[:-4]), "§6: a section passes its chunk"),
        "chunk_longer": (resize(RANK, chunk + bytes(4)), "§6: sections do not fill the chunk"),
        "chunk_raw_shorter": (resize(half, half.chunks[0][:-4]), "§6: a raw section passes its chunk"),
        "chunk_end_unpadded": (resize(raw, padded[:-1]), "§4: no padding at the end of a chunk"),
        "chunk_padding_between": (
            resize(raw, change(padded, 16 + 103, 1)),
            "§1: padding before a section is not 0",
        ),
        "chunk_padding_at_end": (resize(raw, change(padded, 223, 1)), "§1: padding of a chunk is not 0"),
        "chunk_checksum": (
            replace(RANK, checks=(RANK.checks[0] ^ 1,)),
            "§5: a chunk checksum does not match",
        ),
        "chunk_checksum_third": (
            replace(five, checks=wrong_third),
            "§5: the third chunk's checksum does not match",
        ),
        "index_lengths_swapped": (
            replace(two, lengths=swapped),
            "§6: two lengths of the index are exchanged",
        ),
        "local_table": (resize(local, change(local.chunks[0], 16, 15)), "§4.3: bits of a local table is 15"),
        "local_table_beyond_chunk": (
            resize(local, local.chunks[0][:24]),
            "§6: a local table passes its chunk",
        ),
        "local_table_padding": (
            resize(local, change(local.chunks[0], table_end, 1)),
            "§1: padding after a local table is not 0",
        ),
    }


def codings() -> dict[str, tuple[Frame, str]]:
    """Chunks of codings stored and zstd (§5)."""

    def last(frame: Frame, chunk: bytes) -> Frame:
        return replace(frame, chunks=(frame.chunks[0], chunk))

    def whole(frame: Frame, chunk: bytes, original: bytes | None = None) -> Frame:
        """Like last, with a checksum that matches the bytes the chunk stands for."""
        check = xxhash.xxh3_64_intdigest(chunk if original is None else original) & 0xFFFFFFFF
        return replace(last(frame, chunk), checks=(frame.checks[0], check))

    zeros = bytes(1500 - 1024)
    frame = zstd_frame(zeros)
    announced = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + frame[9:]
    skippable = b"\x50\x2a\x4d\x18" + struct.pack("<I", 2) + b"hi"
    longer = bytes_frame("U8", [8], b"\1" * 8, zstd_frame)
    halves = zstd_frame(zeros[:238]) * 2
    return {
        "stored_chunk_shorter": (
            whole(STORED, STORED.chunks[1][:-4]),
            "§5: a stored chunk misses four bytes, under its checksum",
        ),
        "stored_chunk_longer": (
            whole(STORED, STORED.chunks[1] + bytes(4)),
            "§5: a stored chunk has four bytes too many, under their checksum",
        ),
        "stored_chunk_checksum": (last(STORED, zeros), "§5: the checksum of a stored chunk does not match"),
        "zstd_empty_chunk": (last(ZSTD, b""), "§5: a zstd chunk without a frame"),
        "zstd_garbage": (last(ZSTD, b"garbage!"), "§5: a zstd chunk that is no zstd frame"),
        "zstd_cut": (last(ZSTD, frame[:-1]), "§5: a zstd frame without its end"),
        "zstd_trailing": (last(ZSTD, frame + b"\0"), "§5: bytes after the zstd frame"),
        "zstd_two_frames": (last(ZSTD, halves), "§5: two zstd frames in a chunk"),
        "zstd_skippable_first": (
            last(ZSTD, skippable + frame),
            "§5: a skippable frame before the zstd frame",
        ),
        "zstd_skippable_last": (last(ZSTD, frame + skippable), "§5: a skippable frame after the zstd frame"),
        "zstd_content_shorter": (
            whole(ZSTD, zstd_frame(zeros[1:]), zeros[1:]),
            "§6: a zstd chunk of too few original bytes",
        ),
        "zstd_content_longer": (
            whole(ZSTD, zstd_frame(bytes(477)), bytes(477)),
            "§6: a zstd chunk of too many original bytes",
        ),
        "zstd_content_bomb": (
            last(ZSTD, zstd_frame(bytes(1 << 23))),
            "§6: a zstd chunk of 8 MiB of original bytes",
        ),
        "zstd_content_unannounced": (
            last(ZSTD, zstd_frame(zeros, False)),
            "§5: a zstd frame that does not state its content size",
        ),
        "zstd_longer_than_original": (longer, "§5: a zstd frame longer than its original bytes"),
        "zstd_content_announced": (last(ZSTD, announced), "§6: a zstd chunk that announces 2^40 bytes"),
        "zstd_content_checksum": (last(ZSTD, zstd_frame(b"\1" * 476)), "§5: another content of a zstd chunk"),
        "zstd_raw_checksum": (last(ZSTD, b"\1" * 476), "§5: another content of an uncompressed zstd chunk"),
    }


def bad_chunks() -> Bad:
    """The bad frames of this file by file name."""
    groups = modes(), record_fields(), sections(), codings()
    frames = {name: row for group in groups for name, row in group.items()}
    return {f"{name}.nzf": (frame.encode(), "corrupt", reason) for name, (frame, reason) in frames.items()}
