"""The cost as a function of the canonical coordinates, its gradient, and the stall index."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import ParameterError, ShapeError
from ..problem import Problem
from ..trees import PyTree
from ._arguments import as_theta, concrete
from ._basis import Basis, check_basis
from ._coordinates import _coordinates, prepared
from ._disparity import largest_singular_value, pushforward
from ._norms import length, unit
from ._quadrature import AbstractRule


def single(problem: Any) -> Problem:
    """Take a problem of one block only.

    **Raises:** `ParameterError` for others.
    """
    if not isinstance(problem, Problem):
        raise ParameterError(
            f"the problem is a {type(problem).__name__}", "an fb.Problem of one block", "pass one of its blocks"
        )
    return problem


def conflicting(problem: Problem) -> bool:
    """Tell whether some inputs are identical with different targets, so that zero cost is impossible."""
    inputs, targets = (np.asarray(rows).reshape(problem.n_samples, -1) for rows in (problem.inputs, problem.targets))
    _, first, group = np.unique(inputs, axis=0, return_index=True, return_inverse=True)
    return bool(np.any(targets != targets[first[group.reshape(-1)]]))


def projected_cost(problem: Any, theta: Any, basis: Any) -> Float[Array, ""]:
    """Compute the cost of the canonical model f_θ = Σ_k θ_k e_k on the problem's data: 𝒬(θ) = (1/N) Σ wᵢ ℓ((Eθ)ᵢ, yᵢ).

    **Arguments:** `theta` (K, Q), or (K,) for Q = 1.

    Convex in θ for every loss that is convex in the outputs. It is not the cost C(w) of the network, whose function
    has further modes; the two agree up to those.

    **Raises:** `ShapeError`; `ParameterError` for samples out of the box, several blocks, or a complex θ.

    **Source:** Jiang, arXiv 1903.02140.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=2)
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([[0.0], [0.5]]), jnp.array([[1.0], [1.0]]))
    >>> print(fb.canonical.projected_cost(problem, jnp.array([1.0, 0.0, 0.0]), basis))
    0.0

    ```
    """
    problem = single(problem)
    return _cost(problem, _as_theta(problem, theta, check_basis(basis)), basis.evaluate(problem.inputs))


def projected_gradient(problem: Any, theta: Any, basis: Any) -> Float[Array, "K Q"]:
    """Compute ∇_θ𝒬(θ), (K, Q); see `projected_cost`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=1)
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([[0.0]]), jnp.array([[2.0]]))
    >>> print(fb.canonical.projected_gradient(problem, jnp.zeros(2), basis).ravel().round(3))  # −2 e_k(0)
    [-2.    -2.828]

    ```
    """
    problem = single(problem)
    return _gradient(problem, _as_theta(problem, theta, check_basis(basis)), basis.evaluate(problem.inputs))


@eqx.filter_jit
def _cost(problem: Problem, theta: Array, table: Array) -> Float[Array, ""]:
    costs = problem.loss.per_sample(table.astype(theta.dtype) @ theta, problem.targets)
    return jnp.mean(costs if problem.weights is None else problem.weights * costs)


@eqx.filter_jit
def _gradient(problem: Problem, theta: Array, table: Array) -> Float[Array, "K Q"]:
    return jax.grad(lambda t: _cost(problem, t, table))(theta)


def _as_theta(problem: Problem, theta: Any, basis: Basis) -> Float[Array, "K Q"]:
    theta = as_theta(theta, basis.size)
    columns = theta[:, None] if theta.ndim == 1 else theta
    if columns.shape[1] != problem.n_outputs:
        raise ShapeError(
            f"theta has shape {theta.shape}",
            f"one row for each mode, one column for each output: {(basis.size, problem.n_outputs)}",
            "see `fb.canonical.coordinates`",
        )
    return columns


@concrete
def stall_index(problem: Any, params: PyTree, basis: Any, *, rule: Any = None) -> Float[Array, ""]:
    """Tell how much of the canonical gradient the parameters can feel: ρ = |H g|/(σ_max(H)|g|), g = ∇_θ𝒬(θ(w)).

    Near 0 with |g| > 0, gradient descent is stuck at a singular point: what would lower the cost is a function that no
    parameter can move. With |g| near 0 the coordinates are near a global minimum of 𝒬, and ρ says nothing: NaN at
    g = 0.

    Costs up to 60 forward and backward passes over the nodes.

    **Source:** derived.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=3)
    >>> apply = lambda w, x: w["out"] @ jnp.tanh(w["in"] @ x)
    >>> problem = fb.Problem(apply, jnp.array([[0.2], [0.7]]), jnp.array([[0.0], [1.0]]))
    >>> zero = {"in": jnp.zeros((4, 1)), "out": jnp.zeros((1, 4))}
    >>> float(fb.canonical.stall_index(problem, zero, basis))
    0.0

    ```
    """
    problem = single(problem)
    params, rule = prepared(problem.apply, params, basis, rule)
    return _stall(problem, params, basis.evaluate(problem.inputs), rule)


@eqx.filter_jit
def _stall(problem: Problem, params: PyTree, table: Array, rule: AbstractRule) -> Float[Array, ""]:
    theta = _coordinates(problem.apply, params, rule)
    gradient = _gradient(problem, theta, table)
    state = eqx.filter(params, eqx.is_inexact_array)
    forward = pushforward(problem.apply, params, rule)
    felt = length(jax.linear_transpose(forward, state)(unit(gradient))[0])
    return felt_part(felt, largest_singular_value(forward, state), length(gradient))


def felt_part(felt: Array, sigma: Array, size: Array) -> Float[Array, ""]:
    """Compute |Hĝ|/σ_max, ĝ = g/|g|: 0 with H = 0, where nothing is felt at all, and NaN with |g| = 0."""
    return jnp.where(size > 0, jnp.where(sigma > 0, felt / jnp.where(sigma > 0, sigma, 1), 0), jnp.nan)
