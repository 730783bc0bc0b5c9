"""The header of a kept file: the original's, with text inserted into its metadata (§7.1)."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from neuzip.errors import CorruptFrame
from neuzip.safetensors_header import METADATA_KEY, SafetensorsHeader

_BLANKS = rb"[ \t\r\n]*"
_SPACE = re.compile(_BLANKS.decode())
_OPENING = re.compile(rb"\{" + _BLANKS)
_INSERTED = re.compile(
    rb'"neuzip\.version":"2","neuzip\.size":"[0-9]+","neuzip\.sha256":"[0-9a-f]*",'
    rb'"neuzip\.checksums":"[A-Za-z0-9+/=]*" *'
)


class _Form(NamedTuple):
    """What a header has before and behind the inserted text, and what the original has in the place of all that."""

    before: bytes
    behind: bytes
    original: bytes

    @property
    def growth(self) -> int:
        """Bytes that the header is longer than the original beside the inserted text: in no two forms the same."""
        return len(self.before) + len(self.behind) - len(self.original)


_NONE = _Form(b'"__metadata__":{', b"},", b"")
_NOTHING = _Form(b'"__metadata__":{', b"}", b"")
_NULL = _Form(b"{", b"}", b"null")
_EMPTY = _Form(b"", b"", b"")
_SOME = _Form(b"", b",", b"")
_FORMS = (_NONE, _NOTHING, _NULL, _EMPTY, _SOME)


def insert_metadata(original: SafetensorsHeader, metadata: bytes) -> bytes | None:
    """The header of a kept file. The data is aligned as it was.

    metadata: the text of the four that are inserted. None for the rare original that holds such a text already: of a
    file that has it in a field that safetensors does not know.
    """
    text = original.text
    at = _metadata_place(text)
    if at is None:
        form, at = _NONE if original.entries else _NOTHING, text.index(b"{") + 1
    elif (opening := _OPENING.match(text, at)) is None:
        form = _NULL
    else:
        at = opening.end()
        form = _EMPTY if text.startswith(b"}", at) else _SOME
    padding = b" " * (-(len(metadata) + form.growth) % 8)
    inserted = form.before + metadata + padding + form.behind
    header = text[:at] + inserted + text[at + len(form.original) :]
    return header if _without_metadata(header, len(text)) == text else None


def original_text(text: bytes, length: int) -> bytes:
    """The header of the original file, of `length` bytes, from a kept file's. Raises CorruptFrame."""
    original = _without_metadata(text, length)
    if original is None:
        raise CorruptFrame("the header of a kept file does not have its metadata as it has to")
    return original


def _without_metadata(text: bytes, length: int) -> bytes | None:
    found = _INSERTED.search(text)
    if found is None:
        return None
    grown = len(text) - length - len(found[0])
    start, end = found.span()
    for before, behind, original in (form for form in _FORMS if form.growth == grown):
        if text.endswith(before, 0, start) and text.startswith(behind, end):
            return text[: start - len(before)] + original + text[end + len(behind) :]
    return None


def _metadata_place(text: bytes) -> int | None:
    """Where the value of a header's metadata begins; None if it has none. The header is a valid one."""
    # A key may be spelled with escapes.
    if METADATA_KEY.encode() not in text and b"\\u" not in text:
        return None
    decoded, decode = text.decode(), json.JSONDecoder().raw_decode
    at = decoded.index("{") + 1
    while decoded[at := _skip(decoded, at)] != "}":
        key, at = decode(decoded, at)
        at = _skip(decoded, _skip(decoded, at) + len(":"))
        if key == METADATA_KEY:
            return len(decoded[:at].encode())
        at = _skip(decoded, decode(decoded, at)[1])
        at += decoded[at] == ","
    return None


def _skip(text: str, at: int) -> int:
    """Behind blanks."""
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
