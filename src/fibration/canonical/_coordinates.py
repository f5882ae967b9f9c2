"""Canonical coordinates: the coefficients of the network's function, with a check of the quadrature."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _chunks, _validation, trees
from ..errors import ApplyError, NonFiniteDataError, ParameterError, ResolutionWarning, ShapeError
from ..trees import PyTree
from ._basis import Basis
from ._breakpoints import breakpoints
from ._quadrature import AbstractRule, LatticeRule, PiecewiseRule, ProductRule, quadrature

# A rule is refined until doubling it changes no coefficient by more than this, in units of their norm, or …
_TOLERANCE = 1e-10
# … until it has so many nodes.
_MOST = 2**17
# A last change above this part of |θ| is warned of: a lattice converges slowly.
_POOR: dict[type, float] = {ProductRule: 1e-8, PiecewiseRule: 1e-8, LatticeRule: 1e-3}
_BUDGET = 2**30


def coordinates(apply: Any, params: PyTree, basis: Basis, *, rule: AbstractRule | None = None) -> Float[Array, "K Q"]:
    """Compute the canonical coordinates θ_k(w) = ⟨f_w, e_k⟩ of the function of these parameters, (K, Q).

    **Arguments:**

    - `apply`: `apply(params, x)` maps ONE sample, of the basis's shape, to (Q,), or () for Q = 1.
    - `rule`: from `quadrature`. By default it is found by `resolve`: Gauss between the kinks for a function of one
      input, and a rule that is doubled until the coefficients stand still.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`. Warns with `ResolutionWarning` if the
    coefficients are not resolved, and where a Fourier basis meets a function that is not periodic.

    Costs one forward pass at the rule's nodes, in chunks of 1 GiB, and one transform.

    **Source:** Jiang, arXiv 1903.02140; with the uniform *probability* measure on the box.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=2)
    >>> print(fb.canonical.coordinates(lambda w, x: w * x, jnp.array(2.0), basis).ravel().round(3) + 0.0)
    [ 1.    -0.573  0.   ]

    ```
    """
    params, rule = prepared(apply, params, basis, rule)
    theta = _coordinates(apply, params, rule)
    _validation.check_finite(theta, "coordinates")
    return theta


class Resolved(eqx.Module):
    """Coordinates with the rule that gave them, and by how much doubling it changed them (largest entry)."""

    theta: Float[Array, "K Q"]
    rule: AbstractRule
    change: float = eqx.field(static=True)


def resolve(apply: Any, params: PyTree, basis: Basis, *, tolerance: float = _TOLERANCE, most: int = _MOST) -> Resolved:
    """Compute the coordinates with a rule that is doubled until they change by less than tolerance·|θ|.

    The tangent function along one random direction of the parameters is watched too, so that the rule also serves the
    disparity matrix, whose rows are those of derivatives.

    **Arguments:** `most`: nodes beyond which it is given up, with a `ResolutionWarning` that says the last change.

    **Returns:** `Resolved`: `theta`, `rule`, `change`. The change is that of the coarser rule: the error of `theta` is
    smaller if they converge.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=2)
    >>> found = fb.canonical.resolve(lambda w, x: jnp.tanh(w * x), jnp.array(9.0), basis)
    >>> found.change < 1e-6
    True

    ```
    """
    params = check(apply, params, basis)
    kinks = breakpoints(apply, params, basis) if basis.dimension == 1 and basis.kind == "cosine" else None
    rule = quadrature(basis, breakpoints=kinks if kinks is not None and len(kinks) else None)
    if basis.kind == "fourier":
        _check_periodic(apply, params, basis)
    both = _WithTangent(apply, _direction(params))
    eps = float(jnp.finfo(jnp.result_type(float)).eps)
    level, found = max(tolerance, 100 * eps), np.asarray(_coordinates(both, params, rule))
    change, size, finer = np.inf, float(np.linalg.norm(found)), rule.refined()
    while finer is not None and np.isfinite(size):
        rule, before = finer, found
        found = np.asarray(_coordinates(both, params, rule))
        change, size = float(np.abs(found - before).max(initial=0)), float(np.linalg.norm(found))
        finer = rule.refined()
        if change <= level * size or (finer is not None and finer.size > most):
            break
    _validation.check_finite(found, "coordinates")
    if change > max(level, _POOR[type(rule)]) * size:
        warnings.warn(
            f"the coefficients are under-resolved: the last doubling, to {rule.size} nodes, changed them by "
            f"{change:.1e}. Kinks or steep units need more nodes: pass a `rule` from `quadrature`, or a larger `most`",
            ResolutionWarning,
            stacklevel=3,
        )
    q = found.shape[1] // 2
    return Resolved(jnp.asarray(found[:, :q]), rule, change)


class _WithTangent(eqx.Module):
    """A network's outputs, and their derivatives along one direction of its parameters."""

    apply: Callable[..., Any]
    direction: PyTree

    def __call__(self, params: PyTree, x: Array) -> Float[Array, " P"]:
        state, constant = eqx.partition(params, eqx.is_inexact_array)

        def outputs(state: PyTree) -> Array:
            return jnp.atleast_1d(self.apply(eqx.combine(state, constant), x))

        return jnp.concatenate(jax.jvp(outputs, (state,), (self.direction,)))


def _direction(params: PyTree) -> PyTree:
    drawn = trees.random_like(jax.random.key(7), eqx.filter(params, eqx.is_inexact_array))
    return trees.scale(1 / trees.norm(drawn), drawn)


@eqx.filter_jit
def _coordinates(apply: Any, params: PyTree, rule: AbstractRule) -> Float[Array, "K Q"]:
    return rule.analyse(values_at(apply, params, rule.samples))


def values_at(apply: Any, params: PyTree, samples: Float[Array, "G ..."]) -> Float[Array, "G Q"]:
    """Evaluate the network at many samples, in chunks."""
    batched = jax.vmap(lambda x: jnp.atleast_1d(apply(params, x)))
    size = _chunks.samples_per_chunk(batched, samples, _BUDGET)
    if size >= len(samples):
        return batched(samples)
    return jax.lax.map(lambda x: jnp.atleast_1d(apply(params, x)), samples, batch_size=size)


def check(apply: Any, params: PyTree, basis: Basis) -> PyTree:
    """Check parameters and the function on one sample of the box; return the parameters as arrays.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`.
    """
    if not callable(apply):
        raise ApplyError(f"apply is {type(apply).__name__}", "a function apply(params, x)", "pass the function first")
    params = trees.as_coordinates(params)
    _validation.check_parameters(params)
    sample = jax.ShapeDtypeStruct(basis.shape, jnp.result_type(float))
    shape, failure = _validation.output_shape(apply, params, sample)
    if failure is not None or shape is None or len(shape) > 1:
        reason = f"raised {type(failure).__name__}: {failure}" if failure is not None else f"returned shape {shape}"
        raise ApplyError(
            f"apply, on one sample of the box's shape {basis.shape}, {reason}",
            "a function of the parameters and one sample alone, with outputs (Q,) or ()",
            "give `box` one (low, high) for each input; freeze batch statistics, dropout and random keys first",
        ) from failure
    return params


def prepared(apply: Any, params: PyTree, basis: Basis, rule: AbstractRule | None) -> tuple[PyTree, AbstractRule]:
    """Check parameters, function and rule; without a rule find one."""
    params = check(apply, params, basis)
    if rule is None:
        return params, resolve(apply, params, basis).rule
    if rule.basis is not basis and not bool(eqx.tree_equal(rule.basis, basis)):
        raise ParameterError(
            "the rule was made for another basis", "a rule for this one", "pass `quadrature(basis, …)` of this basis"
        )
    return params, rule


def _check_periodic(apply: Any, params: PyTree, basis: Basis) -> None:
    """Warn if the function jumps from one side of the box to the other, at random places."""
    places = np.random.default_rng(0).uniform(size=(64, basis.dimension))
    values = np.asarray(values_at(apply, params, basis.from_unit(jnp.asarray(places))))
    spread = max(float(np.abs(values - values.mean(axis=0)).max()), 1e-300)
    for axis in range(basis.dimension):
        ends = [places.copy(), places.copy()]
        ends[0][:, axis], ends[1][:, axis] = 0.0, 1.0
        first, last = (np.asarray(values_at(apply, params, basis.from_unit(jnp.asarray(end)))) for end in ends)
        jump = float(np.abs(first - last).max())
        if jump > 1e-6 * spread:
            warnings.warn(
                f"the function jumps by {jump:.2g} where input {axis} wraps round the box: its Fourier coefficients "
                'fall like 1/k only, and a grid finds them to O(1/n). Pass kind="cosine"',
                ResolutionWarning,
                stacklevel=4,
            )
            return


def fit(basis: Basis, inputs: Any, values: Any) -> tuple[Float[Array, "K Q"], float]:
    """Find the coordinates of a function known at scattered samples only, by least squares: θ = E⁺ f(X).

    **Arguments:** `inputs` (N, …) in the box; `values` (N, Q) or (N,).

    **Returns:** `(theta, condition)`: (K, Q), of least norm where the samples leave it open, and σ_max/σ_min of
    E = `basis.evaluate(inputs)`. The modes are not orthonormal at scattered samples: a large condition means that θ is
    not determined by them, and infinity that it is not at all.

    **Raises:** `ShapeError`, `ParameterError`, `NonFiniteDataError`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=(0, 1), degree=2)
    >>> x = np.array([0.0, 0.2, 0.5, 0.9])
    >>> theta, condition = fb.canonical.fit(basis, x, np.cos(2 * np.pi * x))
    >>> theta.ravel().round(3) + 0.0, condition < 3
    (Array([0.   , 0.   , 0.707], dtype=float...), True)

    ```
    """
    matrix = basis.evaluate(inputs)
    values = _validation.as_array(values, "values")
    columns = values[:, None] if values.ndim == 1 else values
    if columns.ndim != 2 or len(columns) != len(matrix):
        raise ShapeError(
            f"values have shape {values.shape}", f"one row for each of {len(matrix)} samples", "pass (N, Q) or (N,)"
        )
    _validation.check_finite(values, "values")
    theta, _, _, sigma = jnp.linalg.lstsq(matrix, columns.astype(matrix.dtype))
    least = float(sigma[-1]) if len(matrix) >= basis.size else 0.0
    if not bool(jnp.all(jnp.isfinite(theta))):
        raise NonFiniteDataError("the least squares overflowed", "values of moderate size", "rescale the values")
    return theta, float(sigma[0]) / least if least > 0 else float("inf")
