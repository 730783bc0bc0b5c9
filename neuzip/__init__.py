"""Lossless compression of neural network weights: safetensors files, tensors and arrays, byte for byte."""

from importlib.metadata import PackageNotFoundError, version

from neuzip.checkpoint import Report, compress_file, decompress_file, verify_file
from neuzip.errors import (
    CorruptFrame,
    InvalidArgument,
    NeuzipError,
    StorageError,
    TruncatedInput,
    UnsupportedFormat,
)
from neuzip.reader import safe_open

try:
    __version__ = version("neuzip-codec")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "CorruptFrame",
    "InvalidArgument",
    "NeuzipError",
    "Report",
    "StorageError",
    "TruncatedInput",
    "UnsupportedFormat",
    "__version__",
    "compress_file",
    "decompress_file",
    "safe_open",
    "verify_file",
]
