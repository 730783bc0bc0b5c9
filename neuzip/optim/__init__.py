"""Optimizers that step inside backward, weight by weight, and keep their states compressed."""

from neuzip.optim.fused import FusedOptimizer, fused

__all__ = ["FusedOptimizer", "fused"]
