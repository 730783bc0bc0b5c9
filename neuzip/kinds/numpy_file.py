"""NumPy's files: .npy, a header and an array, and .npz, a zip file of them.

After numpy/lib/format.py. The header is text in the syntax of Python; it is matched, not evaluated.
"""

from __future__ import annotations

import math
import re
import struct

from neuzip.errors import CorruptFrame, UnsupportedFormat
from neuzip.kinds.magic import NUMPY
from neuzip.kinds.part import Part, Source, plain_part
from neuzip.kinds.zip_directory import STORED, read_members
from neuzip.layouts import DTYPES

_SUFFIX = ".npy"
_LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}  # by major version
_HEADER_LIMIT = 1 << 16
_HEADER = re.compile(
    rb"\{'descr': '([<|])([a-zA-Z]\d{1,2})', 'fortran_order': (?:True|False), "
    rb"'shape': \(((?:\d{1,19}L?, ?){0,64}(?:\d{1,19}L?)?)\),? ?\}\s*"
)
# Of ml_dtypes' types numpy writes the size alone: 2 bytes are a bfloat16, 1 byte may be any 8-bit float.
_DTYPES = {"b1": "BOOL", "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "c16": "C128", "V1": "U8"}
_DTYPES |= {"V2": "BF16"} | {f"{kind}{n}": f"{kind.upper()}{8 * n}" for kind in "iu" for n in (1, 2, 4, 8)}


def read_npy(source: Source) -> list[Part]:
    """The array of a .npy file. Its name is empty. Raises CorruptFrame, TruncatedInput, UnsupportedFormat."""
    return [_array(source, "", 0, source.size)]


def read_npz(source: Source) -> list[Part] | None:
    """The arrays of a .npz file that are stored; those that are deflated are not looked for. None if it has no
    arrays.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat.
    """
    members = {name: m for name, m in read_members(source).items() if name.endswith(_SUFFIX)}
    found = []
    for name, member in members.items():
        if member.method == STORED:
            try:
                found.append(_array(source, name.removesuffix(_SUFFIX), member.start, member.size))
            except (CorruptFrame, UnsupportedFormat):
                continue  # an array of objects, or of another byte order, beside others
    return found if members else None


def _array(source: Source, name: str, start: int, size: int) -> Part:
    """The array in bytes start … start + size − 1 of a file."""
    head = bytes(source.read(start, min(size, len(NUMPY) + 6)))
    form = _LENGTHS.get(head[len(NUMPY)]) if len(head) > len(NUMPY) else None
    at = len(NUMPY) + 2
    if not head.startswith(NUMPY) or form is None or len(head) < at + form.size:
        raise CorruptFrame("not an array of NumPy", tensor=name, offset=start)
    (length,) = form.unpack_from(head, at)
    at += form.size
    if length > min(_HEADER_LIMIT, size - at):
        raise UnsupportedFormat(f"a header of {length} bytes", tensor=name, offset=start)
    header = _HEADER.fullmatch(bytes(source.read(start + at, length)))
    dtype = DTYPES.get(_DTYPES.get(header[2].decode(), "")) if header else None
    if header is None or dtype is None:
        raise UnsupportedFormat("an array of objects, of records, or of another byte order", tensor=name)
    shape = tuple(map(int, re.findall(rb"\d+", header[3])))
    used = math.prod(shape) * dtype.bits // 8
    if used != size - at - length:
        raise CorruptFrame(
            f"an array of {used} bytes has {size - at - length}", tensor=name, offset=start + at
        )
    return plain_part(name, dtype, shape, start + at + length, used)
