"""One file of a checkpoint: compressed, restored, verified, copied and compared."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from neuzip.codec import Options
from neuzip.container import BATCH_BYTES, Container
from neuzip.container_writer import write_container
from neuzip.digest import Digest
from neuzip.errors import CorruptFrame, DamagedFile, InvalidArgument, NeuzipError
from neuzip.files import FileBytes, View, created_file, same_bytes
from neuzip.manifest import ARCHIVE, CONFIG, CONTAINER, COPY, Record, is_archive
from neuzip.model_config import LIMIT, insert_method, remove_method

# What a command does not need is not imported for it: starting is most of the time that a small checkpoint takes.
if TYPE_CHECKING:
    from neuzip.archive import Archive

SUFFIX = ".safetensors"
# What is not UTF-8 in its first bytes, or has a NUL, is no configuration and no vocabulary, but these are. A GGUF file
# with a long vocabulary is UTF-8 for as long; so are numbers of external data that begin with zeros.
_TEXT_BYTES = 1 << 16
_TOKENIZERS = (".model", ".spm")

Advance = Callable[[int], None]


class Packed(Protocol):
    """A compressed file: a Container or an Archive."""

    @property
    def path(self) -> Path | None:
        """The file, for errors."""

    @property
    def file(self) -> FileBytes | None:
        """The file."""

    @property
    def sha256(self) -> str | None:
        """Of the original; None if the file is a plain one."""

    @property
    def original_size(self) -> int:
        """Bytes of the original."""

    def pieces(self, options: Options) -> Iterator[memoryview]:
        """The original's bytes in order. A piece lasts until the iterator has been advanced twice."""

    def close(self) -> None:
        """Closes the file."""


def open_packed(path: Path, coding: str, options: Options, *, damaged: bool = False) -> Container | Archive:
    """Opens a file of coding CONTAINER or ARCHIVE, to be closed as a context manager.

    damaged: see Container.open.
    """
    if coding == ARCHIVE:
        from neuzip.archive import Archive

        return Archive.open(path, backend=options.backend)
    return Container.open(path, damaged=damaged, backend=options.backend)


def forgetting(file: FileBytes | None, advance: Advance) -> Advance:
    """advance, which also lets go of what has been read of a file: memory stays bounded whatever its size."""

    def advance_and_forget(count: int) -> None:
        if file is not None:
            file.forget()
        advance(count)

    return advance_and_forget


def forgetting_behind(file: FileBytes, advance: Advance) -> Advance:
    """As forgetting, of a file that is read once from its start to its end: the last that was read may still be being
    hashed, and what lies before it goes.
    """
    forgotten = read = 0

    def advance_and_forget(count: int) -> None:
        nonlocal forgotten, read
        file.forget(forgotten, read)
        forgotten, read = read, read + count
        advance(count)

    return advance_and_forget


def guess_coding(path: Path) -> str:
    """ARCHIVE if a file begins as one, else CONTAINER if its name is that of a safetensors file, else COPY."""
    with FileBytes(path) as file:
        if is_archive(file):
            return ARCHIVE
    return CONTAINER if path.suffix == SUFFIX else COPY


def compress(plain: Container, draft: Path, destination: Path, options: Options, advance: Advance) -> Record:
    """Writes the container of a plain safetensors file to `draft`; errors name `destination`.

    Raises InvalidArgument if the file is a container already.
    """
    if plain.compressed:
        raise InvalidArgument("already compressed", file=plain.path)
    file = _file(plain)
    with created_file(draft, mode=file.mode, destination=destination) as out:
        sha256 = write_container(plain, out, options, forgetting_behind(file, advance))
        file.check_unchanged()
    return Record(plain.original.file_size, sha256, CONTAINER)


def archive(file: FileBytes, draft: Path, destination: Path, options: Options, advance: Advance) -> Record:
    """Writes the archive (§10) of any file to `draft`; errors name `destination`.

    Raises InvalidArgument if the file is an archive already.
    """
    from neuzip.archive_writer import write_archive
    from neuzip.kinds import find_parts
    from neuzip.kinds.part import ViewSource

    if is_archive(file):
        raise InvalidArgument("already compressed", file=file.path)
    structure = find_parts(ViewSource(file.view), file.path)
    with created_file(draft, mode=file.mode, destination=destination) as out:
        advance = forgetting_behind(file, advance)
        sha256 = write_archive(file.view, structure.kind, structure.parts, out, options, advance)
        file.check_unchanged()
    return Record(len(file.view), sha256, ARCHIVE)


def to_archive(file: FileBytes) -> bool:
    """Whether a directory should have a file as an archive: not what libraries read out of it as it is."""
    if is_archive(file) or file.path.suffix in _TOKENIZERS:
        return False
    head = bytes(file.view[:_TEXT_BYTES])
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return True
    return b"\0" in head


def restore(packed: Packed, draft: Path, destination: Path, options: Options, advance: Advance) -> Record:
    """Writes the original of a compressed file to `draft`, its sha256 checked; errors name `destination`.

    Raises InvalidArgument if the file is not compressed.
    """
    record = original_record(packed)
    advance = forgetting(packed.file, advance)
    with created_file(draft, mode=_file(packed).mode, destination=destination) as out:
        for piece in _checked_pieces(packed, record, options):
            out.write(piece)
            advance(len(piece))
    return record


