"""One file of a checkpoint: compressed, restored, verified, copied and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from neuzip.codec import Options
from neuzip.container import BATCH_BYTES, Container, write_container
from neuzip.digest import Digest
from neuzip.errors import CorruptFrame, InvalidArgument
from neuzip.files import MappedFile, created_file, same_bytes
from neuzip.manifest import CONFIG, CONTAINER, COPY, Record
from neuzip.model_config import LIMIT, insert_method, remove_method

SUFFIX = ".safetensors"

Advance = Callable[[int], None]


def compress(plain: Container, draft: Path, destination: Path, options: Options, advance: Advance) -> Record:
    """Writes the container of a plain safetensors file to `draft`; errors name `destination`.

    Raises InvalidArgument if the file is a container already.
    """
    if plain.compressed:
        raise InvalidArgument("already compressed", file=plain.path)
    file = _mapped(plain)
    with created_file(draft, mode=file.mode, destination=destination) as out:
        sha256 = write_container(plain, out, options, advance)
        file.check_unchanged()
    return Record(plain.original.file_size, sha256, CONTAINER)


def restore(
    container: Container, draft: Path, destination: Path, options: Options, advance: Advance
) -> Record:
    """Writes the original file of a container to `draft`, its sha256 checked; errors name `destination`.

    Raises InvalidArgument if the file is not a container.
    """
    record = original_record(container)
    with created_file(draft, mode=_mapped(container).mode, destination=destination) as out:
        for piece in _checked_pieces(container, record, options):
            out.write(piece)
            advance(len(piece))
    return record


def verify(container: Container, options: Options, advance: Advance) -> Record:
    """Decodes a container and checks its sha256, writing nothing. Raises InvalidArgument if it is not one."""
    record = original_record(container)
    for piece in _checked_pieces(container, record, options):
        advance(len(piece))
    return record


def copy(file: MappedFile, draft: Path, destination: Path, advance: Advance) -> Record:
    """Copies a file byte for byte to `draft`; errors name `destination`."""
    with Digest() as digest:
        with created_file(draft, mode=file.mode, destination=destination) as out:
            for piece in _hashed(file.view, digest):
                out.write(piece)
                advance(len(piece))
            file.check_unchanged()
        return Record(digest.size, digest.hexdigest(), COPY)


def measure(view: memoryview, coding: str, advance: Advance) -> Record:
    """Size and sha256 of a file's original bytes."""
    with Digest() as digest:
        for piece in _hashed(view, digest):
            advance(len(piece))
        return Record(digest.size, digest.hexdigest(), coding)


def name_method(file: MappedFile, draft: Path, destination: Path, advance: Advance) -> Record | None:
    """Writes a config.json that names the quantization method (§8) to `draft`; None if it must stay as it is."""
    original = bytes(file.view[: LIMIT + 1])
    edited = insert_method(original) if len(original) <= LIMIT else None
    if edited is None:
        return None
    with created_file(draft, mode=file.mode, destination=destination) as out:
        out.write(edited)
        file.check_unchanged()
    return measure(memoryview(original), CONFIG, advance)


def restore_config(file: MappedFile, draft: Path, destination: Path, advance: Advance) -> Record:
    """Writes the original of a config.json that names the method to `draft`. Raises CorruptFrame."""
    original = original_config(file)
    with created_file(draft, mode=file.mode, destination=destination) as out:
        out.write(original)
    return measure(original, CONFIG, advance)


def original_config(file: MappedFile) -> memoryview:
    """The original bytes of a config.json that names the method. Raises CorruptFrame, naming the file."""
    try:
        return memoryview(remove_method(bytes(file.view)))
    except CorruptFrame as error:
        raise error.at(file=file.path) from None


def original_record(container: Container) -> Record:
    """What a container states about its original file. Raises InvalidArgument if the file is none."""
    if container.sha256 is None:
        raise InvalidArgument("not compressed", file=container.path)
    return Record(container.original.file_size, container.sha256, CONTAINER)


def compare(container: Container, plain: MappedFile, options: Options) -> None:
    """Decodes a container and compares it with a plain file, byte for byte. Raises CorruptFrame, naming the
    container, if they differ."""
    position = 0
    for piece in container.pieces(options):
        if not same_bytes(piece, plain.view[position : position + len(piece)]):
            raise CorruptFrame(
                f"decodes to other bytes than {plain.path}", file=container.path, offset=position
            )
        position += len(piece)
    if position != len(plain.view):
        raise CorruptFrame(
            f"decodes to {position} bytes; {plain.path} has {len(plain.view)}",
            file=container.path,
            offset=position,
        )


def compare_copy(copied: MappedFile, plain: MappedFile, coding: str) -> None:
    """Raises CorruptFrame, naming the copy, if it does not stand for the plain file's bytes."""
    original = original_config(copied) if coding == CONFIG else copied.view
    if not same_bytes(original, plain.view):
        raise CorruptFrame(f"differs from {plain.path}", file=copied.path)


def _checked_pieces(container: Container, record: Record, options: Options) -> Iterator[memoryview]:
    """The original file's bytes. Raises CorruptFrame after the last if their sha256 is not the record's."""
    with Digest() as digest:
        for piece in container.pieces(options):
            digest.update([piece])
            yield piece
        if digest.hexdigest() != record.sha256:
            raise CorruptFrame("the sha256 of the restored file is not the original's", file=container.path)


def _hashed(view: memoryview, digest: Digest) -> Iterator[memoryview]:
    for start in range(0, len(view), BATCH_BYTES):
        piece = view[start : start + BATCH_BYTES]
        digest.update([piece])
        yield piece


def _mapped(container: Container) -> MappedFile:
    assert container.file is not None  # Container.open sets it
    return container.file
