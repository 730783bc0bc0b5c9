"""The good and the bad archives: the features of spec.md §10, and one broken rule each. `mint.py` writes them."""

import hashlib
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash
from bad_headers import Bad, change
from encoder import bytes_frame, planes_frame, zstd_frame
from good_vectors import RANKS, Vectors, draw, tensor


@dataclass(frozen=True)
class Segment:
    """A segment of an archive; the fields of an entry of the index follow from it unless they are given."""

    original: bytes
    frames: tuple[bytes, ...]
    name: str | bytes = b""
    size: int | None = None
    count: int | None = None
    padding: int = 0

    def entry(self) -> bytes:
        name = self.name.encode() if isinstance(self.name, str) else self.name
        size = len(self.original) if self.size is None else self.size
        count = len(self.frames) if self.count is None else self.count
        fields = struct.pack("<IBBH", size, count, self.padding, len(name))
        return fields + struct.pack(f"<{len(self.frames)}I", *map(len, self.frames)) + name


def archive(parts: Sequence[Segment], index: bytes | None = None, **changes: int | bytes) -> bytes:
    """The archive of the segments `parts`. index: its packed index; changes: fields of its header, by name."""
    original = b"".join(segment.original for segment in parts)
    frames = b"".join(frame for segment in parts for frame in segment.frames)
    packed = zstd_frame(b"".join(segment.entry() for segment in parts)) if index is None else index
    fields: dict[str, int | bytes] = {
        "magic": b"NZAR",
        "version": 1,
        "kind": 0,
        "required": 0,
        "segments": len(parts),
        "index_bytes": len(packed),
        "size": len(original),
        "archive_size": 72 + len(frames) + len(packed),
        "header_checksum": 0,
        "sha256": hashlib.sha256(original).digest(),
    } | changes
    form = struct.Struct("<4sBBHIIQQQ32s")
    if "header_checksum" not in changes:
        fields["header_checksum"] = xxhash.xxh3_64_intdigest(form.pack(*fields.values()) + packed)
    return form.pack(*fields.values()) + frames + packed


def opaque(data: bytes, name: str = "") -> Segment:
    """Bytes of no tensor."""
    return Segment(data, (bytes_frame("BOOL", [len(data)], data).encode(),), name)


def weight(rng: random.Random, count: int) -> Segment:
    """A tensor of one frame."""
    data = tensor("BF16", rng, draw(rng, RANKS, count))
    return Segment(data, (planes_frame("BF16", [count], data, "rank raw", RANKS).encode(),), "layer.wéight")


def blocks(rng: random.Random, count: int) -> Segment:
    """Quantised blocks: a half precision scale and 32 codes each."""
    scales, codes = tensor("F16", rng, draw(rng, RANKS, count)), draw(rng, RANKS, 32 * count)
    rows = zip(
        (scales[i : i + 2] for i in range(0, len(scales), 2)),
        (codes[i : i + 32] for i in range(0, len(codes), 32)),
        strict=True,
    )
    frames = (
        planes_frame("F16", [count, 1], scales, "rank raw", RANKS).encode(),
        planes_frame("I8", [count, 32], codes, "rank", RANKS).encode(),
    )
    return Segment(b"".join(scale + code for scale, code in rows), frames, "blocks")


def checkpoint() -> list[Segment]:
    """A small file with segments of every kind."""
    rng = random.Random(11)
    return [opaque(b"header" * 20), weight(rng, 700), opaque(bytes(30)), blocks(rng, 40), opaque(b"end")]


def good_archives() -> Vectors:
    """By file name."""
    segments = checkpoint()
    three = bytes(range(24))
    columns = [("U8", three[0::3]), ("U8", three[1::3]), ("BOOL", three[2::3])]
    frames = tuple(bytes_frame(name, [8], data).encode() for name, data in columns)
    packed = bytes_frame("U8", [3000], bytes(3000), zstd_frame).encode()
    files = {
        "archive": (segments, {"kind": 1}),
        "archive_empty": ([], {}),
        "archive_three_frames": ([Segment(three, frames)], {}),
        "archive_zstd": ([Segment(bytes(3000), (packed,), "zeros"), opaque(b"\0")], {"kind": 255}),
        "archive_one_row": (
            [Segment(three[:2], tuple(bytes_frame("U8", [1, 1], bytes([i])).encode() for i in (0, 1)))],
            {},
        ),
    }
    return {
        f"{name}.nz": (archive(parts, **fields), b"".join(part.original for part in parts))
        for name, (parts, fields) in files.items()
    }


