"""Canonical coordinates: the coefficients of the network's function, with a check of the quadrature."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _chunks, _validation, trees
from ..errors import ApplyError, ParameterError, ResolutionWarning
from ..trees import PyTree
from ._arguments import as_count, as_positive, concrete, epsilon
from ._basis import Basis, check_basis
from ._breakpoints import breakpoints
from ._norms import length
from ._quadrature import AbstractRule, LatticeRule, PiecewiseRule, ProductRule, aliasing, quadrature

# A rule is refined until doubling it changes no coefficient by more than this, in units of their norm, or …
_TOLERANCE = 1e-10
# … until it has so many nodes.
_MOST = 2**17
# A last change above this part of |θ| is warned of: a lattice converges slowly.
_POOR: dict[type, float] = {ProductRule: 1e-8, PiecewiseRule: 1e-8, LatticeRule: 1e-3}
_BUDGET = 2**30
# Numbers of kinks are made multiples of this, so that a network whose kinks come and go is not compiled for each.
_KINKS = 8


@concrete
def coordinates(apply: Any, params: PyTree, basis: Any, *, rule: Any = None) -> Float[Array, "K Q"]:
    """Compute the canonical coordinates θ_k(w) = ⟨f_w, e_k⟩ of the function of these parameters, (K, Q).

    **Arguments:**

    - `apply`: `apply(params, x)` maps ONE sample, of the basis's shape, to (Q,), or () for Q = 1.
    - `rule`: from `quadrature`. By default it is found by `resolve`: Gauss between the kinks for a function of one
      input, and a rule that is doubled until the coefficients stand still. A rule of your own is not doubled: it is
      asked only whether the basis's modes are orthonormal under it. Under `jit`, `grad` and `vmap` a rule is needed.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`. Warns with `ResolutionWarning` if the
    coefficients are not resolved, if modes are not orthonormal under the rule, to 1e-8, and where a Fourier basis meets
    a function that is not periodic.

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


@concrete
def resolve(apply: Any, params: PyTree, basis: Any, *, tolerance: Any = _TOLERANCE, most: Any = _MOST) -> Resolved:
    """Compute the coordinates with a rule that is doubled until they change by less than tolerance·|θ|.

    The tangent function along one random direction of the parameters is watched too, so that the rule also serves the
    disparity matrix, whose rows are those of derivatives.

    **Arguments:** `most`: nodes beyond which it is given up. A `ResolutionWarning` says the last change if it is above
    1e-8·|θ| and the tolerance, or for a lattice, which converges slowly, above 1e-3·|θ|.

    **Returns:** `Resolved`: `theta`, `rule`, `change`. The change is that of the coarser rule: the error of `theta` is
    smaller if they converge. A lattice of the default size often leaves 1e-4·|θ|: look at the change.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=2)
    >>> found = fb.canonical.resolve(lambda w, x: jnp.tanh(w * x), jnp.array(9.0), basis)
    >>> found.change < 1e-6
    True

    ```
    """
    return _resolve(
        apply, check(apply, params, basis), basis, as_positive("tolerance", tolerance), as_count("most", most)
    )


def _resolve(apply: Any, params: PyTree, basis: Basis, tolerance: float = _TOLERANCE, most: int = _MOST) -> Resolved:
    rule = _first_rule(apply, params, basis)
    if basis.kind == "fourier":
        _check_periodic(apply, params, basis)
    both = _WithTangent(apply, _direction(params))
    found = np.asarray(_coordinates(both, params, rule))
    level = max(tolerance, 100 * epsilon(found))
    change, size, finer = np.inf, float(length(jnp.asarray(found))), rule.refined()
    while finer is not None and np.isfinite(size):
        rule, before = finer, found
        found = np.asarray(_coordinates(both, params, rule))
        change, size = float(np.abs(found - before).max(initial=0)), float(length(jnp.asarray(found)))
        finer = rule.refined()
        if change <= level * size or (finer is not None and finer.size > most):
            break
    _validation.check_finite(found, "coordinates")
    # What is computed in float32 on the way moves by its rounding.
    if change > max(level, _POOR[type(rule)], 100 * epsilon(params)) * size:
        _warn(
            f"the coefficients are under-resolved: the last doubling, to {rule.size} nodes, changed them by "
            f"{change:.1e}. Kinks or steep units need more nodes: pass a `rule` from `quadrature`, or a larger `most`"
        )
    _warn_of_aliasing(rule)
    q = found.shape[1] // 2
    return Resolved(jnp.asarray(found[:, :q]), rule, change)


def _first_rule(apply: Any, params: PyTree, basis: Basis) -> AbstractRule:
    """Make the rule to begin with: between the kinks of a function of one input, if it has any."""
    kinks = breakpoints(apply, params, basis) if basis.dimension == 1 and basis.kind == "cosine" else []
    rule = quadrature(basis, breakpoints=kinks if len(kinks) else None)
    if not isinstance(rule, PiecewiseRule):
        return rule
    added = jnp.ones(-len(rule.cuts) % _KINKS, rule.cuts.dtype)  # pieces without length
    return PiecewiseRule(basis, jnp.concatenate([rule.cuts, added]), rule.n)


def _warn_of_aliasing(rule: AbstractRule) -> None:
    reason = aliasing(rule)
    if reason is not None:
        _warn(f"the modes are not orthonormal under the rule: {reason}. Take more nodes or fewer modes")


def _warn(message: str) -> None:
    warnings.warn(message, ResolutionWarning, stacklevel=6)


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
    rng = np.random.default_rng(7)
    state = eqx.filter(params, eqx.is_inexact_array)
    scale = 1 / math.sqrt(trees.size(state))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), state)


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


def check(apply: Any, params: PyTree, basis: Any) -> PyTree:
    """Check parameters and the function on one sample of the box; return the parameters as arrays.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`.
    """
    check_basis(basis)
    if not callable(apply):
        raise ApplyError(f"apply is {type(apply).__name__}", "a function apply(params, x)", "pass the function first")
    params = trees.as_coordinates(params)
    _validation.check_parameters(params)
    sample = jax.ShapeDtypeStruct(basis.shape, jnp.result_type(float))
    shape, failure = _validation.output_shape(apply, params, sample)
    if failure is not None or shape is None or len(shape) > 1 or 0 in shape:
        reason = f"raised {type(failure).__name__}: {failure}" if failure is not None else f"returned shape {shape}"
        raise ApplyError(
            f"apply, on one sample of the box's shape {basis.shape}, {reason}",
            "a function of the parameters and one sample alone, with outputs (Q,) or ()",
            "give `box` one (low, high) for each input; freeze batch statistics, dropout and random keys first",
        ) from failure
    return params


def prepared(apply: Any, params: PyTree, basis: Any, rule: Any) -> tuple[PyTree, AbstractRule]:
    """Check parameters, function and rule; without a rule find one."""
    params = check(apply, params, basis)
    if rule is None:
        return params, _resolve(apply, params, basis).rule
    if not isinstance(rule, AbstractRule):
        raise ParameterError(f"rule is {rule!r}", "a rule from `fb.canonical.quadrature`", "or leave it out")
    if rule.basis is not basis and not bool(eqx.tree_equal(rule.basis, basis)):
        raise ParameterError(
            "the rule was made for another basis", "a rule for this one", "pass `quadrature(basis, …)` of this basis"
        )
    _warn_of_aliasing(rule)
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
            _warn(
                f"the function jumps by {jump:.2g} where input {axis} wraps round the box: its Fourier coefficients "
                'fall like 1/k only, and a grid finds them to O(1/n). Pass kind="cosine"'
            )
            return
