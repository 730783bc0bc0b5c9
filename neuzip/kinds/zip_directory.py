"""Where the members of a zip file lie, read from its central directory (PKWARE's APPNOTE 6.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from neuzip.errors import CorruptFrame, UnsupportedFormat
from neuzip.kinds.magic import ZIP
from neuzip.kinds.part import Source

STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")  # end of central directory
_LOCATOR = struct.Struct("<4sLQL")  # zip64's, before it
_END64 = struct.Struct("<4sQ2H2L4Q")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<2H")
_U64 = struct.Struct("<Q")
_COMMENT_LIMIT = 0xFFFF
_DIRECTORY_LIMIT = 1 << 28
_MEMBER_LIMIT = 1 << 20  # they take about 400 bytes of memory each
_ZIP64 = 1  # identifier of the extra field
_ENCRYPTED = 1  # flag
_UTF8 = 1 << 11  # flag
_ABSENT = 0xFFFFFFFF  # the value is in the extra field


@dataclass(frozen=True)
class Member:
    """One file of a zip file: its data are `stored_size` bytes from `start` on. size: uncompressed."""

    name: str
    method: int
    start: int
    stored_size: int
    size: int


def read_members(source: Source) -> dict[str, Member]:
    """The members by name, in the order of the directory.

    Raises CorruptFrame, TruncatedInput; UnsupportedFormat for encrypted members and files of several disks.
    """
    position, size, count = _find_directory(source)
    if size > _DIRECTORY_LIMIT or count > _MEMBER_LIMIT:
        raise UnsupportedFormat(f"a zip directory of {size} bytes and {count} members")
    data = source.read(position, size)
    members: dict[str, Member] = {}
    at = 0
    for _ in range(count):
        if at + _MEMBER.size > size:
            raise CorruptFrame("the zip directory has fewer entries than it says", offset=position + at)
        fields = _MEMBER.unpack_from(data, at)
        lengths = fields[10:13]
        end = at + _MEMBER.size + sum(lengths)
        if fields[0] != b"PK\x01\x02" or end > size:
            raise CorruptFrame("not an entry of a zip directory", offset=position + at)
        at += _MEMBER.size
        name = _name(bytes(data[at : at + lengths[0]]), fields[3])
        extra = bytes(data[at + lengths[0] : at + lengths[0] + lengths[1]])
        if name in members:
            raise CorruptFrame(f"the zip directory has {name!a} twice", offset=position + at)
        members[name] = _member(source, name, fields, extra)
        at = end
    return members


def _find_directory(source: Source) -> tuple[int, int, int]:
    """Position, bytes and entries of the central directory."""
    tail_size = min(source.size, _END.size + _COMMENT_LIMIT)
    base = source.size - tail_size
    tail = bytes(source.read(base, tail_size))
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > tail_size:
        raise CorruptFrame("no end of a zip directory")
    _, disk, first_disk, _, count, size, position, _ = _END.unpack_from(tail, at)
    locator = base + at - _LOCATOR.size
    if locator >= 0 and bytes(source.read(locator, 4)) == b"PK\x06\x07":
        _, disk, end64, disks = _LOCATOR.unpack(source.read(locator, _LOCATOR.size))
        record = _END64.unpack(source.read(end64, _END64.size))
        if record[0] != b"PK\x06\x06" or disks > 1:
            raise CorruptFrame("no zip64 end of a zip directory", offset=end64)
        first_disk, count, size, position = record[5], record[7], record[8], record[9]
    if disk or first_disk:
        raise UnsupportedFormat("a zip file on several disks")
    return position, size, count


def _name(data: bytes, flags: int) -> str:
    try:
        return data.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise CorruptFrame("a name in the zip directory is not UTF-8") from error


def _member(source: Source, name: str, fields: tuple[int, ...], extra: bytes) -> Member:
    flags, method, stored_size, size, local = fields[3], fields[4], fields[8], fields[9], fields[16]
    if flags & _ENCRYPTED:
        raise UnsupportedFormat(f"the zip member {name!a} is encrypted")
    long = _zip64(extra)
    values = []
    for value in (size, stored_size, local):  # the extra field's order
        if value == _ABSENT:
            if not long:
                raise CorruptFrame(f"the zip member {name!a} has no sizes")
            value = long.pop(0)
        values.append(value)
    size, stored_size, local = values
    header = _LOCAL.unpack(source.read(local, _LOCAL.size))
    start = local + _LOCAL.size + header[9] + header[10]
    if header[0] != ZIP or start + stored_size > source.size or (method == STORED and size != stored_size):
        raise CorruptFrame(f"the zip member {name!a} is not where the directory says", offset=local)
    return Member(name, method, start, stored_size, size)


def _zip64(extra: bytes) -> list[int]:
    """The numbers of the zip64 extra field, if there is one."""
    at = 0
    while at + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if kind == _ZIP64:
            whole = extra[at : at + length // 8 * 8]
            return [number for (number,) in _U64.iter_unpack(whole[: len(whole) // 8 * 8])]
        at += length
    return []