def headers() -> Bad:
    """Headers."""
    segments = checkpoint()
    whole = archive(segments)
    size = len(whole)
    return {
        "empty": (b"", "truncated", "§10: no bytes"),
        "magic": (b"NZAP" + whole[4:], "unsupported", "§10: another magic"),
        "magic_cut": (b"NZB", "unsupported", "§10: another magic, cut short"),
        "cut_header": (whole[:71], "truncated", "§10: the bytes end in the header"),
        "cut_frames": (whole[:500], "truncated", "§10: the bytes end in the frames"),
        "cut_index": (whole[:-1], "truncated", "§10: the bytes end in the index"),
        "bytes_after": (whole + b"\0", "corrupt", "§10: bytes after the index"),
        "version_2": (archive(segments, version=2), "unsupported", "§9: a later version"),
        "required": (archive(segments, required=1), "unsupported", "§10: a required bit"),
        "checksum": (archive(segments, header_checksum=1), "corrupt", "§10: another checksum"),
        "index_flipped": (change(whole, size - 1, whole[-1] ^ 1), "corrupt", "§10: the index does not match"),
        "size": (archive(segments, size=5), "corrupt", "§10: segments of another size than the file"),
        "size_huge": (
            archive(segments, size=1 << 60),
            "corrupt",
            "§10: more bytes than the archive can hold",
        ),
        "sha256": (archive(segments, sha256=bytes(32)), "corrupt", "§10: another sha256"),
        "index_too_long": (archive(segments, index_bytes=size), "corrupt", "§10: the index does not fit"),
        "segments_fewer": (archive(segments, segments=4), "corrupt", "§10: entries are left over"),
        "segments_more": (archive(segments, segments=6), "corrupt", "§10: an entry is missing"),
    }


def indexes() -> Bad:
    """Indexes and segments."""
    rng = random.Random(12)
    part, last, row = weight(rng, 700), opaque(b"end"), blocks(rng, 40)
    scales, codes = row.frames
    two_thirds = bytes_frame("U8", [2, 16], bytes(32)).encode()
    half = bytes_frame("U8", [64], bytes(64)).encode()
    scalar = bytes_frame("U8", [], b"\0").encode()
    broken = change(part.frames[0], 300, part.frames[0][300] ^ 1)
    longer = (part.frames[0], b"NZFR" + bytes(4))
    twelve = b"".join(segment.entry() for segment in (part, last))

    def of(first: Segment, reason: str) -> tuple[bytes, str, str]:
        return archive([first, last]), "corrupt", reason

    def entry(reason: str, **fields: int | bytes) -> tuple[bytes, str, str]:
        return of(Segment(part.original, part.frames, **fields), reason)  # type: ignore[arg-type]

    return {
        "index_no_zstd": (archive([part], b"index"), "corrupt", "§10: the index is no zstd frame"),
        "index_no_size": (
            archive([part, last], zstd_frame(twelve, announce=False)),
            "corrupt",
            "§10: the index does not state its size",
        ),
        "index_two_frames": (
            archive([part, last], zstd_frame(part.entry()) + zstd_frame(last.entry())),
            "corrupt",
            "§10: the index is two zstd frames",
        ),
        "entry_cut": (
            archive([part, last], zstd_frame(twelve[:-1])),
            "corrupt",
            "§10: the index ends in an entry",
        ),
        "entry_size_0": entry("§10: a segment without bytes", size=0),
        "entry_size_large": entry("§10: a segment of more than 2^24 bytes", size=(1 << 24) + 1),
        "entry_size": entry("§10: a segment of another size than its frame", size=len(part.original) + 2),
        "entry_no_frames": entry("§10: no frames", count=0),
        "entry_nine_frames": entry("§10: nine frames", count=9),
        "entry_padding": entry("§10: padding that is not zero", padding=1),
        "entry_name": entry("§10: a name that is not UTF-8", name=b"\xff"),
        "frame_corrupt": of(Segment(part.original, (broken,)), "§10: a corrupt frame"),
        "frame_cut": of(Segment(part.original, (part.frames[0][:-8],)), "§10: a frame longer than its place"),
        "frame_followed": of(
            Segment(part.original, (part.frames[0] + bytes(8),)), "§10: a frame shorter than its place"
        ),
        "frame_none": of(Segment(part.original, longer), "§10: a second frame of 8 bytes"),
        "rows_differ": of(
            Segment(row.original, (scales, two_thirds)), "§10: frames with other numbers of rows"
        ),
        "rows_scalar": of(Segment(bytes(2), (scalar, scalar)), "§10: records of frames without rows"),
        "rows_too_few": of(
            Segment(row.original, (scales, codes, half)), "§10: frames of more bytes than the segment"
        ),
    }


def bad_archives() -> Bad:
    """By file name."""
    return {f"archive_{name}.nz": row for name, row in (headers() | indexes()).items()}
