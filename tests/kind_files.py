"""What the tests of file kinds share: a file in memory, its archive, and the tensors found in it."""

from __future__ import annotations

import hashlib
import io

from neuzip.archive import Archive
from neuzip.archive_writer import write_archive
from neuzip.codec import Options
from neuzip.kinds import find_parts
from neuzip.kinds.part import ViewSource

OPTIONS = Options(threads=2)


def found(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor in a file, by name."""
    structure = find_parts(ViewSource(memoryview(data)))
    return {part.name: (part.type, part.shape) for part in structure.parts}


def packed(data: bytes) -> bytes:
    """The archive of a file, as compress_file writes it."""
    structure = find_parts(ViewSource(memoryview(data)))
    out = io.BytesIO()
    sha256 = write_archive(memoryview(data), structure.kind, structure.parts, out, OPTIONS)
    assert sha256 == hashlib.sha256(data).hexdigest()
    return out.getvalue()


def restored(archive: bytes) -> bytes:
    """The file of an archive."""
    return b"".join(bytes(piece) for piece in Archive.parse(memoryview(archive)).pieces(OPTIONS))
