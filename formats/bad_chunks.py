"""The bad vectors whose chunks are bad: each breaks one rule of spec.md under checksums that match.

`mint.py` writes them.
"""

import random
import struct
from dataclasses import replace

from bad_headers import DATA, HEADS, RANK, STORED, UNITS, ZSTD, Bad, change, chunk_frame
from encoder import (
    Frame,
    Records,
    Sections,
    Table,
    Twist,
    bytes_frame,
    encode_stream,
    fit,
    pack_six,
    planes_frame,
    split,
    table_blob,
    types,
    zstd_frame,
)
from good_vectors import RANKS, TWO_RANKS, draw

PLANE, PLANE_1 = split(DATA, types()["BF16"])
# Units 0, 50 and 99 have the exponent 2 or 3, which no table here codes: patches.
PATCHED = change(change(change(DATA, 1, 1), 101, 1), 199, 1)


def set_record(plane: int, field: int, value: int) -> Twist:
    """Replaces mode (0), param (1), patches (2) or words (3) of a plane's record."""

    def twist(records: Records, sections: Sections) -> None:
        records[plane][field] = value

    return twist


def set_section(plane: int, offset: int, *values: int) -> Twist:
    """Replaces bytes of a section; a negative offset counts from its end."""

    def twist(records: Records, sections: Sections) -> None:
        sections[plane] = change(sections[plane], offset % len(sections[plane]), *values)

    return twist


def flip_section(plane: int, offset: int, mask: int) -> Twist:
    """Flips bits of one byte of a section."""

    def twist(records: Records, sections: Sections) -> None:
        byte = sections[plane][offset]
        sections[plane] = change(sections[plane], offset % len(sections[plane]), byte ^ mask)

    return twist


def append_patch(patch: bytes) -> Twist:
    """One patch more in plane 0."""

    def twist(records: Records, sections: Sections) -> None:
        records[0][2] += 1
        sections[0] += patch

    return twist


def restream(
    symbols: bytes | list[int], table: Table, begin: list[int], plane_1: bytes | None = None
) -> Twist:
    """Encodes plane 0 again with lanes that begin at 2^16 | begin, beside this stored section of plane 1."""

    def twist(records: Records, sections: Sections) -> None:
        sections[0], records[0][3] = encode_stream(list(symbols), table, begin)
        if plane_1 is not None:
            sections[1] = plane_1

    return twist


def set_words(difference: int) -> Twist:
    """Appends a word to the stream of plane 0, which has no patches, or takes its last one away."""

    def twist(records: Records, sections: Sections) -> None:
        records[0][3] += difference
        sections[0] = sections[0] + bytes(2) if difference > 0 else sections[0][:-2]

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


