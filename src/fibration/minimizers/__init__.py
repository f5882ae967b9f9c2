"""Minimisers written down without training: ReLU networks whose layers collapse one class after another."""

import importlib
from typing import TYPE_CHECKING, Any

from ._cone import Cone
from ._configuration import Configuration, configuration
from ._construct import construct
from ._convert import to_equinox, to_flax, to_onnx, to_torch, to_torch_state_dict
from ._film import film_strip
from ._minimizer import Attempt, Conditions, Layer, Minimizer
from ._plots import cost_ladder, degenerate_directions, noise_plot
from ._shallow import ShallowMinimizer, shallow
from ._view import NoiseToSignal, TruncationView, noise_to_signal, truncation, truncation_view

if TYPE_CHECKING:
    from ._estimator import TruncationClassifier

__all__ = [
    "Attempt",
    "Conditions",
    "Cone",
    "Configuration",
    "Layer",
    "Minimizer",
    "NoiseToSignal",
    "ShallowMinimizer",
    "TruncationClassifier",
    "TruncationView",
    "configuration",
    "construct",
    "cost_ladder",
    "degenerate_directions",
    "film_strip",
    "noise_plot",
    "noise_to_signal",
    "shallow",
    "to_equinox",
    "to_flax",
    "to_onnx",
    "to_torch",
    "to_torch_state_dict",
    "truncation",
    "truncation_view",
]


def __getattr__(name: str) -> Any:
    # scikit-learn is imported when its estimator is first asked for.
    if name == "TruncationClassifier":
        return importlib.import_module("._estimator", __name__).TruncationClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
