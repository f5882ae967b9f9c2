"""One hidden layer: the upper bound of the shallow theory, and the least cost that its network attains nearby."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from ..errors import ClassMeansError, UnknownNameError
from ..networks import MLP
from ._affine import DEGENERATE, best_affine, best_linear, independence
from ._construct import checked_targets
from ._ladder import cost_of
from ._minimizer import as_params, as_rows, nearest
from ._network import Weights, forward
from ._statistics import as_classes, class_statistics, largest_deviations


@dataclass(frozen=True, eq=False)
class ShallowMinimizer:
    """A network with one hidden layer of width M, written down.

    - `cost`: what it costs on the samples; `bound`: √(Σ D_j) ‖Y‖ δ_P, which no "projection" exceeds: O(δ_P).
    - `linear_cost`, `affine_cost`: the least cost of Ax and of Ax + c. With M = Q the second is that of a local minimum
      among all networks of this shape; not of the global one, since singular first weights may do better (derived).
    - `noise_to_signal`: δ_P = max |X̄⁺(x − x̄_j)|; NaN, as `bound`, for linearly dependent class means.
    - `apply`, `params`, `weights`, `classes`, `targets`: as in `Minimizer`.
    """

    cost: float
    bound: float
    linear_cost: float
    affine_cost: float
    noise_to_signal: float
    apply: MLP
    params: list[dict[str, Any]]
    weights: Weights
    classes: Shaped[np.ndarray, " Q"]
    targets: Float[np.ndarray, "Q P"]

    def outputs(self, inputs: Any) -> Float[np.ndarray, "N P"]:
        """Compute f(x) for each row of inputs (N, M), in double precision."""
        return forward(self.weights, as_rows(inputs, self.apply.sizes[0]))

    def predict(self, inputs: Any) -> Shaped[np.ndarray, " N"]:
        """Name the class whose target is nearest to f(x); ties go to the class that comes first."""
        return self.classes[nearest(self.outputs(inputs), self.targets)]

    def distance(self, inputs: Any, others: Any) -> Float[np.ndarray, " N"]:
        """Compute d(x, x′) = |f(x) − f(x′)|; for "projection" |Y X̄⁺(x − x′)|, a metric on the span of the means."""
        return np.linalg.norm(self.outputs(inputs) - self.outputs(others), axis=1)


def shallow(
    inputs: Any,
    labels: Any,
    targets: Any = None,
    weights: Any = "class",
    kind: str = "best",
) -> ShallowMinimizer:
    """Write down a network with one hidden layer of width M, for Q ≤ M classes with linearly independent means.

    - "projection": f(x) = Y X̄⁺x on the samples. An orthogonal first layer turns the span of the class means into the
      first Q units, whose biases keep them active; the others, which hold noise alone, are switched off. Its cost is
      ‖Y X̄⁺ΔX‖ = O(δ_P) (Chen and Muñoz Ewald, arXiv 2309.10370; formulas derived anew).
    - "best": all units active, and behind them the best affine map, which for M = Q is a local minimum (derived).

    **Arguments:** as those of `construct`.

    **Raises:** those of `construct`, and `ClassMeansError` for linearly dependent class means (as those of centred data
    are), if "projection" is asked for.

    ```python
    >>> import fibration as fb
    >>> means = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    >>> inputs, labels = fb.datasets.gaussian_clusters(2, 30, 3, means=means)
    >>> first, best = (fb.minimizers.shallow(inputs, labels, kind=kind) for kind in ("projection", "best"))
    >>> best.cost < first.cost < first.bound
    True

    ```
    """
    if kind not in ("best", "projection"):
        raise UnknownNameError(f"kind = {kind!r}", '"best" or "projection"', 'leave it at "best"')
    classes = as_classes(inputs, labels, weights)
    statistics, goals = class_statistics(classes), checked_targets(targets, len(classes.names))
    means, (q, dimension) = statistics.means, statistics.means.shape
    independent = independence(statistics, linear=True) > DEGENERATE
    inverse = np.linalg.pinv(means.T) if independent else np.full((q, dimension), np.nan)
    largest = largest_deviations(classes, np.zeros_like(means), None)[0] or 1.0
    radius, noise = largest_deviations(classes, means, None, inverse)
    matrix, offset, affine_cost = best_affine(statistics, goals)
    if kind == "best":
        first, bias = np.eye(dimension), np.full(dimension, 1.1 * largest)
        last, end = matrix, offset - matrix @ bias
    else:
        if not independent:
            raise ClassMeansError(
                f"{q} class means in {dimension} dimensions are linearly dependent",
                "linearly independent class means, which centring destroys",
                'use kind="best", or undo the centring',
            )
        first = np.linalg.svd(means.T, full_matrices=True)[0].T
        bias = np.concatenate([np.full(q, 1.1 * largest), np.full(dimension - q, -2.0 * radius)])
        last = np.concatenate([goals.T @ inverse @ first[:q].T, np.zeros((goals.shape[1], dimension - q))], axis=1)
        end = -last @ bias
    built: Weights = [(first, bias), (last, end)]
    apply, params = as_params(built)
    bound = math.sqrt(statistics.totals.sum()) * float(np.linalg.norm(goals, 2)) * noise
    return ShallowMinimizer(
        cost=cost_of(built, classes, goals),
        bound=bound,
        linear_cost=best_linear(statistics, goals),
        affine_cost=affine_cost,
        noise_to_signal=noise,
        apply=apply,
        params=params,
        weights=built,
        classes=classes.names,
        targets=goals,
    )