def streams() -> dict[str, tuple[Frame, str]]:
    """Streams and payloads (§4.1, §4.5)."""

    def stream(twist: Twist, data: bytes = DATA) -> Frame:
        return chunk_frame("rank raw", RANKS, twist, data)

    tiny = DATA[: 2 * 20]  # lanes 20 … 31 have no symbols
    idle = [0] * 31 + [1]
    payload = list(struct.unpack("<32H", PLANE_1[-64:]))
    five = planes_frame("U8", [5120], draw(random.Random(9), TWO_RANKS, 5120), "rank", TWO_RANKS)
    third = [*five.chunks[:2], change(five.chunks[2], 8, 0xFF, 0xFF, 0, 0), *five.chunks[3:]]
    return {
        "stream_words_more": (stream(set_words(1)), "§4.1: the stream has a word too many"),
        "stream_words_fewer": (stream(set_words(-1)), "§4.1: the stream has a word too few"),
        "stream_words_2_31": (stream(set_record(0, 3, 1 << 31)), "§6: the stream passes its chunk"),
        "stream_words_2_32": (stream(set_record(0, 3, 0xFFFFFFFF)), "§6: the stream passes its chunk"),
        "stream_state": (stream(set_section(0, 0, 0xFF, 0xFF, 0, 0)), "§4.1: an initial state is below 2^16"),
        "stream_state_early_word": (
            stream(early_word),
            "§4.1: an initial state is below 2^16, in a stream that is right otherwise",
        ),
        "stream_state_idle_lane": (
            stream(set_section(0, 4 * 31, 0xFF, 0xFF, 0, 0), tiny),
            "§4.1: the initial state of a lane without symbols is below 2^16",
        ),
        "stream_state_local": (
            chunk_frame("raw local:12", None, first_state_of_local),
            "§4.1: an initial state of a local stream is below 2^16",
        ),
        "stream_end_without_payload": (
            chunk_frame("rank local:12", RANKS, restream(PLANE, RANKS, idle)),
            "§4.1: lane 31 does not end at 2^16, beside a local plane 1",
        ),
        "stream_end_of_63_units": (
            stream(restream(PLANE[:63], RANKS, idle), DATA[: 2 * 63]),
            "§4.1: lane 31 does not end at 2^16, with less than 64 bytes in plane 1",
        ),
        "stream_end_of_one_plane": (
            planes_frame("U8", [UNITS], PLANE, "rank", RANKS, 10, restream(PLANE, RANKS, idle)),
            "§4.1: lane 31 does not end at 2^16, without a plane 1",
        ),
        "stream_end_of_local": (
            chunk_frame("constant local:12", None, end_of_local, bytes([1, 0, 2, 0]) * 50),
            "§4.1: lane 31 of a local stream does not end at 2^16",
        ),
        "stream_end_of_payload": (
            stream(restream(PLANE, RANKS, [*payload[:31], payload[31] | 1 << 17], PLANE_1[:-64])),
            "§4.1: lane 31 does not end at 2^16 | payload",
        ),
        "stream_end_of_idle_lane": (
            stream(restream(PLANE[:20], RANKS, idle), tiny),
            "§4.1: a lane without symbols is not at 2^16",
        ),
        "stream_payload_missing": (
            stream(restream(PLANE, RANKS, [0] * 32, PLANE_1)),
            "§4.5: the stream carries no payload, plane 1 is stored whole",
        ),
        "stream_state_third_chunk": (
            replace(five, chunks=tuple(third)),
            "§4.1: a bad state in the third of five chunks",
        ),
    }


def early_word(records: Records, sections: Sections) -> None:
    """Takes a word out of lane 0 before its first symbol, though its state had room for the symbol."""
    frequency, start = RANKS.frequency[PLANE[0]], RANKS.start[PLANE[0]]
    x = int.from_bytes(sections[0][:4], "little")
    x = frequency * (x >> 16) + x % (1 << 16) - start
    assert (x >> 16) < frequency and x >= 1 << 16
    states = struct.pack("<I", start + (x >> 16)) + sections[0][4:128]
    sections[0] = states + struct.pack("<H", x & 0xFFFF) + sections[0][128:]
    records[0][3] += 1


def end_of_local(records: Records, sections: Sections) -> None:
    """Encodes plane 1, of bytes 2 and 4, again with a lane that does not begin at 2^16."""
    table = fit([2, 4], 12)
    stream, records[1][3] = encode_stream([2, 4] * 50, table, [0] * 31 + [1])
    sections[1] = table.body + stream


def first_state_of_local(records: Records, sections: Sections) -> None:
    """Sets the first state of plane 1's stream to 65535."""
    table_bytes = 36 + 2 * int.from_bytes(sections[1][2:4], "little")
    sections[1] = change(sections[1], table_bytes + -table_bytes % 4, 0xFF, 0xFF, 0, 0)