def salvage(
    packed: Container | Archive, draft: Path, destination: Path, options: Options, advance: Advance
) -> tuple[Record, tuple[NeuzipError, ...]]:
    """Writes what is intact of a file to `draft`, and returns what is not; errors name `destination`.

    Of a container that is a safetensors file without the damaged tensors; of an archive the original file with
    zeros for what is damaged. advance is called for every byte twice.
    """
    from neuzip import damage

    original_record(packed)
    advance = forgetting(packed.file, advance)
    examination = damage.examine(packed, options, advance)
    lost = examination.lost
    pieces = (
        damage.intact_part(packed, lost).pieces(options)
        if isinstance(packed, Container)
        else packed.pieces(options, lost)
    )
    with created_file(draft, mode=_file(packed).mode, destination=destination) as out, Digest() as digest:
        for piece in pieces:
            digest.update([piece])
            out.write(piece)
            advance(len(piece))
        record = Record(digest.size, digest.hexdigest(), original_record(packed).coding)
    return record, examination.errors


def verify(packed: Container | Archive, options: Options, advance: Advance) -> Record:
    """Decodes a file and checks its sha256, writing nothing.

    Raises DamagedFile, which names all that is wrong; InvalidArgument if the file is not compressed.
    """
    record = original_record(packed)
    from neuzip import damage

    if errors := damage.examine(packed, options, forgetting(packed.file, advance)).errors:
        raise DamagedFile(errors)
    return record


def copy(file: FileBytes, draft: Path, destination: Path, advance: Advance) -> Record:
    """Copies a file byte for byte to `draft`; errors name `destination`."""
    advance = forgetting_behind(file, advance)
    with Digest() as digest:
        with created_file(draft, mode=file.mode, destination=destination) as out:
            for piece in _hashed(file.view, digest):
                out.write(piece)
                advance(len(piece))
            file.check_unchanged()
        return Record(digest.size, digest.hexdigest(), COPY)


def measure(view: View, coding: str, advance: Advance) -> Record:
    """Size and sha256 of a file's original bytes."""
    with Digest() as digest:
        for piece in _hashed(view, digest):
            advance(len(piece))
        return Record(digest.size, digest.hexdigest(), coding)


def name_method(file: FileBytes, draft: Path, destination: Path, advance: Advance) -> Record | None:
    """Writes a config.json that names the quantization method (§8) to `draft`; None if it must stay as it is."""
    original = bytes(file.view[: LIMIT + 1])
    edited = insert_method(original) if len(original) <= LIMIT else None
    if edited is None:
        return None
    with created_file(draft, mode=file.mode, destination=destination) as out:
        out.write(edited)
        file.check_unchanged()
    return measure(memoryview(original), CONFIG, advance)


def restore_config(file: FileBytes, draft: Path, destination: Path, advance: Advance) -> Record:
    """Writes the original of a config.json that names the method to `draft`. Raises CorruptFrame."""
    original = original_config(file)
    with created_file(draft, mode=file.mode, destination=destination) as out:
        out.write(original)
    return measure(original, CONFIG, advance)


def original_config(file: FileBytes) -> memoryview:
    """The original bytes of a config.json that names the method. Raises CorruptFrame, naming the file."""
    try:
        return memoryview(remove_method(bytes(file.view[:])))
    except CorruptFrame as error:
        raise error.at(file=file.path) from None


def original_record(packed: Packed) -> Record:
    """What a file states about its original. Raises InvalidArgument if the file is not compressed."""
    if packed.sha256 is None:
        raise InvalidArgument("not compressed", file=packed.path)
    return Record(
        packed.original_size, packed.sha256, CONTAINER if isinstance(packed, Container) else ARCHIVE
    )


def compare(packed: Packed, plain: FileBytes, options: Options) -> None:
    """Decodes a file and compares it with a plain file, byte for byte. Raises CorruptFrame, naming the
    compressed one, if they differ."""
    position = 0
    for piece in packed.pieces(options):
        if not same_bytes(piece, plain.view[position : position + len(piece)]):
            raise CorruptFrame(f"decodes to other bytes than {plain.path}", file=packed.path, offset=position)
        position += len(piece)
        plain.forget()
        if packed.file is not None:
            packed.file.forget()
    if position != len(plain.view):
        raise CorruptFrame(
            f"decodes to {position} bytes; {plain.path} has {len(plain.view)}",
            file=packed.path,
            offset=position,
        )


def compare_copy(copied: FileBytes, plain: FileBytes, coding: str) -> None:
    """Raises CorruptFrame, naming the copy, if it does not stand for the plain file's bytes."""
    original = original_config(copied) if coding == CONFIG else copied.view
    if not same_bytes(original, plain.view):
        raise CorruptFrame(f"differs from {plain.path}", file=copied.path)


def _checked_pieces(packed: Packed, record: Record, options: Options) -> Iterator[memoryview]:
    """The original file's bytes. Raises CorruptFrame after the last if their sha256 is not the record's."""
    with Digest() as digest:
        for piece in packed.pieces(options):
            digest.update([piece])
            yield piece
        if digest.hexdigest() != record.sha256:
            raise CorruptFrame("the sha256 of the restored file is not the original's", file=packed.path)


def _hashed(view: View, digest: Digest) -> Iterator[memoryview]:
    for start in range(0, len(view), BATCH_BYTES):
        piece = view[start : start + BATCH_BYTES]
        digest.update([piece])
        yield piece


def _file(packed: Packed) -> FileBytes:
    assert packed.file is not None  # open sets it
    return packed.file
