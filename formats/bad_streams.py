"""The bad vectors whose streams are bad: each breaks one rule of spec.md §4 under checksums that match.

`mint.py` writes them.
"""

import random
import struct
from dataclasses import replace

from bad_chunks import PLANE, PLANE_1, set_record
from bad_headers import DATA, HEADS, UNITS, Bad, change, chunk_frame
from encoder import (
    Frame,
    Records,
    Sections,
    Table,
    Twist,
    encode_stream,
    fit,
    pack_six,
    planes_frame,
    split,
    types,
)
from good_vectors import RANKS, TWO_RANKS, draw

# Units 0, 50 and 99 have the exponent 2 or 3, which no table here codes: patches.
PATCHED = change(change(change(DATA, 1, 1), 101, 1), 199, 1)


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


def stream(twist: Twist, data: bytes = DATA) -> Frame:
    """A frame of one chunk with a stream in plane 0."""
    return chunk_frame("rank raw", RANKS, twist, data)


def streams() -> dict[str, tuple[Frame, str]]:
    """States and words of streams (§4.1)."""
    tiny = DATA[: 2 * 20]  # lanes 20 … 31 have no symbols
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
        "stream_state_third_chunk": (
            replace(five, chunks=tuple(third)),
            "§4.1: a bad state in the third of five chunks",
        ),
    }


def stream_ends() -> dict[str, tuple[Frame, str]]:
    """Final states, and the payload (§4.1, §4.5)."""
    tiny = DATA[: 2 * 20]  # lanes 20 … 31 have no symbols
    idle = [0] * 31 + [1]
    payload = list(struct.unpack("<32H", PLANE_1[-64:]))
    return {
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


def bad_streams() -> Bad:
    """The bad frames of this file by file name."""
    frames = streams() | stream_ends() | patches() | six()
    return {f"{name}.nzf": (frame.encode(), "corrupt", reason) for name, (frame, reason) in frames.items()}
