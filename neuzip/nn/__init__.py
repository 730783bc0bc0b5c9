"""Models whose weights stay compressed in memory, for inference and training."""

from neuzip.nn.fixed_width import FixedWidthTensor, compress_model_fixed_width
from neuzip.nn.linear import CompressedLinear
from neuzip.nn.loading import load_model
from neuzip.nn.lossy import LossyTensor, compress_model_lossy
from neuzip.nn.model import compress_model, decompress_model, offload_model, rechunk_model
from neuzip.nn.tensor import CompressedTensor

__all__ = [
    "CompressedLinear",
    "CompressedTensor",
    "FixedWidthTensor",
    "LossyTensor",
    "compress_model",
    "compress_model_fixed_width",
    "compress_model_lossy",
    "decompress_model",
    "load_model",
    "offload_model",
    "rechunk_model",
]
