"""Data and starts of deep linear networks with one output: whitening, balance, and what makes them unusable."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from .. import _validation
from ..errors import EmptyDataError, ParameterError, ShapeError
from ._reduction import Start

_WHITE = 1e-8  # |XᵀX/N − I| that counts as none
_BALANCED = 1e-6  # ‖W_{j+1}ᵀW_{j+1} − W_jW_jᵀ‖, relative to ‖W_j‖², that counts as none
_OPPOSITE = 1e-12  # |W/|W| + L/|L|| that counts as none
_ALIGNED = 40.0  # the y = artanh c beyond which 1 − c is nothing beside rounding


def whiten(inputs: Any) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "d d"]]:
    """Whiten inputs: multiply them by (XᵀX/N)^{−1/2}, so that XᵀX/N becomes the identity.

    The mean is left in; subtract it first if it should not count. Computed in float64 whatever JAX's default, since a
    deviation of the rounding of float32 is too much for `deep_linear_guarantee`.

    **Arguments:** `inputs`: (N, …), each sample ravelled to d entries; N ≥ d.

    **Returns:** the whitened inputs (N, d), and the symmetric matrix T (d, d) with `whitened = inputs @ T`: a network's
    row W on whitened inputs is the row W T on the inputs as they were.

    **Raises:** `ParameterError` if XᵀX is singular, to eleven digits; `ShapeError`, `EmptyDataError`,
    `NonFiniteDataError`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> inputs, transform = fb.fidelity.whiten(np.array([[3.0, 0.0], [0.0, 1.0]]))
    >>> print((inputs.T @ inputs / 2).round(12), transform.round(4))
    [[1. 0.] [0. 1.]] [[0.4714 0.    ] [0.     1.4142]]

    ```
    """
    X = _rows(inputs)
    values, vectors = np.linalg.eigh(X.T @ X / len(X))
    rank = int(np.sum(values > 1e-11 * values[-1]))
    if rank < X.shape[1]:
        raise ParameterError(
            f"inputs of shape {X.shape} whose second moment XᵀX/N has rank {rank}",
            f"rank {X.shape[1]}, the number of entries of a sample",
            "drop constant and dependent entries, or project on the leading principal directions first",
        )
    transform = (vectors / np.sqrt(values)) @ vectors.T
    whitened = X @ transform
    # Once more, since an ill-conditioned moment loses digits the first time.
    values, vectors = np.linalg.eigh(whitened.T @ whitened / len(X))
    again = (vectors / np.sqrt(values)) @ vectors.T
    return whitened @ again, transform @ again


@dataclass(frozen=True)
class ScalarData:
    """Whitened inputs (N, d), targets (N, 1), the target L = YᵀX/N (d,), min C, and how far XᵀX/N is from I."""

    inputs: Float[np.ndarray, "n d"]
    targets: Float[np.ndarray, "n 1"]
    target: Float[np.ndarray, " d"]
    minimal_cost: float
    deviation: float


@dataclass(frozen=True)
class BalancedStart:
    """The start of the reduced flow, how far the parameters are from it, and whether W and L are parallel."""

    start: Start
    offset: float
    aligned: bool


def read_matrices(Ws: Sequence[Any]) -> list[np.ndarray]:
    """Read the matrices of a deep linear network with one output, W_1 first."""
    if not isinstance(Ws, list | tuple) or any(np.ndim(W) != 2 for W in Ws) or len(Ws) < 2 or len(Ws[-1]) != 1:
        shapes = [np.shape(W) for W in Ws] if isinstance(Ws, list | tuple) else type(Ws).__name__
        raise ShapeError(
            f"matrices of shapes {shapes}",
            "two or more matrices, W_1 first, the last of one row; with one matrix the cost is convex, and with "
            "several outputs no closed form is known",
            "build them with `networks.deep_linear((d, …, 1), balanced=True, …)`",
        )
    matrices = [np.asarray(W, float) for W in Ws]
    _validation.check_chain(matrices)
    for number, matrix in enumerate(matrices, 1):
        _validation.check_finite(matrix, f"W_{number}")
    return matrices


def read_data(inputs: Any, targets: Any, matrices: list[np.ndarray]) -> ScalarData:
    """Read and check the data: one target for each sample, whitened inputs that explain a part of the targets."""
    X, Y = _rows(inputs), np.asarray(targets, float)
    if Y.shape not in ((len(X),), (len(X), 1)) or X.shape[1] != matrices[0].shape[1]:
        raise ShapeError(
            f"inputs of shape {np.shape(inputs)}, targets of shape {Y.shape} and W_1 of shape {matrices[0].shape}",
            "one target for each sample, and a column of W_1 for each entry of a sample",
            "match the first axes of inputs and targets, and the network's first width",
        )
    _validation.check_finite(Y, "targets")
    deviation = float(np.linalg.norm(X.T @ X / len(X) - np.eye(X.shape[1]), 2))
    if deviation > _WHITE:
        raise ParameterError(
            f"inputs whose second moment XᵀX/N is {deviation:.1e} from the identity",
            f"whitened inputs, to {_WHITE:.0e}",
            "pass `fb.fidelity.whiten(inputs)[0]`, which is float64, without converting it",
        )
    target = Y.reshape(-1) @ X / len(X)
    if np.linalg.norm(target) <= 1e-14 * np.linalg.norm(Y) / math.sqrt(len(X)):
        raise ParameterError(
            "targets that no linear map of the inputs explains any part of: L = YᵀX/N is 0",
            "L ≠ 0, since towards L = 0 a deep network does not converge at an exponential rate",
            "check that inputs and targets belong together",
        )
    minimal = 0.5 * float(np.mean((Y.reshape(-1) - X @ target) ** 2))
    return ScalarData(X, Y.reshape(-1, 1), target, minimal, deviation)


def balanced_start(matrices: list[np.ndarray], target: Float[np.ndarray, " d"]) -> BalancedStart:
    """Find the balanced network of the same end-to-end row, its two variables, and the distance from it."""
    scale = max(float(np.linalg.norm(W, 2)) for W in matrices)
    gaps = [np.linalg.norm(b.T @ b - a @ a.T, 2) for a, b in itertools.pairwise(matrices)]
    worst = int(np.argmax(gaps))
    if gaps[worst] > _BALANCED * scale**2:
        raise ParameterError(
            f"a start that is not balanced: ‖W_{worst + 2}ᵀW_{worst + 2} − W_{worst + 1}W_{worst + 1}ᵀ‖ is "
            f"{gaps[worst] / scale**2:.1e} of the largest ‖W_j‖²",
            f"{_BALANCED:.0e} of it at most",
            "draw the start with `networks.deep_linear(…, balanced=True)`",
        )
    row = matrices[0]
    for matrix in matrices[1:]:
        row = matrix @ row
    row, norm = row[0], float(np.linalg.norm(row))
    if norm == 0:
        raise ParameterError(
            "a start whose end-to-end row is 0",
            "W ≠ 0, since 0 is a stationary point of the flow when the start is balanced",
            "draw the start at random; nearly every one will do",
        )
    length, aim = norm ** (1 / len(matrices)), float(np.linalg.norm(target))
    direction, towards = row / norm, target / aim
    # |u + v| and |u − v| are 2 cos and 2 sin of half the angle, precise at both ends.
    along, across = float(np.linalg.norm(direction + towards)), float(np.linalg.norm(direction - towards))
    if along < _OPPOSITE:
        raise ParameterError(
            "a start whose end-to-end row is opposite to L = YᵀX/N",
            "cos(W, L) > −1, since from there the flow ends at the saddle W = 0",
            "draw the start at random; nearly every one will do",
        )
    alignment = min(math.log(along / across), _ALIGNED) if across > 0 else _ALIGNED
    offset, before = 0.0, direction
    for matrix in matrices:
        after = matrix @ before
        after /= np.linalg.norm(after)
        offset += float(np.linalg.norm(matrix - length * np.outer(after, before)) ** 2)
        before = after
    return BalancedStart(Start(len(matrices), aim, norm, alignment), math.sqrt(offset), across < _OPPOSITE)


def _rows(inputs: Any) -> Float[np.ndarray, "n d"]:
    X = np.asarray(inputs, float)
    if X.ndim == 0:
        raise ShapeError(f"inputs of shape {X.shape}", "a first axis over the samples", "add it with `x[None]`")
    _validation.check_finite(X, "inputs")
    return X.reshape(len(X), -1) if len(X) else _empty(X)


def _empty(X: np.ndarray) -> Float[np.ndarray, "n d"]:
    raise EmptyDataError(f"inputs of shape {X.shape}", "at least one sample", "check how the data was selected")
