"""``csrc/neuzip.h`` as ctypes sees it: constants, structs, signatures. A test compares them with the header."""

from __future__ import annotations

import ctypes
import struct
from enum import IntEnum
from typing import Any

ABI_VERSION = 6
TABLE_CAPACITY = 160 * 1024
MAX_SEGMENTS = 256
SEGMENT_COUNTS = 1280
SMALL = 256
MEMORY = -4  # NZ_MEMORY
TEAM = 1 << 16


class EncodeJob(ctypes.Structure):
    """``nz_encode_job``."""

    _fields_ = [
        ("src", ctypes.c_void_p),
        ("units", ctypes.c_uint64),
        ("first_chunk", ctypes.c_uint64),
        ("table", ctypes.c_char_p),
        ("table_bytes", ctypes.c_uint32),
        ("layout", ctypes.c_int32),
        ("chunk_log2", ctypes.c_int32),
        ("status", ctypes.c_int32),
        ("dst", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("written", ctypes.c_uint64),
        ("index", ctypes.c_void_p),
    ]


class DecodeJob(ctypes.Structure):
    """``nz_decode_job``."""

    _fields_ = [
        ("src", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("index", ctypes.c_void_p),
        ("units", ctypes.c_uint64),
        ("first_chunk", ctypes.c_uint64),
        ("table", ctypes.c_char_p),
        ("table_bytes", ctypes.c_uint32),
        ("layout", ctypes.c_int32),
        ("chunk_log2", ctypes.c_int32),
        ("verify", ctypes.c_int32),
        ("status", ctypes.c_int32),
        ("bad_chunk", ctypes.c_uint64),
        ("dst", ctypes.c_void_p),
    ]


class Frame(ctypes.Structure):
    """``nz_frame``."""

    _fields_ = [
        ("size", ctypes.c_uint64),
        ("frame_size", ctypes.c_uint64),
        ("header_size", ctypes.c_uint64),
        ("chunks", ctypes.c_uint64),
        ("bad_chunk", ctypes.c_uint64),
        ("table_bytes", ctypes.c_uint32),
        ("required", ctypes.c_uint32),
        ("version", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("coding", ctypes.c_int32),
        ("chunk_log2", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("fault", ctypes.c_int32),
        ("shape", ctypes.c_uint64 * 32),
    ]


class HeaderFault(IntEnum):
    """``nz_header_fault``."""

    GOOD = 0
    SHORT = 1
    MAGIC = 2
    VERSION = 3
    REQUIRED = 4
    DTYPE = 5
    CODING = 6
    RANGE = 7
    RATIO = 8
    SIZE = 9
    CUT = 10
    CHECKSUM = 11
    SHAPE = 12
    PLANES = 13
    TABLE = 14
    LENGTHS = 15
    LENGTH = 16
    FRAME_CUT = 17
    FRAME_LONG = 18
    FRAME_PADDING = 19


class DecodeFrameJob(ctypes.Structure):
    """``nz_decode_frame_job``."""

    _fields_ = [
        ("src", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("dst", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("shape", ctypes.c_void_p),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("verify", ctypes.c_int32),
        ("status", ctypes.c_int32),
    ]


class EncodeFrameJob(ctypes.Structure):
    """``nz_encode_frame_job``."""

    _fields_ = [
        ("src", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("shape", ctypes.c_void_p),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("chunk_log2", ctypes.c_int32),
        ("dst", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("written", ctypes.c_uint64),
        ("status", ctypes.c_int32),
    ]


class FixedLinearJob(ctypes.Structure):
    """``nz_fixed_linear_job``."""

    _fields_ = [
        ("code", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("out_features", ctypes.c_uint64),
        ("in_features", ctypes.c_uint64),
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_uint64),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
    ]


def packed(structure: Any) -> struct.Struct:
    """What packs the fields of one, in half the time that setting them takes."""
    return struct.Struct(
        "@" + "".join(kind._type_ for _, kind in structure._fields_) + "0P"
    )  # 0P: the padding


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "nz_abi_version": (ctypes.c_int32, []),
    "nz_isa_name": (ctypes.c_char_p, [ctypes.c_int32]),
    "nz_isa_available": (ctypes.c_int32, [ctypes.c_int32]),
    "nz_isa_select": (ctypes.c_int32, [ctypes.c_int32]),
    "nz_isa_current": (ctypes.c_int32, []),
    "nz_set_team": (None, [ctypes.c_void_p]),
    "nz_checksum64": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_size_t]),
    "nz_checksums32": (
        None,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p],
    ),
    "nz_plan": (
        ctypes.c_int32,
        [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p],
    ),
    "nz_plan_segments": (
        ctypes.c_int32,
        [ctypes.c_int32, ctypes.c_int32, ctypes.c_uint64, ctypes.c_void_p],
    ),
    "nz_plan_counts": (
        ctypes.c_int32,
        [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p],
    ),
    "nz_table_entries": (
        ctypes.c_int32,
        [ctypes.c_int32, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_void_p],
    ),
    "nz_chunk_bound": (ctypes.c_uint64, [ctypes.c_int32, ctypes.c_int32]),
    "nz_encode": (ctypes.c_int32, [ctypes.POINTER(EncodeJob), ctypes.c_size_t, ctypes.c_int32]),
    "nz_decode": (ctypes.c_int32, [ctypes.POINTER(DecodeJob), ctypes.c_size_t, ctypes.c_int32]),
    "nz_read_header": (
        ctypes.c_int32,
        [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32, ctypes.POINTER(Frame)],
    ),
    "nz_write_header": (
        ctypes.c_int32,
        [ctypes.POINTER(Frame), ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p],
    ),
    "nz_decode_frames": (
        ctypes.c_int32,
        [ctypes.POINTER(DecodeFrameJob), ctypes.c_size_t, ctypes.c_int32],
    ),
    "nz_encode_frames": (
        ctypes.c_int32,
        [ctypes.POINTER(EncodeFrameJob), ctypes.c_size_t, ctypes.c_int32],
    ),
    "nz_frame_bound": (
        ctypes.c_uint64,
        [ctypes.c_int32, ctypes.c_int32, ctypes.c_uint64, ctypes.c_int32],
    ),
    "nz_fixed_bound": (ctypes.c_uint64, [ctypes.c_uint64]),
    "nz_fixed_encode": (
        ctypes.c_uint64,
        [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64],
    ),
    "nz_fixed_decode": (
        ctypes.c_int32,
        [
            ctypes.c_void_p,
            ctypes.c_uint64,
            ctypes.c_uint64,
            ctypes.c_uint64,
            ctypes.c_void_p,
            ctypes.c_int32,
        ],
    ),
    "nz_fixed_linear": (ctypes.c_int32, [ctypes.POINTER(FixedLinearJob), ctypes.c_int32]),
}
"""Result and argument types of every function of ``neuzip.h``; a test compares them."""
