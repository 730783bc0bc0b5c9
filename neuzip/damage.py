"""What is damaged in a compressed file: every chunk of every tensor, not only the first; and what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from neuzip import _system, frame
from neuzip.archive import Archive, Segment, segment_batches
from neuzip.codec import Options
from neuzip.container import Container, batches
from neuzip.digest import Digest
from neuzip.errors import CorruptFrame, NeuzipError, TruncatedInput
from neuzip.kept import CHUNK_BYTES
from neuzip.safetensors_header import Entry, SafetensorsHeader, format_header

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Examination:
    """errors: what is wrong, each chunk by itself where that is known, in the order of the original file.

    lost: what cannot be restored: names of a container's tensors, or positions in the original file of an archive's
    segments.
    """

    errors: tuple[NeuzipError, ...]
    lost: frozenset[str | int]


def examine(packed: Container | Archive, options: Options, advance: Advance) -> Examination:
    """Decodes a compressed file, and finds all that is damaged in it. advance: called with original bytes done."""
    errors: list[NeuzipError] = []
    lost: set[str | int] = set()
    with Digest() as digest:
        if isinstance(packed, Container):
            parts = _look_at_container(packed, digest, options, advance)
        else:
            parts = _look_at_archive(packed, digest, options, advance)
        for name, found in parts:
            lost.add(name)
            errors += found
        if not errors and digest.hexdigest() != packed.sha256:
            message = "the sha256 of the restored file is not the original's"
            errors.append(CorruptFrame(message, file=packed.path))
    return Examination(tuple(errors), frozenset(lost))


Found = Iterator[tuple[str | int, list[NeuzipError]]]


def _look_at_container(container: Container, digest: Digest, options: Options, advance: Advance) -> Found:
    digest.update([memoryview(container.original.prefix)])
    advance(container.original.data_start)
    buffers = container.buffers()
    for batch in batches(container.entries.values()):
        left = batch[-1].end - batch[0].start
        try:
            for piece in container.decode(batch, buffers, options):
                digest.update([piece])
                advance(len(piece))
                left -= len(piece)
        except NeuzipError as error:
            found = [(entry.name, _tensor_errors(container, entry, options)) for entry in batch]
            if not any(errors for _, errors in found):  # what failed together succeeds alone
                found = [(entry.name, [error]) for entry in batch]
            yield from ((name, errors) for name, errors in found if errors)
            advance(left)


def _tensor_errors(container: Container, entry: Entry, options: Options) -> list[NeuzipError]:
    errors: list[NeuzipError] = []
    try:
        data = container.data(entry.name)
        ours = container.header.entries[entry.name]
        if len(data) < ours.size:
            raise TruncatedInput(f"the file ends after {len(data)} of its {ours.size} bytes")
        if container.is_frame(entry.name):
            errors = _chunk_errors(data, container.frame_header(entry.name), options)
        else:
            for start in range(0, len(data), CHUNK_BYTES):
                try:
                    container.kept_bytes(entry.name, start, min(start + CHUNK_BYTES, len(data)))
                except NeuzipError as error:
                    errors.append(error)
    except NeuzipError as error:
        errors.append(error)
    return [error.at(file=container.path, tensor=entry.name) for error in errors]


def _chunk_errors(data: memoryview, header: frame.Header, options: Options) -> list[NeuzipError]:
    """Chunk by chunk, what is wrong with a frame whose header is right."""
    errors = []
    room = _system.room(min(header.chunk_size, header.size))
    for chunk in range(header.chunk_count):
        out = room[: min(header.chunk_size, header.size - chunk * header.chunk_size)]
        coded = data[header.offsets[chunk] : header.offsets[chunk + 1]]
        try:
            frame.decode_chunks(header, coded, chunk, 1, out, options)
        except NeuzipError as error:
            errors.append(error.at(chunk=chunk))
    return errors


def _look_at_archive(archive: Archive, digest: Digest, options: Options, advance: Advance) -> Found:
    buffers = archive.buffers()
    for batch in segment_batches(archive.segments):
        out = next(buffers)
        try:
            digest.update([archive.decode_batch(batch, out, options)])
        except NeuzipError as error:
            found = [(segment.start, _segment_errors(archive, segment, options)) for segment in batch]
            if not any(errors for _, errors in found):
                found = [(segment.start, [error]) for segment in batch]
            yield from ((start, errors) for start, errors in found if errors)
        advance(sum(segment.size for segment in batch))


def _segment_errors(archive: Archive, segment: Segment, options: Options) -> list[NeuzipError]:
    errors: list[NeuzipError] = []
    try:
        for data, header in archive.frames(segment):
            errors += _chunk_errors(data, header, options)
    except NeuzipError as error:
        errors.append(error)
    name, at = segment.name or None, segment.offset
    return [error.at(file=archive.path, tensor=name, offset=at) for error in errors]


def intact_part(container: Container, lost: frozenset[str | int]) -> Container:
    """A container of the same file whose original is a safetensors file of the tensors that are not lost."""
    if not lost:
        return container
    kept = [entry for entry in container.entries.values() if entry.name not in lost]
    ends = list(accumulate(entry.size for entry in kept))
    moved = [e._replace(start=end - e.size, end=end) for e, end in zip(kept, ends, strict=True)]
    text = format_header(container.metadata, moved)
    text = text.ljust(-(-len(text) // 8) * 8)
    size = ends[-1] if ends else 0
    entries = {entry.name: entry for entry in moved}
    return replace(container, original=SafetensorsHeader(text, entries, container.metadata, size))
