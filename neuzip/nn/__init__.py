"""Models whose weights stay compressed in memory, for inference and training."""

from neuzip.nn.linear import CompressedLinear
from neuzip.nn.loading import load_model
from neuzip.nn.model import compress_model, decompress_model
from neuzip.nn.tensor import CompressedTensor

__all__ = ["CompressedLinear", "CompressedTensor", "compress_model", "decompress_model", "load_model"]
