"""Lossless compression of neural network weights: safetensors files, tensors and arrays, byte for byte."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuzip.registration import register as _register

if TYPE_CHECKING:
    from neuzip.checkpoint import Report, compress_file, decompress_file, verify_file
    from neuzip.difference import Difference, diff_files
    from neuzip.errors import (
        CorruptFrame,
        DamagedFile,
        InvalidArgument,
        NeuzipError,
        StorageError,
        TruncatedInput,
        UnsupportedFormat,
    )
    from neuzip.integrations.transformers import NeuzipConfig as NeuzipConfig
    from neuzip.reader import safe_open

    __version__: str

__all__ = [
    "CorruptFrame",
    "DamagedFile",
    "Difference",
    "InvalidArgument",
    "NeuzipError",
    "Report",
    "StorageError",
    "TruncatedInput",
    "UnsupportedFormat",
    "__version__",
    "compress_file",
    "decompress_file",
    "diff_files",
    "safe_open",
    "verify_file",
]

# Imported when first asked for, so that the command line starts before numpy and the library are loaded.
# What needs transformers is not in __all__: `from neuzip import *` works without it.
_HOMES = {
    "Difference": "neuzip.difference",
    "NeuzipConfig": "neuzip.integrations.transformers",
    "Report": "neuzip.checkpoint",
    "compress_file": "neuzip.checkpoint",
    "decompress_file": "neuzip.checkpoint",
    "diff_files": "neuzip.difference",
    "safe_open": "neuzip.reader",
    "verify_file": "neuzip.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in __all__ or name in _HOMES:
        value = getattr(import_module(_HOMES.get(name, "neuzip.errors")), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("neuzip-codec")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"


_register()
