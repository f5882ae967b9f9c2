"""Weights in files: safetensors, LoRA adapters and checkpoints, and their balancing on disk, one pair at a time."""

from ._balance import balance_weights
from ._interface import Skipped
from ._plots import weights_plots
from ._report import BalancedPair, WeightsReport
from ._safetensors import Tensors, read, write

__all__ = [
    "BalancedPair",
    "Skipped",
    "Tensors",
    "WeightsReport",
    "balance_weights",
    "read",
    "weights_plots",
    "write",
]
