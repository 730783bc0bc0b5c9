"""sha256 of a file's pieces, computed in a thread of its own while the next piece is made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from typing import TypeGuard

from neuzip.worker import Worker

SHA256_DIGITS = 64
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def is_sha256(text: object) -> TypeGuard[str]:
    """Whether this is a sha256 as the format writes it: lower-case hexadecimal."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


class Digest:
    """The sha256 of the pieces given to `update`, and how many bytes they had. A context manager.

    Pieces must not change until the next call of any method returns. hashlib releases the GIL.
    """

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()
        self._worker = Worker()

    def update(self, pieces: Sequence[memoryview]) -> None:
        """Starts hashing pieces, one after another; waits for those before."""
        self._worker.wait()
        self.size += sum(len(piece) for piece in pieces)
        self._worker.call(partial(self._add, pieces))

    def hexdigest(self) -> str:
        """The digest of all pieces so far, lower-case hexadecimal."""
        self._worker.wait()
        return self._hash.hexdigest()

    def _add(self, pieces: Sequence[memoryview]) -> None:
        for piece in pieces:
            self._hash.update(piece)

    def __enter__(self) -> Digest:
        self._worker.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.__exit__(*error)
