"""Files of any kind: which bytes of them are tensors, and of what dtype.

Nothing here writes or decodes: a kind is a function from a file's bytes to `Part`s. A file that breaks the
rules of its kind is a file of no kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from importlib import import_module
from pathlib import Path

from neuzip.errors import NeuzipError
from neuzip.files import FileBytes
from neuzip.kinds import magic
from neuzip.kinds.part import Part, Source, ViewSource
from neuzip.safetensors_header import LENGTH


class Kind(IntEnum):
    """What a file was taken for (§10)."""

    OTHER = 0
    SAFETENSORS = 1
    TORCH = 2
    GGUF = 3
    NUMPY = 4
    ONNX = 5


@dataclass(frozen=True)
class Structure:
    """A file's kind and its tensors, in the order of their bytes and without overlaps."""

    kind: Kind
    parts: tuple[Part, ...]


@contextmanager
def open_plain(path: Path) -> Iterator[Source]:
    """The bytes of a file."""
    with FileBytes(path) as file:
        yield ViewSource(file.view)


def find_parts(
    source: Source,
    path: Path | None = None,
    opened: Callable[[Path], AbstractContextManager[Source]] = open_plain,
) -> Structure:
    """What is in a file. Of a broken one, and one of no kind, nothing is known.

    path: of the file, if what lies beside it may say what it is: ONNX models have tensors in files of their own.
    opened: what opens a file beside it.
    """
    head = bytes(source.read(0, min(_HEAD_BYTES, source.size)))
    for kind, at, beginning, module, function in _READERS:
        if head[at:].startswith(beginning):
            try:
                parts = getattr(import_module(module), function)(source)
            except NeuzipError:
                continue
            if parts is not None:
                return Structure(kind, tuple(_disjoint(parts, source.size)))
    external = _external(path, source.size, opened) if path is not None else []
    return Structure(Kind.ONNX if external else Kind.OTHER, tuple(_disjoint(external, source.size)))


def _external(path: Path, size: int, opened: Callable[[Path], AbstractContextManager[Source]]) -> list[Part]:
    """The tensors that ONNX models in the same folder have in this file. Either may be an archive, under its name."""
    found: list[Part] = []
    models = [model for pattern in ("*.onnx", "*.onnx.nz") for model in path.parent.glob(pattern)]
    for model in sorted(models)[:_MODEL_LIMIT]:
        with suppress(NeuzipError), opened(model) as source:
            if bytes(source.read(0, 1)) == magic.ONNX:
                from neuzip.kinds.onnx_file import read_external

                found += read_external(source, path.name.removesuffix(".nz"), size)
    return found


# Kind, where its magic lies and what that is, and what finds the tensors, or None if a file is not of the kind. It is
# imported when such a file is met.
_READERS: tuple[tuple[Kind, int, bytes, str, str], ...] = (
    (Kind.TORCH, 0, magic.ZIP, "neuzip.kinds.torch_file", "read_parts"),
    (Kind.TORCH, 0, magic.PICKLE, "neuzip.kinds.torch_file", "read_parts"),
    (Kind.NUMPY, 0, magic.ZIP, "neuzip.kinds.numpy_file", "read_npz"),
    (Kind.NUMPY, 0, magic.NUMPY, "neuzip.kinds.numpy_file", "read_npy"),
    (Kind.GGUF, 0, magic.GGUF, "neuzip.kinds.gguf_file", "read_gguf"),
    (Kind.SAFETENSORS, LENGTH.size, b"{", "neuzip.kinds.safetensors_file", "read_safetensors"),
    (Kind.ONNX, 0, magic.ONNX, "neuzip.kinds.onnx_file", "read_onnx"),
)
_HEAD_BYTES = 16
_MODEL_LIMIT = 32


def _disjoint(parts: Iterable[Part], size: int) -> list[Part]:
    """Parts in order, with names of their own; of what overlaps, or goes beyond the file, only the first is kept."""
    kept: list[Part] = []
    names: Counter[str] = Counter()
    position = 0
    for part in sorted(parts, key=lambda part: (part.start, part.end)):
        if position <= part.start and part.end <= size:
            names[part.name] += 1
            number = names[part.name]
            kept.append(part if number == 1 else replace(part, name=f"{part.name} ({number})"))
            position = part.end
    return kept
