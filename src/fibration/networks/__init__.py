"""Networks to start from: each function returns `(apply, params)` with `apply(params, x)` for ONE sample x."""

from ._activations import ACTIVATIONS, activation
from ._convnet import ConvNet, convnet
from ._deep_linear import DeepLinear, deep_linear
from ._mlp import MLP, mlp

__all__ = ["ACTIVATIONS", "MLP", "ConvNet", "DeepLinear", "activation", "convnet", "deep_linear", "mlp"]
