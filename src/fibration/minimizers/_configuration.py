"""The 2^Q configurations of Chen and Muñoz Ewald: each class collapsed or not, and what each of them really is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, Shaped

from ..errors import ClassMeansError, ConstructionError, ShapeError
from ..networks import MLP
from ._affine import barycentric, best_affine, best_linear, interpolate
from ._cones import cones
from ._construct import WIDEST, checked_targets, number_or_auto
from ._ladder import ZERO, Task, clouds_in, cost_of, scale_of, statistics_of
from ._minimizer import as_params
from ._network import Weights, identity_step, signs, weights_of
from ._statistics import Classes, as_classes, class_statistics
from ._types import Collapse, Coordinates, Failure

Status = Literal["global", "local_minimum", "not_stationary"]


@dataclass(frozen=True, eq=False)
class Configuration:
    """One configuration: weights, costs and status. All costs are weighted square roots, as in `construct`.

    - `cost`: of the network, whose last weight and bias are the best ones with the hidden layers held fixed.
    - `tied_bias_cost`: the least with the last bias tied so that f(x) = Az on the truncated inputs z. It is what the
      paper calls the minimum (its equation 2.71); moving the data changes it.
    - `paper_cost`: the paper's value for a mixed configuration (its equation 2.85), which uses the means of the data
      where the truncated means belong; it is neither attained nor a bound. NaN for linearly dependent means.
    - `status`: "global" for zero cost; "local_minimum" where no class is collapsed; else "not_stationary". The paper
      calls all but the first of them local minima, but ∂C²/∂t_j ≠ 0 for every collapsed class of a mixed one (derived).
    - `gradient_norm`: |∇C²| in all weights and biases; `hessian_rank`: of ∇²C², Q² for zero cost (at affinely
      independent points) and Q² + Q where no class is collapsed (data that span the space), of Q(Q + 1)² parameters
      with M = Q and Q layers. Computed when first asked for: the Hessian is dense.
    - `apply`, `params`, `weights`: the network; `collapsed` (Q,); `shifts` (Q,): t_j, NaN where not collapsed.
    """

    collapsed: tuple[bool, ...]
    cost: float
    tied_bias_cost: float
    paper_cost: float
    status: Status
    shifts: Float[np.ndarray, " Q"]
    apply: MLP
    params: list[dict[str, Any]]
    weights: Weights
    _classes: Classes
    _targets: Float[np.ndarray, "Q P"]

    def _square(self) -> Any:
        """Make C² as a function of the flat parameters; double precision only within `enable_x64`."""
        inputs = jnp.asarray(np.concatenate([block for block, _ in self._classes.chunks()]))
        numbers = self._classes.numbers
        targets, weights = jnp.asarray(self._targets[numbers]), jnp.asarray(self._classes.weights[numbers])
        params = [{"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)} for weight, bias in self.weights]
        flat, unravel = ravel_pytree(params)

        def square(theta: Any) -> Any:
            outputs = jax.vmap(self.apply, in_axes=(None, 0))(unravel(theta), inputs)
            return jnp.sum(weights * jnp.sum((outputs - targets) ** 2, axis=1))

        return square, flat

    @cached_property
    def gradient_norm(self) -> float:
        """The Euclidean norm of the gradient of C² in all parameters."""
        with jax.enable_x64(True):
            square, flat = self._square()
            return float(jnp.linalg.norm(jax.grad(square)(flat)))

    @cached_property
    def hessian_eigenvalues(self) -> Float[np.ndarray, " K"]:
        """The eigenvalues of the Hessian of C² in all K parameters, increasing; K² numbers of memory."""
        with jax.enable_x64(True):
            square, flat = self._square()
            return np.linalg.eigvalsh(np.asarray(jax.hessian(square)(flat)))

    @property
    def hessian_rank(self) -> int:
        """The number of eigenvalues above 10⁻⁹ of the largest one."""
        sizes = np.abs(self.hessian_eigenvalues)
        return int(np.sum(sizes > 1e-9 * sizes.max(initial=0.0)))


def configuration(
    inputs: Any,
    labels: Any,
    collapsed: Sequence[bool],
    shift: str | float = "auto",
    opening: str | float = "auto",
    targets: Any = None,
    weights: Any = "class",
) -> Configuration:
    """Write down one of the 2^Q configurations of a network with Q hidden layers, and tell what it is.

    Layer j takes class j to the point x̄_j + t_j f_j where `collapsed[j]`, and leaves all samples alone where not; the
    last layer is the best one behind them. With M = Q the cones are those of the inputs, as in the paper; with M > Q
    those of barycentric coordinates.

    **Arguments:** `inputs` (N, M), `labels` (N,), `targets`, `weights`: see `construct`; `collapsed` (Q,), in the order
    of the sorted labels; `shift`: t, the same for all collapsed classes, in units of the coordinates, by default the
    middle of each exact interval; `opening`: of the cones, in radians.

    **Returns:** a `Configuration`.

    **Raises:** those of `construct`; `ConstructionError` where a class cannot be collapsed.

    **Source:** Chen and Muñoz Ewald, arXiv 2309.10639, theorems 2.4 and 2.5, with the corrections that `Configuration`
    names; costs with the hidden layers fixed are derived.

    ```python
    >>> import fibration as fb
    >>> inputs, labels = fb.datasets.gaussian_clusters(2, 30, 2, means=[[1.0, 0.0], [0.0, 1.0]])
    >>> [fb.minimizers.configuration(inputs, labels, s).status for s in ((True, True), (True, False), (False, False))]
    ['global', 'not_stationary', 'local_minimum']

    ```
    """
    classes = as_classes(inputs, labels, weights)
    q, dimension = len(classes.names), classes.inputs.shape[1]
    flags = tuple(bool(flag) for flag in np.atleast_1d(collapsed))
    if len(flags) != q:
        raise ShapeError(f"collapsed has {len(flags)} entries", f"one for each of {q} classes", "give True or False")
    goals = checked_targets(targets, q)
    statistics = class_statistics(classes)
    if q < 2:
        raise ShapeError("samples of one class", "two classes at least", "use `construct`, which makes a constant")
    if dimension < q:
        raise ClassMeansError(
            f"{q} classes in {dimension} dimensions",
            "as many dimensions as classes: the configurations are those of a network of width Q",
            "add features; `construct` does without",
        )
    task = Task(classes, statistics, goals, q, None, None, 2**30)
    coordinates = (
        Coordinates(np.eye(q), np.zeros(q)) if dimension == q else barycentric(statistics, linear=True, shrinkage=0.0)
    )
    clouds = clouds_in(task, coordinates)
    given, angle = number_or_auto(shift, "shift", np.inf), number_or_auto(opening, "opening", WIDEST)
    steps, shifts = _steps(clouds, coordinates(statistics.means), flags, given, angle, classes.names)
    _, left = signs(clouds, steps)
    after = statistics_of(left, statistics.totals)
    matrix, offset, _ = best_affine(after, goals)
    if all(flags):
        matrix, offset = interpolate(after.means, goals)
    built = weights_of(coordinates, steps, matrix, offset)
    cost = cost_of(built, classes, goals)
    status: Status = "not_stationary" if any(flags) else "local_minimum"
    if cost <= ZERO * scale_of(task):
        status = "global"
    apply, params = as_params(built)
    return Configuration(
        collapsed=flags,
        cost=cost,
        tied_bias_cost=best_linear(after, goals),
        paper_cost=_paper_cost(coordinates(statistics.means), after, goals),
        status=status,
        shifts=shifts,
        apply=apply,
        params=params,
        weights=built,
        _classes=classes,
        _targets=goals,
    )


def _steps(
    clouds: list[np.ndarray],
    means: Float[np.ndarray, "Q n"],
    flags: tuple[bool, ...],
    shift: float | None,
    opening: float | None,
    names: Shaped[np.ndarray, " Q"],
) -> tuple[list[Collapse], Float[np.ndarray, " Q"]]:
    centre, shifts, steps = means.mean(axis=0), np.full(len(means), np.nan), list[Collapse]()
    clouds = list(clouds)
    for label, flag in enumerate(flags):
        if flag:
            found = cones(clouds, means, depth=1, names=names, opening=opening, shift=shift, pending=[label])
            if isinstance(found, Failure):
                raise ConstructionError(
                    found.reason, "tighter clusters", "leave that class uncollapsed, or use `construct`"
                )
            steps += found
            clouds[label] = found[0].cone.base_point[None]
            shifts[label] = np.linalg.norm(found[0].cone.base_point - means[label])
        else:
            away = centre - means[label]
            length = float(np.linalg.norm(away))
            steps.append(identity_step(clouds, away / length if length > 0 else None, room=1.0))
    return steps, shifts


def _paper_cost(means: Float[np.ndarray, "Q n"], after: Any, targets: Float[np.ndarray, "Q P"]) -> float:
    """Compute (Y M Yᵀ)^½ with M = (D⁻¹ + Δ⁻¹)⁻¹ = D^½ Δ̃(1 + Δ̃)⁻¹ D^½, Δ = X̄⁻¹S^s X̄⁻ᵀ with the means of the data."""
    if means.shape[0] != means.shape[1] or np.linalg.cond(means) > 1e10:
        return math.nan
    inverse = np.linalg.inv(means.T)
    root = np.sqrt(after.totals)
    noise = inverse @ after.scatter @ inverse.T / np.outer(root, root)
    inner = np.linalg.solve(np.eye(len(noise)) + noise, noise) * np.outer(root, root)
    return math.sqrt(max(float(np.trace(targets.T @ inner @ targets)), 0.0))
