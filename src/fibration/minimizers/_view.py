"""A ReLU network read as repeated truncation, and how much noise its layers leave."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import ConstructionError, ParameterError, ShapeError
from ._affine import NOISIER, independence
from ._minimizer import Minimizer, as_rows
from ._statistics import as_classes, class_statistics, largest_deviations
from ._types import Coordinates

SINGULAR = 1e-10


def truncation(W: Any, b: Any, x: Any) -> Float[np.ndarray, "*N n"]:
    """Compute the truncation map τ(x) = W⁺(σ(Wx + b) − b) of a ReLU layer.

    With the base point p = −W⁺b and the edges v_i = W⁺e_i, τ(p + Σ a_i v_i) = p + Σ_{a_i > 0} a_i v_i for invertible W:
    the identity on the cone of all a_i ≥ 0, constant on the cone of all a_i ≤ 0 (Ewald, arXiv 2504.18710, lemma 2.1).
    A second time it changes nothing: τ∘τ = τ.

    **Arguments:** `W` (m, n), invertible or of full row rank; `b` (m,); `x` (n,) or (N, n).

    **Returns:** τ(x), shaped like `x`, in double precision.

    **Raises:** `ShapeError`; `ConstructionError` for a `W` without full row rank.

    ```python
    >>> import numpy as np, fibration as fb
    >>> print(fb.minimizers.truncation(np.eye(2), [-1.0, -1.0], [[3.0, 2.0], [0.0, -5.0], [3.0, 0.0]]))
    [[3. 2.]
     [1. 1.]
     [3. 1.]]

    ```
    """
    weight, bias, points = (np.asarray(array, np.float64) for array in (W, b, x))
    if not (np.all(np.isfinite(weight)) and np.all(np.isfinite(bias))):
        raise ShapeError("W or b with NaN or infinity", "finite weights", "look for where training diverged")
    if weight.ndim != 2 or 0 in weight.shape or bias.shape != weight.shape[:1] or points.shape[-1:] != weight.shape[1:]:
        raise ShapeError(
            f"W {weight.shape}, b {bias.shape} and x {points.shape}", "shapes (m, n), (m,) and (…, n)", "transpose W?"
        )
    inverse = _right_inverse(weight, "W")
    return (np.maximum(points @ weight.T + bias, 0) - bias) @ inverse.T


def _right_inverse(weight: Float[np.ndarray, "m n"], name: str) -> Float[np.ndarray, "n m"]:
    rows, columns = weight.shape
    sizes = np.linalg.svd(weight, compute_uv=False)
    ratio = float(sizes[-1] / sizes[0]) if rows <= columns and sizes[0] > 0 else 0.0
    if ratio < SINGULAR:
        raise ConstructionError(
            f"{name} has shape {weight.shape} and singular values in the ratio {ratio:.1e}",
            "invertible weights, or wide ones of full row rank: layers that do not grow",
            "a network whose widths grow is no repeated truncation; look at its layers one by one",
        )
    return np.linalg.pinv(weight)


@dataclass(frozen=True, eq=False)
class NoiseToSignal:
    """How large clusters are against the simplex of their means; smaller is tighter.

    `supremum`: δ_P = max |X̄⁻¹(x − x̄_j)|; `norm`: ‖Δ₁‖ = √tr Δ₂; `matrix` (Q, Q): Δ₂ = X̄⁻¹SX̄⁻ᵀ, S the weighted
    scatter; `linear`: whether X̄ is inverted, or, where the means are nearly linearly dependent (as those of centred
    data are), X̄ and a row of ones. NaN where the means are dependent even so, as those of one point are.
    """

    supremum: float
    norm: float
    matrix: Float[np.ndarray, "Q Q"]
    linear: bool


def noise_to_signal(inputs: Any, labels: Any, weights: Any = "class", linear: bool | None = None) -> NoiseToSignal:
    """Measure clusters in the barycentric coordinates of their means.

    **Arguments:** `inputs`, `labels`, `weights`: as those of `construct`; `linear`: whether X̄ is inverted, by default
    unless that more than doubles the noise, as it does where the means are nearly linearly dependent.

    **Raises:** as `construct` does. Two passes over the samples.

    **Source:** Chen and Muñoz Ewald, arXiv 2309.10639, section 2, who call it the signal to noise ratio; it is its
    inverse.

    ```python
    >>> import fibration as fb
    >>> inputs, labels = fb.datasets.gaussian_clusters(3, 20, 3, spread=0.05)
    >>> found = fb.minimizers.noise_to_signal(inputs, labels)
    >>> found.linear, 0.05 < found.supremum < 0.3  # the means of a simplex about the origin are dependent
    (False, True)

    ```
    """
    classes = as_classes(inputs, labels, weights)
    statistics = class_statistics(classes)
    means = statistics.means
    rcond = 10 * max(means.shape) * np.finfo(float).eps
    inverses = {
        inverted: np.linalg.pinv((means if inverted else means - statistics.centre).T, rcond=rcond)
        for inverted in ((True, False) if linear is None else (linear,))
        if independence(statistics, linear=inverted) >= SINGULAR
    }
    norms = {
        inverted: float(np.sqrt(max(np.trace(inverse @ statistics.scatter @ inverse.T), 0.0)))
        for inverted, inverse in inverses.items()
    }
    if not norms:
        return NoiseToSignal(np.nan, np.nan, np.full((len(means), len(means)), np.nan), bool(linear))
    chosen = norms.get(True, np.inf) <= NOISIER * norms.get(False, np.inf)
    inverse = inverses[chosen]
    supremum = largest_deviations(classes, means, inverse)[0]
    return NoiseToSignal(supremum, norms[chosen], inverse @ statistics.scatter @ inverse.T, chosen)


@dataclass(frozen=True, eq=False)
class TruncationView:
    """A ReLU network as truncations τ_1, …, τ_L of its inputs and an affine map: f(x) = W^(L+1) τ_L(…τ_1(x)) + b^(L+1).

    - `cumulative`: W^(ℓ) = W_ℓ⋯W_1 and b^(ℓ) = W_ℓ b^(ℓ−1) + b_ℓ, for ℓ = 1, …, L + 1, each a pair.
    - `base_points` (L, n): p_ℓ = −(W^(ℓ))⁺b^(ℓ), in the space of inputs; `conditions` (L,): those of the W^(ℓ).
    - `coordinates`: for a `Minimizer`, the coordinates z = Tx + t in which it is built and to which all this refers;
      else `None`, and z = x.
    - `noise`: the noise to signal of the samples given, before the first layer and after each; empty without samples.
    """

    cumulative: tuple[tuple[Float[np.ndarray, "_ n"], Float[np.ndarray, " _"]], ...]
    base_points: Float[np.ndarray, "L n"]
    conditions: Float[np.ndarray, " L"]
    noise: tuple[NoiseToSignal, ...]
    coordinates: Coordinates | None = None

    def truncated(self, inputs: Any, layers: int | None = None) -> Float[np.ndarray, "N n"]:
        """Compute the inputs (N, n) as the first layers leave them; all hidden layers by default."""
        size = self.cumulative[0][0].shape[1] if self.coordinates is None else self.coordinates.matrix.shape[1]
        points = as_rows(inputs, size)
        points = points if self.coordinates is None else self.coordinates(points)
        hidden = self.cumulative[:-1]
        for weight, bias in hidden if layers is None else hidden[:layers]:
            points = truncation(weight, bias, points)
        return points

    def outputs(self, inputs: Any) -> Float[np.ndarray, "N P"]:
        """Compute f(x) for each row of inputs (N, n), through the truncations."""
        weight, bias = self.cumulative[-1]
        return self.truncated(inputs) @ weight.T + bias


def truncation_view(network: Any, inputs: Any = None, labels: Any = None) -> TruncationView:
    """Read a ReLU network as repeated truncation.

    **Arguments:** `network`: a `Minimizer`; parameters as `fb.networks.mlp` makes them; a list of pairs (W, b); or a
    model with `layers` that have `weight` and `bias`, such as `equinox.nn.MLP`, without anything between them but ReLU.
    `inputs` (N, n) and `labels` (N,): samples whose noise to signal is to be followed through the layers.

    **Raises:** `ParameterError` for another network; `ConstructionError` where a product W^(ℓ) has no full row rank, as
    in a network that grows wider than its inputs: it is no repeated truncation of them.

    **Source:** Chen and Muñoz Ewald, arXiv 2309.10639, proposition 2.1.

    ```python
    >>> import jax, numpy as np, fibration as fb
    >>> apply, params = fb.networks.mlp((4, 4, 3), "relu", key=jax.random.key(0))
    >>> view = fb.minimizers.truncation_view(params)
    >>> x = np.ones((1, 4))
    >>> bool(np.allclose(view.outputs(x), apply(params, x[0]), atol=1e-5))
    True

    ```
    """
    if isinstance(network, Minimizer):
        coordinates = network.coordinates
        weights = network.inner_weights
    else:
        coordinates, weights = None, _weights_of(network)
    cumulative: list[tuple[np.ndarray, np.ndarray]] = []
    total, offset = np.eye(weights[0][0].shape[1]), np.zeros(weights[0][0].shape[1])
    for weight, bias in weights:
        if weight.shape[1] != len(offset) or bias.shape != weight.shape[:1]:
            raise ParameterError(
                f"a weight {weight.shape} with a bias {bias.shape} after a layer of width {len(offset)}",
                "layers that fit one another",
                "pass the layers in the order in which they act",
            )
        total, offset = weight @ total, weight @ offset + bias
        cumulative.append((total, offset))
    inverses = [_right_inverse(weight, f"W^({index})") for index, (weight, _) in enumerate(cumulative[:-1], 1)]
    base_points = [-inverse @ bias for inverse, (_, bias) in zip(inverses, cumulative[:-1], strict=True)]
    view = TruncationView(
        tuple(cumulative),
        np.stack(base_points) if base_points else np.zeros((0, len(weights[0][0][0]))),
        np.array([np.linalg.cond(weight) for weight, _ in cumulative[:-1]]),
        (),
        coordinates,
    )
    if inputs is None:
        return view
    noise = tuple(noise_to_signal(view.truncated(inputs, layers), labels) for layers in range(len(cumulative)))
    return replace(view, noise=noise)


def _weights_of(network: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    layers = getattr(network, "layers", network)
    if not isinstance(layers, Iterable):
        layers = ()
    weights: list[tuple[np.ndarray, np.ndarray]] = []
    for layer in layers:
        if isinstance(layer, dict):
            weight, bias = layer.get("weight"), layer.get("bias")
        elif isinstance(layer, tuple | list) and len(layer) == 2:
            weight, bias = layer
        else:
            weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if weight is None or np.ndim(weight) != 2:
            break
        matrix = np.asarray(weight, np.float64)
        if not np.all(np.isfinite(matrix)):
            raise ParameterError("weights with NaN or infinity", "finite weights", "look for where training diverged")
        weights.append((matrix, np.zeros(len(matrix)) if bias is None else np.asarray(bias, np.float64)))
    else:
        if weights:
            return weights
    raise ParameterError(
        f"a network of type {type(network).__name__}",
        "dense layers with weights and biases",
        "pass a list of pairs (W, b), in the order in which the layers act",
    )