def patches() -> dict[str, tuple[Frame, str]]:
    """Patches (§4.4). The patch of unit 99 is the last of three."""

    def patched(twist: Twist, modes: str = "rank raw") -> Frame:
        return chunk_frame(modes, HEADS if "joint" in modes else RANKS, twist, PATCHED)

    values = split(PATCHED, types()["BF16"])[0]
    swapped = 99, 0, values[99], 50, 0, values[50]
    return {
        "patches_beyond_chunk": (patched(set_record(0, 2, 0xFFFF)), "§6: the patches pass their chunk"),
        "patch_position": (patched(append_patch(bytes([UNITS, 0, 7]))), "§4.4: a patch behind the last unit"),
        "patch_position_65535": (patched(append_patch(b"\xff\xff\7")), "§4.4: a patch behind the last unit"),
        "patch_twice": (patched(append_patch(bytes([99, 0, values[99]]))), "§4.4: two patches of a unit"),
        "patch_order": (patched(set_section(0, -6, *swapped)), "§4.4: positions do not ascend"),
        "patch_head_1024": (
            patched(flip_section(0, -1, 4), "joint six"),
            "§4.4: a patched head is over 1023",
        ),
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


def six() -> dict[str, tuple[Frame, str]]:
    """Bits of missing units in mode six (§4.6)."""

    def joint(twist: Twist, data: bytes = DATA) -> Frame:
        return chunk_frame("joint six", HEADS, twist, data)

    symbols = [(head << 2 | low >> 6) - 4 * HEADS.base for head, low in zip(PLANE, PLANE_1, strict=True)]
    packed = pack_six(PLANE_1)
    packed = change(packed, 95, packed[95] | 0xC0)  # q127
    payload = list(struct.unpack("<32H", packed[-64:]))
    return {
        "six_missing_127": (joint(flip_section(1, 31, 0x40)), "§4.6: a bit of missing unit 127 is not 0"),
        "six_missing_100": (joint(flip_section(1, 4, 0x40)), "§4.6: a bit of missing unit 100 is not 0"),
        "six_missing_20": (
            joint(flip_section(1, 20, 1), DATA[:40]),
            "§4.6: a bit of missing unit 20 is not 0",
        ),
        "six_missing_payload": (
            joint(restream(symbols, HEADS, payload, packed[:-64])),
            "§4.6: a bit of missing unit 127 is not 0, in the payload",
        ),
    }


def codings() -> dict[str, tuple[Frame, str]]:
    """Chunks of codings stored and zstd (§5)."""

    def last(frame: Frame, chunk: bytes) -> Frame:
        return replace(frame, chunks=(frame.chunks[0], chunk))

    zeros = bytes(1500 - 1024)
    frame = zstd_frame(zeros)
    announced = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + frame[9:]
    skippable = b"\x50\x2a\x4d\x18" + struct.pack("<I", 2) + b"hi"
    longer = bytes_frame("U8", [8], b"\1" * 8, zstd_frame)
    halves = zstd_frame(zeros[:238]) * 2
    return {
        "stored_chunk_shorter": (last(STORED, STORED.chunks[1][:-4]), "§5: a stored chunk misses four bytes"),
        "stored_chunk_longer": (
            last(STORED, STORED.chunks[1] + bytes(4)),
            "§5: a stored chunk has too many bytes",
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
            last(ZSTD, zstd_frame(zeros[1:])),
            "§6: a zstd chunk of too few original bytes",
        ),
        "zstd_content_longer": (
            last(ZSTD, zstd_frame(bytes(477))),
            "§6: a zstd chunk of too many original bytes",
        ),
        "zstd_content_bomb": (
            last(ZSTD, zstd_frame(bytes(1 << 24), False)),
            "§6: a zstd chunk of 16 MiB of original bytes, unannounced",
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
    groups = modes(), record_fields(), streams(), patches(), sections(), six(), codings()
    frames = {name: row for group in groups for name, row in group.items()}
    return {f"{name}.nzf": (frame.encode(), "corrupt", reason) for name, (frame, reason) in frames.items()}
