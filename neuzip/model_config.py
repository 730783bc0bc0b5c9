"""A transformers model's config.json, with the words by which `from_pretrained` knows a compressed directory (§8)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from neuzip.errors import CorruptFrame

NAME = "config.json"

OPENING = b'{\n  "quantization_config": {"quant_method": "neuzip"},'
"""What the first byte of the original, a brace, becomes."""

LIMIT = 1 << 24
"""Bytes above which a config.json is no model's: the largest known have some hundred KB."""


def belongs_to_weights(name: str, files: Iterable[str]) -> bool:
    """Whether a relative path is that of a config.json beside safetensors files."""
    path = PurePosixPath(name)
    return path.name == NAME and any(
        other.suffix == ".safetensors" and other.parent == path.parent for other in map(PurePosixPath, files)
    )


def insert_method(text: bytes) -> bytes | None:
    """The text of a model's config.json with the quantization method named; None where it must stay as it is.

    That is what is no configuration of transformers (diffusers' would not know the method), names a method of its
    own, or does not begin with its brace.
    """
    try:
        fields = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        return None
    if "quantization_config" in fields or "compression_config" in fields or text[:1] != b"{":
        return None
    return OPENING + text[1:]


def remove_method(text: bytes) -> bytes:
    """The original text. Raises CorruptFrame if the method is not where it was put."""
    if not text.startswith(OPENING):
        raise CorruptFrame("the config.json does not begin with the quantization method, as it was written")
    return b"{" + text[len(OPENING) :]
